"""Whole architectures: backbones `Part(input_shape, ...)` that turn examples into features for a head;
and models that answer in tokens."""

from logitkit.models.activator import Activator
from logitkit.models.ait import AiTSmall, MaskedVQVAE, mask_augment, masked_mse, silog_loss
from logitkit.models.base import Backbone
from logitkit.models.cnn import CNN
from logitkit.models.convit import ConViT
from logitkit.models.cswin import CSWin
from logitkit.models.linear import LinearModel
from logitkit.models.mlp import MLP
from logitkit.models.raft_mlp import RaftMLP
from logitkit.models.spartan import SpaRTAN
from logitkit.models.transformer import Transformer
from logitkit.models.vit import ViT

__all__ = [
    "CNN",
    "MLP",
    "Activator",
    "AiTSmall",
    "Backbone",
    "CSWin",
    "ConViT",
    "LinearModel",
    "MaskedVQVAE",
    "RaftMLP",
    "SpaRTAN",
    "Transformer",
    "ViT",
    "mask_augment",
    "masked_mse",
    "silog_loss",
]
