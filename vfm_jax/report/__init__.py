"""What people see of a run: metric files, the terminal line, tables, pictures and the page."""
