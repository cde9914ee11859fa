"""Numbers that judge a prediction. Thin over torchmetrics, which is imported when first used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from logitkit.data.base import IGNORE, following
from logitkit.detect.hyp_oc import equal_error_rate
from logitkit.errors import InputError
from logitkit.heads import ranked_probability_score
from logitkit.ops import calibration_error, skewness
from logitkit.ops.detection import THRESHOLDS, average_precision
from logitkit.ops.sphere import cosine

BINS = 15
# Queries whose similarities to everything are held at once.
QUERIES = 1024
# Documents that a search returns.
LIST = 100
# Sequences whose scores for every token are held at once.
SEQUENCES = 64
# Of few-shot segmentation: tasks, labelled images in each, and the share of an image that shows its class.
EPISODES, SHOTS, LEAST = 100, (1, 5), 0.01
# The ratio of a depth to the true one that still counts as right, as is usual.
NEAR = 1.25


def classification(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, mean recall over the classes present, negative log-likelihood in nats, and expected
    calibration error (15 bins of equal width) of (batch, classes) probabilities."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    right = (predicted == y).double()
    counts = torch.bincount(y, minlength=classes).double()
    recall = torch.bincount(y, weights=right, minlength=classes) / counts
    tiny = torch.finfo(probabilities.dtype).tiny
    return {
        "accuracy": right.mean().item(),
        "balanced_accuracy": recall[counts > 0].mean().item(),
        "nll": -probabilities.gather(1, y[:, None]).clamp(min=tiny).double().log().mean().item(),
        "ece": calibration_error(probabilities, y, bins=BINS),
    }


def regression(predictions: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean squared error and mean absolute error in units of y, and the share of variance explained."""
    error = (predictions - y).double()
    variance = (y - y.mean()).double().square().mean()
    return {
        "rmse": error.square().mean().sqrt().item(),
        "mae": error.abs().mean().item(),
        "r2": 1.0 - (error.square().mean() / variance.clamp(min=1e-300)).item(),
    }


def depth(predictions: Tensor, y: Tensor) -> dict[str, float]:
    """Of maps (images, h, w), over all pixels whose depth y is known (not NaN): root mean squared error in
    units of y, mean |prediction - y| / y, and the share whose ratio to y lies between 1 / 1.25 and 1.25."""
    known = ~y.isnan()
    found, truth = predictions[known].double(), y[known].double()
    near = (found * NEAR > truth) & (found < truth * NEAR)
    return {
        "rmse": (found - truth).square().mean().sqrt().item(),
        "abs_rel": ((found - truth).abs() / truth).mean().item(),
        "delta1": near.double().mean().item(),
    }


def ordinal(probabilities: Tensor, y: Tensor) -> dict[str, float]:
    """For (batch, levels) probabilities of levels in order: the mean number of levels between y and the
    distribution's median, the ranked probability score (see `heads.ranked_probability_score`), quadratically
    weighted kappa of the median, accuracy of the most probable level, and negative log-likelihood."""
    levels = probabilities.shape[1]
    below = probabilities.double().cumsum(1)
    median = (below < 0.5).sum(1).clamp(max=levels - 1)
    apart = (median - y).double()
    counts = [torch.bincount(each, minlength=levels).double() / len(y) for each in (median, y)]
    distance = (torch.arange(levels)[:, None] - torch.arange(levels)).double().square()
    by_chance = float(counts[0] @ distance @ counts[1])
    tiny = torch.finfo(probabilities.dtype).tiny
    return {
        "mae": apart.abs().mean().item(),
        "rps": ranked_probability_score(probabilities.double(), y).mean().item(),
        "kappa": 1.0 - apart.square().mean().item() / by_chance if by_chance > 0 else 1.0,
        "accuracy": (probabilities.argmax(1) == y).double().mean().item(),
        "nll": -probabilities.gather(1, y[:, None]).clamp(min=tiny).double().log().mean().item(),
    }


