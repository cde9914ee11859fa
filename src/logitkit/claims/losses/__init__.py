"""Claims of the losses."""
