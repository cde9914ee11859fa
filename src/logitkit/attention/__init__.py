"""Attention: functions in the place of torch's `scaled_dot_product_attention`, and modules in that of
`nn.MultiheadAttention(batch_first=True)`."""

from logitkit.attention.base import Cache, MultiheadAttention
from logitkit.attention.linear import LinearAttention, linear_attention
from logitkit.attention.sigmoid import SigmoidAttention, sigmoid_attention
from logitkit.attention.softmax import SoftmaxAttention, softmax_attention

FUNCTIONS = {
    "linear": linear_attention,
    "sigmoid": sigmoid_attention,
    "softmax": softmax_attention,
}
"""Part -> its function of (query, key, value), for the parts that have nothing to learn of their own."""

__all__ = [
    "FUNCTIONS",
    "Cache",
    "LinearAttention",
    "MultiheadAttention",
    "SigmoidAttention",
    "SoftmaxAttention",
    "linear_attention",
    "sigmoid_attention",
    "softmax_attention",
]
