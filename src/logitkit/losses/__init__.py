"""Objectives on outputs: drop-ins for `torch.nn.CrossEntropyLoss`."""

from logitkit.losses.aggregate import (
    AggregateLoss,
    AggregateRidge,
    bag_means,
    dp_bag_means,
    make_bags,
    select_rho,
)
from logitkit.losses.aldr import ALDRKL
from logitkit.losses.base import ClassificationLoss, RegressionLoss
from logitkit.losses.bias_loss import BiasLoss, feature_diversity
from logitkit.losses.binary_cross_entropy import BinaryCrossEntropy
from logitkit.losses.comp_sum import CompSum, CompSumTransform, comp_sum
from logitkit.losses.cross_entropy import CrossEntropy, cross_entropy
from logitkit.losses.cut_cross_entropy import CutCrossEntropy
from logitkit.losses.dco import (
    DCOLoss,
    dco,
    dco_sequence,
    overconfidence_factor,
    pass_at_n,
    unbiased_pass_at_k,
)
from logitkit.losses.eisl import EISLLoss, eisl_matching, target_scores
from logitkit.losses.ensloss import EnsLoss, inverse_box_cox, random_calibrated_derivative
from logitkit.losses.focal import Focal, focal
from logitkit.losses.huber import Huber, huber
from logitkit.losses.ldr import LDRKL, ldr_kl
from logitkit.losses.mse import MSE, mse
from logitkit.losses.multitask import MultitaskLoss, Packed, ValidationBalancer, pack
from logitkit.losses.z_loss import ZLoss, z_loss

__all__ = [
    "ALDRKL",
    "LDRKL",
    "MSE",
    "AggregateLoss",
    "AggregateRidge",
    "BiasLoss",
    "BinaryCrossEntropy",
    "ClassificationLoss",
    "CompSum",
    "CompSumTransform",
    "CrossEntropy",
    "CutCrossEntropy",
    "DCOLoss",
    "EISLLoss",
    "EnsLoss",
    "Focal",
    "Huber",
    "MultitaskLoss",
    "Packed",
    "RegressionLoss",
    "ValidationBalancer",
    "ZLoss",
    "bag_means",
    "comp_sum",
    "cross_entropy",
    "dco",
    "dco_sequence",
    "dp_bag_means",
    "eisl_matching",
    "feature_diversity",
    "focal",
    "huber",
    "inverse_box_cox",
    "ldr_kl",
    "make_bags",
    "mse",
    "overconfidence_factor",
    "pack",
    "pass_at_n",
    "random_calibrated_derivative",
    "select_rho",
    "target_scores",
    "unbiased_pass_at_k",
    "z_loss",
]
