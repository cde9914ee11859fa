"""Attention: functions in the place of torch's `scaled_dot_product_attention`, and modules in that of
`nn.MultiheadAttention(batch_first=True)`."""

from collections.abc import Callable

from torch import Tensor

from logitkit.attention.axial import AxialAttention, axial_attention
from logitkit.attention.base import Cache, MultiheadAttention
from logitkit.attention.bivit import BiViTAttention, SoftmaxAwareBinarize, softmax_aware_attention
from logitkit.attention.convit import GatedPositionalAttention, positional_attention
from logitkit.attention.cosformer import CosformerAttention, cosformer_attention
from logitkit.attention.cswin import CrossShapedAttention, window_attention, window_lepe
from logitkit.attention.dsf import DSF, NormAttention, norm_attention, taylor_attention
from logitkit.attention.entropy_guided import (
    EntropyRegularizer,
    EntropyReport,
    TemperedAttention,
    attention_entropy,
    entropy_report,
    highest_entropy,
    record_weights,
)
from logitkit.attention.hopfield import (
    Hopfield,
    HopfieldLayer,
    HopfieldPooling,
    classify_fixed_point,
    hopfield_attention,
    hopfield_energy,
    hopfield_update,
)
from logitkit.attention.inline import InlineAttention, inline_attention
from logitkit.attention.linear import LinearAttention, linear_attention
from logitkit.attention.lolcats import (
    Hedgehog,
    LolcatsAttention,
    attention_transfer,
    hedgehog,
    linearize,
    lora_finetune,
    window_and_linear,
)
from logitkit.attention.power import (
    Piece,
    PowerAttention,
    power_attention,
    range_penalties,
    to_polynomial,
)
from logitkit.attention.qlstm import QLSTM
from logitkit.attention.rala import RankAugmentedAttention, rank_augmented_attention, rank_report
from logitkit.attention.selective import SelectiveAttention, SelectiveTemperature
from logitkit.attention.sigmoid import SigmoidAttention, sigmoid_attention
from logitkit.attention.soft import SoftmaxFreeAttention, gaussian, newton_pinv, softmax_free_attention
from logitkit.attention.softmax import SoftmaxAttention, softmax_attention
from logitkit.attention.softplus import SoftplusAttention, reweight, softplus_attention
from logitkit.attention.subsampled import SelfEnsemble, SubsampledAttention, random_windows, set_dense
from logitkit.attention.tensor import TensorAttention, khatri_rao, required_degree, tensor_attention

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "bivit": softmax_aware_attention,
    "cosformer": cosformer_attention,
    "linear": linear_attention,
    "power": power_attention,
    "sigmoid": sigmoid_attention,
    "softmax": softmax_attention,
    "softplus": softplus_attention,
}
"""Part -> its function of (query, key, value), for the parts that have nothing to learn of their own."""

__all__ = [
    "DSF",
    "FUNCTIONS",
    "QLSTM",
    "AxialAttention",
    "BiViTAttention",
    "Cache",
    "CosformerAttention",
    "CrossShapedAttention",
    "EntropyRegularizer",
    "EntropyReport",
    "GatedPositionalAttention",
    "Hedgehog",
    "Hopfield",
    "HopfieldLayer",
    "HopfieldPooling",
    "InlineAttention",
    "LinearAttention",
    "LolcatsAttention",
    "MultiheadAttention",
    "NormAttention",
    "Piece",
    "PowerAttention",
    "RankAugmentedAttention",
    "SelectiveAttention",
    "SelectiveTemperature",
    "SelfEnsemble",
    "SigmoidAttention",
    "SoftmaxAttention",
    "SoftmaxAwareBinarize",
    "SoftmaxFreeAttention",
    "SoftplusAttention",
    "SubsampledAttention",
    "TemperedAttention",
    "TensorAttention",
    "attention_entropy",
    "attention_transfer",
    "axial_attention",
    "classify_fixed_point",
    "cosformer_attention",
    "entropy_report",
    "gaussian",
    "hedgehog",
    "highest_entropy",
    "hopfield_attention",
    "hopfield_energy",
    "hopfield_update",
    "inline_attention",
    "khatri_rao",
    "linear_attention",
    "linearize",
    "lora_finetune",
    "newton_pinv",
    "norm_attention",
    "positional_attention",
    "power_attention",
    "random_windows",
    "range_penalties",
    "rank_augmented_attention",
    "rank_report",
    "record_weights",
    "required_degree",
    "reweight",
    "set_dense",
    "sigmoid_attention",
    "softmax_attention",
    "softmax_aware_attention",
    "softmax_free_attention",
    "softplus_attention",
    "taylor_attention",
    "tensor_attention",
    "to_polynomial",
    "window_and_linear",
    "window_attention",
    "window_lepe",
]
