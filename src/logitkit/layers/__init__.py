"""Building blocks of networks: drop-ins for normalisation, linear, convolutional and feed-forward layers."""

from logitkit.layers.activator import ActivatorBlock, GatingUnit
from logitkit.layers.kat import GRKAN, GroupRational, convert_mlp, fit_rational, group_rational
from logitkit.layers.layer_norm import (
    LayerNorm,
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormRNN,
    LayerNormRNNCell,
    invariance_table,
    layer_norm,
)
from logitkit.layers.raft_mlp import MultiScaleEmbed, RaftBlock, RaftTokenMixer
from logitkit.layers.spartan import SpartanBlock, SpatialMixer, WaveMixer, wave_product

__all__ = [
    "GRKAN",
    "ActivatorBlock",
    "GatingUnit",
    "GroupRational",
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormRNN",
    "LayerNormRNNCell",
    "MultiScaleEmbed",
    "RaftBlock",
    "RaftTokenMixer",
    "SpartanBlock",
    "SpatialMixer",
    "WaveMixer",
    "convert_mlp",
    "fit_rational",
    "group_rational",
    "invariance_table",
    "layer_norm",
    "wave_product",
]
