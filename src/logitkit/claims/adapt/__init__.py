"""Claims of adaptation."""
