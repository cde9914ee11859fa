"""Last layers: drop-ins for `torch.nn.Linear(in_features, num_classes)`."""

from logitkit.heads.cosine import CosineHead
from logitkit.heads.cross import CrossHead
from logitkit.heads.dual import DualHead
from logitkit.heads.ebv import EBVHead, EBVQuality, ebv_quality, generate_ebv, welch_bound
from logitkit.heads.fourier import (
    FourierHead,
    autocorrelation,
    fourier_density,
    fourier_penalty,
    smoothness,
)
from logitkit.heads.fourier_regression import FourierRegressionHead
from logitkit.heads.histogram import HistogramHead, c51_project, hl_gauss_targets, two_hot_targets
from logitkit.heads.linear import LinearHead
from logitkit.heads.madacos import MadaCosHead, madacos_scale_and_margin
from logitkit.heads.naive_bayes import NaiveBayesHead, linear_eval_curve, two_regime_crossing
from logitkit.heads.normalized_softmax import NormalizedSoftmaxHead, NovelClassClassifier
from logitkit.heads.ordinal import (
    MultitaskOrdinalHead,
    OrdinalHead,
    ordinal_cross_entropy,
    ordinal_log_softmax,
    ranked_probability_score,
)
from logitkit.heads.semantic import SemanticHead, hashed_text, text_targets
from logitkit.heads.soft_token import SoftTokenHead
from logitkit.heads.sparse_cbm import SparseCBMHead
from logitkit.heads.topk_moe import TopKMoEHead

__all__ = [
    "CosineHead",
    "CrossHead",
    "DualHead",
    "EBVHead",
    "EBVQuality",
    "FourierHead",
    "FourierRegressionHead",
    "HistogramHead",
    "LinearHead",
    "MadaCosHead",
    "MultitaskOrdinalHead",
    "NaiveBayesHead",
    "NormalizedSoftmaxHead",
    "NovelClassClassifier",
    "OrdinalHead",
    "SemanticHead",
    "SoftTokenHead",
    "SparseCBMHead",
    "TopKMoEHead",
    "autocorrelation",
    "c51_project",
    "ebv_quality",
    "fourier_density",
    "fourier_penalty",
    "generate_ebv",
    "hashed_text",
    "hl_gauss_targets",
    "linear_eval_curve",
    "madacos_scale_and_margin",
    "ordinal_cross_entropy",
    "ordinal_log_softmax",
    "ranked_probability_score",
    "smoothness",
    "text_targets",
    "two_hot_targets",
    "two_regime_crossing",
    "welch_bound",
]
