"""Claims of the information bottlenecks."""
