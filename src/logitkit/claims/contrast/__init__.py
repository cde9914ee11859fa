"""Claims of the contrastive objectives."""
