"""Claims of the theory room."""
