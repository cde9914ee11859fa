"""Numerics shared by the rooms: input checks, reductions, random draws, and stable log-space functions."""

from logitkit.ops.attention import attention
from logitkit.ops.augment import random_views
from logitkit.ops.binary_matmul import Signs, binary_matmul, pack_signs, unpack_signs
from logitkit.ops.calibration_error import calibration_error
from logitkit.ops.checks import (
    check_batch,
    check_features,
    check_labels,
    check_logits,
    check_numbers,
    check_positive,
    check_regression,
    check_sequences,
    next_token_labels,
    values_visible,
)
from logitkit.ops.clusters import balanced_clusters
from logitkit.ops.continual import forgetting, incremental_accuracy
from logitkit.ops.contrastive import (
    all_triplets,
    decoupled_softmax,
    info_nce,
    labelled_nt_xent,
    multi_similarity,
    nt_xent,
    sigmoid_contrastive,
    supervised_contrastive,
    weighted_contrastive,
)
from logitkit.ops.detection import average_precision, box_iou
from logitkit.ops.dispatch import KernelWarning, use
from logitkit.ops.linear_attention import linear_attention
from logitkit.ops.linear_loss import (
    linear_comp_sum,
    linear_cross_entropy,
    linear_distillation,
    linear_ldr,
    linear_nkd,
)
from logitkit.ops.logspace import comp_sum, log1mexp, log_odds_against
from logitkit.ops.multilabel import Labels, check_multilabel
from logitkit.ops.mutual_information import conditional_mutual_information, mutual_information
from logitkit.ops.nms import nms, soft_nms
from logitkit.ops.polynomial import Polynomial, PolynomialInverse, PolynomialRsqrt
from logitkit.ops.random import draw_gumbel, draw_normal, draw_uniform
from logitkit.ops.rational import group_rational
from logitkit.ops.reduce import check_reduction, reduce, row_weights
from logitkit.ops.reranking import mine_negatives, ranker_loss, retriever_loss
from logitkit.ops.retrieval import (
    hubness_skew,
    k_occurrence,
    recall_at,
    retrieval_ranks,
    skewness,
)
from logitkit.ops.rotary import rotary
from logitkit.ops.signs import straight_signs
from logitkit.ops.soft_topk import soft_topk, soft_topk_threshold
from logitkit.ops.softmax import log_softmax, logsumexp, softmax
from logitkit.ops.spherical import SphericalOutput
from logitkit.ops.temperature import fit_temperature

__all__ = [
    "KernelWarning",
    "Labels",
    "Polynomial",
    "PolynomialInverse",
    "PolynomialRsqrt",
    "Signs",
    "SphericalOutput",
    "all_triplets",
    "attention",
    "average_precision",
    "balanced_clusters",
    "binary_matmul",
    "box_iou",
    "calibration_error",
    "check_batch",
    "check_features",
    "check_labels",
    "check_logits",
    "check_multilabel",
    "check_numbers",
    "check_positive",
    "check_reduction",
    "check_regression",
    "check_sequences",
    "comp_sum",
    "conditional_mutual_information",
    "decoupled_softmax",
    "draw_gumbel",
    "draw_normal",
    "draw_uniform",
    "fit_temperature",
    "forgetting",
    "group_rational",
    "hubness_skew",
    "incremental_accuracy",
    "info_nce",
    "k_occurrence",
    "labelled_nt_xent",
    "linear_attention",
    "linear_comp_sum",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_ldr",
    "linear_nkd",
    "log1mexp",
    "log_odds_against",
    "log_softmax",
    "logsumexp",
    "mine_negatives",
    "multi_similarity",
    "mutual_information",
    "next_token_labels",
    "nms",
    "nt_xent",
    "pack_signs",
    "random_views",
    "ranker_loss",
    "recall_at",
    "reduce",
    "retrieval_ranks",
    "retriever_loss",
    "rotary",
    "row_weights",
    "sigmoid_contrastive",
    "skewness",
    "soft_nms",
    "soft_topk",
    "soft_topk_threshold",
    "softmax",
    "straight_signs",
    "supervised_contrastive",
    "unpack_signs",
    "use",
    "values_visible",
    "weighted_contrastive",
]
