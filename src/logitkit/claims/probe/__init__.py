"""Claims of the probe room."""
