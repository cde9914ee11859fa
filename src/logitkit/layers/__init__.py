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
from logitkit.layers.orthogonal_conv import (
    OrthogonalConv2d,
    conv_matrix,
    conv_singular_values,
    isometry_report,
    orthogonal_conv_exists,
    orthogonal_conv_loss,
    orthogonal_kernel,
    orthogonality,
)
from logitkit.layers.raft_mlp import MultiScaleEmbed, RaftBlock, RaftTokenMixer
from logitkit.layers.snnk import (
    URFSNNK,
    FullyBundled,
    ReLUSNNK,
    SNNKAdapter,
    bundle,
    exp_features,
    relu_features,
)
from logitkit.layers.spartan import SpartanBlock, SpatialMixer, SqueezeExcite, WaveMixer, wave_product

__all__ = [
    "GRKAN",
    "URFSNNK",
    "ActivatorBlock",
    "FullyBundled",
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
    "OrthogonalConv2d",
    "RaftBlock",
    "RaftTokenMixer",
    "ReLUSNNK",
    "SNNKAdapter",
    "SpartanBlock",
    "SpatialMixer",
    "SqueezeExcite",
    "WaveMixer",
    "bundle",
    "conv_matrix",
    "conv_singular_values",
    "convert_mlp",
    "exp_features",
    "fit_rational",
    "group_rational",
    "invariance_table",
    "isometry_report",
    "layer_norm",
    "orthogonal_conv_exists",
    "orthogonal_conv_loss",
    "orthogonal_kernel",
    "orthogonality",
    "relu_features",
    "wave_product",
]
