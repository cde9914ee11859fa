"""Claims of the normalisers."""
