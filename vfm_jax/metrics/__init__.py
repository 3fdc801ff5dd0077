"""Measures of quality as sums and counts: they add up over batches and devices, and are divided once at the end."""
