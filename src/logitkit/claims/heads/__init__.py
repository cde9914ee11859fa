"""Claims of the heads."""
