"""Whole architectures: backbones `Part(input_shape, ...)` that turn examples into features for a head."""

from logitkit.models.base import Backbone
from logitkit.models.cnn import CNN
from logitkit.models.linear import LinearModel
from logitkit.models.mlp import MLP
from logitkit.models.transformer import Transformer
from logitkit.models.vit import ViT

__all__ = ["CNN", "MLP", "Backbone", "LinearModel", "Transformer", "ViT"]
