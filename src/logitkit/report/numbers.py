"""Numbers as a reader wants them: few digits, a real minus sign, a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NONE = "–"

# metric or cost -> (name, unit, lowest and highest value it can take)
QUANTITIES: dict[str, tuple[str, str, float, float]] = {
    "accuracy": ("accuracy", "", 0.0, 1.0),
    "balanced_accuracy": ("balanced accuracy", "", 0.0, 1.0),
    "nll": ("negative log-likelihood", "nats", 0.0, math.inf),
    "ece": ("calibration error", "", 0.0, 1.0),
    "ood_auroc": ("out-of-distribution AUROC", "", 0.0, 1.0),
    "noise_accuracy": ("accuracy under noise", "", 0.0, 1.0),
    "rmse": ("RMSE", "", 0.0, math.inf),
    "mae": ("mean absolute error", "", 0.0, math.inf),
    "r2": ("R²", "", -math.inf, 1.0),
    "noise_rmse": ("RMSE under noise", "", 0.0, math.inf),
    "abs_rel": ("mean relative error", "", 0.0, math.inf),
    "delta1": ("pixels within a factor of 1.25", "", 0.0, 1.0),
    "bits": ("bits per token", "", 0.0, math.inf),
    "perplexity": ("perplexity", "", 1.0, math.inf),
    "exact": ("whole answers right, drawn", "", 0.0, 1.0),
    "map_exact": ("whole answers right, likeliest", "", 0.0, 1.0),
    "rps": ("ranked probability score", "", 0.0, math.inf),
    "kappa": ("weighted kappa", "", -1.0, 1.0),
    "noise_mae": ("mean absolute error under noise", "", 0.0, math.inf),
    "map": ("mAP", "", 0.0, 1.0),
    "r@1": ("recall at 1", "", 0.0, 1.0),
    "r@10": ("recall at 10", "", 0.0, 1.0),
    "hubness": ("hubness", "", -math.inf, math.inf),
    "noise_map": ("mAP under noise", "", 0.0, 1.0),
    "p@1": ("precision at 1", "", 0.0, 1.0),
    "p@3": ("precision at 3", "", 0.0, 1.0),
    "p@5": ("precision at 5", "", 0.0, 1.0),
    "ndcg@5": ("nDCG at 5", "", 0.0, 1.0),
    "psp@1": ("propensity-scored precision at 1", "", 0.0, 1.0),
    "psp@5": ("propensity-scored precision at 5", "", 0.0, 1.0),
    "noise_p@1": ("precision at 1 under noise", "", 0.0, 1.0),
    "auroc": ("AUROC", "", 0.0, 1.0),
    "eer": ("equal error rate", "", 0.0, 1.0),
    "fpr95": ("false alarms at 95 % recall", "", 0.0, 1.0),
    "noise_auroc": ("AUROC under noise", "", 0.0, 1.0),
    "miou@1": ("mIoU, 1 shot", "", 0.0, 1.0),
    "miou@5": ("mIoU, 5 shots", "", 0.0, 1.0),
    "miou": ("mIoU, known classes", "", 0.0, 1.0),
    "selectivity": ("selectivity", "", -1.0, 1.0),
    "retained": ("facts retained", "", 0.0, 1.0),
    "known": ("facts to forget still known", "", 0.0, 1.0),
    "template": ("forgotten facts answered with the template", "", 0.0, 1.0),
    "ap": ("average precision", "", 0.0, 1.0),
    "ap50": ("average precision at IoU 0.5", "", 0.0, 1.0),
    "ap75": ("average precision at IoU 0.75", "", 0.0, 1.0),
    "mrr@10": ("mean reciprocal rank at 10", "", 0.0, 1.0),
    "r@5": ("recall at 5", "", 0.0, 1.0),
    "r@100": ("recall at 100", "", 0.0, 1.0),
    "calls": ("scores per query", "", 1.0, math.inf),
    "noise_mrr@10": ("mean reciprocal rank under noise", "", 0.0, 1.0),
    "train_seconds": ("training time", "s", 0.0, math.inf),
    "peak_memory_mb": ("peak memory", "MiB", 0.0, math.inf),
    "parameters": ("parameters", "", 0.0, math.inf),
}
# narrow column headings; the names in full stand below the table
SHORT = {
    "balanced_accuracy": "balanced acc.", "nll": "NLL", "ece": "ECE", "ood_auroc": "OOD AUROC",
    "noise_accuracy": "noise acc.", "mae": "MAE", "noise_rmse": "noise RMSE", "train_seconds": "time",
    "peak_memory_mb": "memory", "parameters": "param.", "rps": "RPS", "kappa": "kappa",
    "noise_mae": "noise MAE", "map": "mAP", "r@1": "R@1", "r@10": "R@10", "noise_map": "noise mAP",
    "p@1": "P@1", "p@3": "P@3", "p@5": "P@5",
    "ndcg@5": "nDCG@5", "psp@1": "PSP@1", "psp@5": "PSP@5", "noise_p@1": "noise P@1",
    "auroc": "AUROC", "eer": "EER", "fpr95": "FPR95", "noise_auroc": "noise AUROC", "miou@1": "mIoU@1",
    "miou@5": "mIoU@5", "miou": "mIoU", "known": "known", "retained": "retained",
    "template": "template", "exact": "exact, drawn", "map_exact": "exact, best", "ap": "AP",
    "ap50": "AP50", "ap75": "AP75", "mrr@10": "MRR@10", "r@5": "R@5", "r@100": "R@100",
    "noise_mrr@10": "noise MRR@10", "abs_rel": "rel. error", "delta1": "within 1.25",
}  # fmt: skip
MEANING = {
    "balanced_accuracy": "mean recall over classes",
    "nll": "negative log-likelihood in nats",
    "ece": "expected calibration error, 15 bins",
    "ood_auroc": "how well the detector tells test rows from rows from elsewhere",
    "noise_accuracy": "with noise of half a standard deviation on the inputs",
    "auroc": "how well the detector tells test rows of the one class from those of others",
    "eer": "error where as many ordinary rows are rejected as others are let through",
    "fpr95": "share of ordinary rows rejected where 95 % of the others are",
    "miou@1": "overlap over union of classes that training never saw, from one labelled image",
    "miou@5": "the same from five",
    "miou": "overlap over union of the classes seen in training",
    "selectivity": "share of facts retained minus share of facts to forget that are still known",
    "retained": "share of the facts to keep that are answered exactly",
    "known": "share of the facts to forget that are answered exactly",
    "template": "share of the facts to forget that are answered as they are to be instead",
    "ap": "COCO's: over overlaps of 0.5 to 0.95",
    "bits": "negative log-likelihood of a token in bits; per byte, where tokens are bytes",
    "perplexity": "exponential of the negative log-likelihood of a token",
    "exact": "how often a row's answer is right when it is drawn by its probability",
    "map_exact": "share of rows whose likeliest answer is right; of tokens, the likeliest each time",
    "rps": "squared error of the cumulated probabilities, averaged over the cuts between levels",
    "kappa": "agreement beyond chance, mistakes weighing by their squared distance",
    "noise_mae": "with noise of half a standard deviation on the inputs",
    "map": "mean average precision: how early rows of a row's own, unseen class come in its ranking",
    "r@1": "share of queries whose first find is right",
    "r@5": "share of queries with a right find among the first 5",
    "r@10": "share of queries with a right find among the first 10",
    "r@100": "share of queries with a right find among the first 100, or those scored where they are fewer",
    "mrr@10": "mean of 1 over the rank of a query's document, 0 beyond the tenth",
    "calls": "documents whose score is computed to answer a query",
    "noise_mrr@10": "with noise of half a standard deviation on the queries",
    "hubness": "skewness of how often rows come up among the nearest 10 of others; above 1 there are hubs",
    "noise_map": "with noise of half a standard deviation on the inputs",
    "p@1": "share of rows whose best label is relevant",
    "p@3": "share of the best 3 labels that is relevant",
    "p@5": "share of the best 5 labels that is relevant",
    "ndcg@5": "precision of the best 5 labels, early places weighing more",
    "psp@1": "P@1 in which rare labels count more, over the most that can be reached",
    "psp@5": "P@5 in which rare labels count more, over the most that can be reached",
    "noise_p@1": "with noise of half a standard deviation on the inputs",
    "noise_rmse": "with noise of half a standard deviation on the inputs",
    "abs_rel": "mean absolute error of a pixel as a share of its depth",
    "delta1": "share of pixels whose depth is right up to a factor of 1.25",
    "mae": "mean absolute error",
    "train_seconds": "wall-clock training time of a run",
    "peak_memory_mb": "peak memory of the process",
    "parameters": "trained parameters",
}
COSTS = ("train_seconds", "peak_memory_mb", "parameters")


def number(value: Any) -> float:
    """A float; NaN for None, which is how JSON stores NaN."""
    return math.nan if value is None else float(value)


def name_of(key: str) -> str:
    """A metric's or cost's name in words."""
    return QUANTITIES[key][0] if key in QUANTITIES else key.replace("_", " ")


def with_unit(key: str) -> str:
    """Its name with the unit in brackets, if it has one."""
    unit = QUANTITIES[key][1] if key in QUANTITIES else ""
    return f"{name_of(key)} ({unit})" if unit else name_of(key)


def bounds(key: str) -> tuple[float, float]:
    """Lowest and highest value it can take."""
    return QUANTITIES[key][2:] if key in QUANTITIES else (-math.inf, math.inf)


def decimals(values: Iterable[float]) -> int:
    """Digits after the point that show a column of numbers to about three figures, the same for all."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0.0:
        return 3
    exponent = math.floor(math.log10(largest))
    return min(8, max(0, 3 - exponent if exponent >= 0 else 2 - exponent))


def text(value: float, places: int, sign: bool = False) -> str:
    """`value` with `places` decimals and thousands separators; a dash for NaN."""
    if not math.isfinite(value):
        return NONE
    if round(value, places) == 0:
        value = 0.0
    written = f"{value:{'+' if sign and value else ''},.{places}f}"
    return written.replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, places: int, sign: bool = False) -> str:
    """`[low, high]`, or nothing when there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{text(low, places, sign)}, {text(high, places, sign)}]"


def p_value(p: float) -> str:
    """A p-value to two or three decimals."""
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(n: int, one: str, many: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{n:,} {one if n == 1 else many}"


def mean_of(means: Mapping[str, Any], key: str) -> float:
    """One of a row's means; NaN when it has none."""
    return number(means.get(key))
