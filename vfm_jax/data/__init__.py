"""Images on the host: sources, decoding, exact order, batches, and their way to the devices."""
