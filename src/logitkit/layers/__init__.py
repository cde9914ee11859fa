"""Building blocks of networks: drop-ins for normalisation, linear, convolutional and feed-forward layers."""

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

__all__ = [
    "LayerNorm",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "LayerNormRNN",
    "LayerNormRNNCell",
    "invariance_table",
    "layer_norm",
]
