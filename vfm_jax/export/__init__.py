"""What leaves the project: trained weights in other people's formats."""
