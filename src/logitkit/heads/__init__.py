"""Last layers: drop-ins for `torch.nn.Linear(in_features, num_classes)`."""

from logitkit.heads.linear import LinearHead

__all__ = ["LinearHead"]