def retrieval(
    embeddings: Tensor, y: Tensor, normaliser: Callable[[Tensor], Tensor] = lambda similarities: similarities
) -> dict[str, float]:
    """Each row queries all others by the cosine of (batch, d) embeddings; those of its class are relevant.
    Rows are ranked by what `normaliser` makes of cosines (queries, batch), -inf to the query itself.

    map is the mean over queries of their average precision, r@k the share with a relevant row among the k
    nearest, hubness the skewness of 10-occurrences. Rows alone in their class are no queries.
    """
    rows, found = torch.arange(len(y)), torch.zeros(3, dtype=torch.float64)
    occurrence, queries = torch.zeros(len(y), dtype=torch.long), 0
    for some in rows.split(QUERIES):
        similarity = cosine(embeddings[some], embeddings)
        similarity[torch.arange(len(some)), some] = -math.inf
        order = normaliser(similarity).argsort(dim=1, descending=True)[:, :-1]
        occurrence += order[:, :10].flatten().bincount(minlength=len(y))
        relevant = y[order] == y[some, None]
        relevant = relevant[relevant.any(1)].double()
        precision = relevant.cumsum(1) / rows[1:]
        average = (precision * relevant).sum(1) / relevant.sum(1)
        found += torch.stack([average.sum(), relevant[:, 0].sum(), relevant[:, :10].amax(1).sum()])
        queries += len(relevant)
    named = zip(("map", "r@1", "r@10"), (found / max(queries, 1)).tolist(), strict=True)
    return {**dict(named), "hubness": skewness(occurrence)}


