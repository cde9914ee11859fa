"""Claims of distillation."""
