"""Claims of optimisers, samplers and training procedures."""