def search(network: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """How early the one document y that answers a query comes among those that `network.find` finds.

    mrr@10 is the mean over queries of 1 / rank, 0 beyond the tenth, r@k the share that is among the first k.
    Of documents with equal scores, the wrong ones come first. calls are the scores of documents per query.
    """
    ranks, calls = [], 0
    for some, right in zip(x.split(QUERIES), y.split(QUERIES), strict=True):
        found = network.find(some, LIST)
        hit = found.items == right[:, None]
        score = torch.where(hit, found.scores, math.inf).amin(dim=1, keepdim=True)
        ranks.append(torch.where(hit.any(dim=1), (found.scores >= score).sum(dim=1), LIST + 1))
        calls = found.calls
    rank = torch.cat(ranks)
    found_at = {f"r@{k}": (rank <= k).double().mean().item() for k in (1, 5, LIST)}
    mrr = torch.where(rank <= 10, 1 / rank.double(), 0.0).mean().item()
    return {"mrr@10": mrr, **found_at, "calls": float(calls)}


# Of the propensity model (Jain, Prabhu, Varma, KDD 2016), for collections that have none of their own.
PROPENSITY_A, PROPENSITY_B = 0.55, 1.5


def multilabel(scores: Tensor, y: Tensor, train: Tensor | None = None) -> dict[str, float]:
    """How much of the top of each row's ranking is relevant.

    scores: (batch, labels); y: (batch, most) lists of relevant labels, filled up with -1.
    p@k is the share of the top k that is relevant, ndcg@k weighs places by 1 / log2(place + 1). With
    the training rows' `train` also psp@k, p@k with label l counting 1 + C (n_l + 1.5)^-0.55, n_l its
    training rows and C = (log n - 1) 2.5^0.55 of n rows in all, over the most that any ranking could reach.
    Rows without labels are left out.
    """
    batch, labels = scores.shape
    relevant = torch.zeros(batch, labels + 1, dtype=torch.bool)
    relevant.scatter_(1, torch.where(y < 0, labels, y), True)
    relevant = relevant[:, :labels]
    some = relevant.any(1)
    relevant, scores = relevant[some], scores[some]
    deep = min(5, labels)
    top = scores.topk(deep, 1).indices
    hit = relevant.gather(1, top).double()
    discount = 1 / torch.arange(2, deep + 2, dtype=torch.float64).log2()
    best = torch.where(torch.arange(deep) < relevant.sum(1, keepdim=True), discount, 0.0).sum(1)
    found = {f"p@{k}": hit[:, :k].sum(1).div(k).mean().item() for k in (1, 3, 5)}
    found["ndcg@5"] = ((hit * discount).sum(1) / best).mean().item()
    if train is None:
        return found
    counts = torch.bincount(train[train >= 0], minlength=labels).double()
    c = (math.log(len(train)) - 1) * (PROPENSITY_B + 1) ** PROPENSITY_A
    weight = 1 + c * (counts + PROPENSITY_B) ** -PROPENSITY_A
    gain, most = hit * weight[top], (relevant * weight).topk(deep, 1).values
    return found | {f"psp@{k}": (gain[:, :k].sum() / most[:, :k].sum()).item() for k in (1, 5)}


def one_class(ordinary: Tensor, other: Tensor) -> dict[str, float]:
    """How well scores (n,) and (m,), higher for what is not ordinary, tell the two apart: area under the ROC
    curve, the equal error rate, and the share of ordinary rows rejected where 95 % of the others are."""
    rejected = other.double().quantile(0.05)
    return {
        "auroc": auroc(ordinary, other),
        "eer": equal_error_rate(ordinary, other)[0],
        "fpr95": (ordinary >= rejected).double().mean().item(),
    }


def boxes(corners: Tensor, scores: Tensor, objects: Tensor) -> dict[str, float]:
    """COCO's average precision of boxes (images, n, 4) with scores (images, n), 0 for none, against objects
    (images, m, 4), zeros for none: over overlaps of 0.5 to 0.95, at 0.5, and at 0.75."""
    there = torch.where((objects != 0).any(-1), 0, -1)
    overlaps: dict[str, tuple[float, ...]] = {"ap": THRESHOLDS, "ap50": (0.5,), "ap75": (0.75,)}
    return {
        name: average_precision(corners, scores, objects, truth_classes=there, thresholds=each)
        for name, each in overlaps.items()
    }


@torch.no_grad()
def segmentation(network: Any, x: Tensor, y: Tensor, classes: int) -> float:
    """Mean over `classes` of intersection over union, each over all pixels of y (images, h, w). Pixels of
    further classes are left out, and classes that come up nowhere. The network's scores are enlarged
    bilinearly."""
    both, either = torch.zeros(2, classes, dtype=torch.float64)
    for some, truth in zip(x.split(SEQUENCES), y.split(SEQUENCES), strict=True):
        scores = network(some).view(len(some), *network.grid, classes).movedim(-1, 1)
        guess = resize(scores, truth.shape[-2:]).argmax(1)
        kept = truth < classes
        guess, truth = guess[kept], truth[kept]
        right = guess[guess == truth].bincount(minlength=classes)
        both += right
        either += guess.bincount(minlength=classes) + truth.bincount(minlength=classes) - right
    there = either > 0
    return (both[there] / either[there]).mean().item()


def few_shot(
    maps: Tensor, y: Tensor, seen: int, segment: Callable[..., Tensor], generator: torch.Generator
) -> dict[str, float]:
    """miou@k: of the classes of y (images, h, w) from `seen` on, mean intersection over union when k labelled
    images are known, each over all pixels of 100 tasks.

    A task is a class, and images that show it on at least 1 % of their pixels, all drawn at random: those
    known and one to segment, by `segment(features, masks, query)` of feature maps (images, d, h, w). Raises
    InputError if fewer than 6 images show a class.
    """
    shown = {}
    for k in range(seen, int(y.max()) + 1):
        shown[k] = ((y == k).flatten(1).double().mean(1) >= LEAST).nonzero().flatten()
        if len(shown[k]) <= max(SHOTS):
            raise InputError(
                f"{len(shown[k])} test images show class {k}, which training never sees, on at least 1 % of"
                f" their pixels; {max(SHOTS) + 1} are needed."
            )
    chosen = torch.randint(seen, int(y.max()) + 1, (EPISODES,), generator=generator)
    rows = torch.stack(
        [
            shown[k][torch.randperm(len(shown[k]), generator=generator)[: max(SHOTS) + 1]]
            for k in chosen.tolist()
        ]
    )
    truth = y[rows] == chosen[:, None, None, None]
    found = {}
    for shots in SHOTS:
        guess = segment(maps[rows[:, :shots]], truth[:, :shots].long(), maps[rows[:, -1]]) > 0.5
        both, either = (guess & truth[:, -1]).flatten(1).sum(1), (guess | truth[:, -1]).flatten(1).sum(1)
        each = [both[chosen == k].sum() / either[chosen == k].sum() for k in chosen.unique()]
        found[f"miou@{shots}"] = torch.stack(each).mean().item()
    return found


def resize(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps (images, classes, h, w) enlarged to `size`."""
    return torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def tokens(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
    """Over the tokens of y (batch, tokens) that are not `IGNORE`: mean negative log-likelihood in bits,
    its exponential as perplexity, and the share of tokens that are the most probable. Where some are
    `IGNORE`, so that rows have answers, over rows: the mean probability of all their tokens, which is how
    often one drawn at random is right (`exact`), and the share of rows all of whose tokens are the most
    probable (`map_exact`).

    The network's scores (batch * tokens, vocabulary) are made for a few sequences at a time.
    """
    nats, right, count, drawn, best = 0.0, 0, 0, 0.0, 0
    for some, labels in zip(x.split(SEQUENCES), y.split(SEQUENCES), strict=True):
        kept = labels != IGNORE
        scores, truth = network(some)[kept.flatten()], labels[kept]
        each = torch.nn.functional.cross_entropy(scores.double(), truth, reduction="none")
        hit = scores.argmax(1) == truth
        row, none = kept.nonzero()[:, 0], each.new_zeros(len(some))
        nats += each.sum().item()
        right += int(hit.sum())
        count += len(truth)
        drawn += none.index_add(0, row, each).neg().exp().sum().item()
        best += int((none.index_add(0, row, (~hit).double()) == 0).sum())
    nats /= max(count, 1)
    perplexity = math.exp(nats) if nats < 700 else math.inf
    found = {"bits": nats / math.log(2), "accuracy": right / max(count, 1), "perplexity": perplexity}
    if count < y.numel():
        found |= {"exact": drawn / max(len(y), 1), "map_exact": best / max(len(y), 1)}
    return found


def whole(probabilities: Tensor, right: Tensor) -> dict[str, float]:
    """`exact` and `map_exact` of probabilities (rows, candidates) of whole answers, `right` saying which
    is the reference, if any."""
    best = right.gather(1, probabilities.argmax(1, keepdim=True))
    return {"exact": (probabilities * right).sum(1).mean().item(), "map_exact": best.double().mean().item()}


@torch.no_grad()
def exact(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(batch,) bool: whether all tokens of y (batch, tokens) that are not `IGNORE` are the most probable."""
    right = []
    for some, labels in zip(x.split(SEQUENCES), y.split(SEQUENCES), strict=True):
        said = network(some).argmax(1).view(labels.shape)
        right.append(((said == labels) | (labels == IGNORE)).all(1))
    return torch.cat(right)


def unlearning(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
    """Shares of answers that are the most probable ones, y (batch, 2, tokens) being the answer of each row
    and what it is to be answered with instead, `IGNORE` for rows to keep: `retained` of the rows to keep,
    `known` of those to forget, `template` of the latter's other answer, and `selectivity`, retained -
    known."""
    answer, instead = y.unbind(1)
    marked = (instead != IGNORE).any(1)
    right = exact(network, x, answer).double()
    said = exact(network, following(x[marked], instead[marked]), instead[marked]).double()
    retained, known = right[~marked].mean().item(), right[marked].mean().item()
    return {
        "selectivity": retained - known, "retained": retained, "known": known, "template": said.mean().item()
    }  # fmt: skip


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an outside example scores higher than an inside one, ties counting half."""
    from torchmetrics.functional.classification import binary_auroc

    scores = torch.cat([inside, outside]).double()
    # torchmetrics passes anything outside [0, 1] through a sigmoid, which rounds large scores together;
    # ranks carry the same order without that.
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).long()
    return binary_auroc(ranks / max(ranks.max().item(), 1.0), labels).item()


def reliability(probabilities: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Mean confidence, accuracy and count in each of 15 equal bins of the top probability."""
    confidence, predicted = probabilities.double().max(1)
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    count = torch.bincount(bins, minlength=BINS).double()
    filled = count.clamp(min=1)
    return {
        "confidence": (torch.bincount(bins, weights=confidence, minlength=BINS) / filled).tolist(),
        "accuracy": (
            torch.bincount(bins, weights=(predicted == y).double(), minlength=BINS) / filled
        ).tolist(),
        "count": count.tolist(),
    }


def histogram(inside: Tensor, outside: Tensor, bins: int = 30) -> dict[str, Any]:
    """Counts of both score sets over common bins, from the 0.5th to the 99.5th percentile of all."""
    both = torch.cat([inside, outside]).double()
    low, high = (both.quantile(q).item() for q in (0.005, 0.995))
    high = high if high > low else low + 1.0
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)

    def counts(scores: Tensor) -> list[int]:
        return torch.histc(scores.double().clamp(low, high), bins, low, high).long().tolist()

    return {"edges": edges.tolist(), "inside": counts(inside), "outside": counts(outside)}
