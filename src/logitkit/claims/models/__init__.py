"""Claims of layers."""
