"""RePRI: few-shot segmentation by a tiny classifier fitted to the support and to the query's statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops import check_positive, values_visible
from logitkit.ops.sphere import unit
from logitkit.registry import Real, Whole, part

IGNORE = 255
TINY = 1e-10


class Adapted(NamedTuple):
    """The classifiers of the tasks, the proportion of foreground they were drawn to, and the loss of each
    task before each update."""

    prototype: Float[Tensor, "tasks channels"]
    bias: Float[Tensor, " tasks"]
    proportion: Float[Tensor, " tasks"]
    trace: Float[Tensor, "updates tasks"]


def foreground_cosines(
    features: Float[Tensor, "tasks shots channels h w"], prototype: Float[Tensor, "tasks channels"]
) -> Float[Tensor, "tasks shots h w"]:
    """Cosine of every pixel's features, which have length 1, with the task's prototype."""
    return torch.einsum("nkchw,nc->nkhw", features, unit(prototype))


def support_cross_entropy(
    logits: Float[Tensor, "tasks shots h w"], masks: Int[Tensor, "tasks shots h w"]
) -> Float[Tensor, " tasks"]:
    """Mean over the labelled pixels of the binary cross-entropy of foreground (1) against the rest."""
    valid = masks != IGNORE
    losses = F.binary_cross_entropy_with_logits(logits, (masks == 1).to(logits), reduction="none")
    return (losses * valid).sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp(min=1)


def proportion_kl(
    logits: Float[Tensor, "tasks shots h w"], proportion: Float[Tensor, " tasks"]
) -> Float[Tensor, " tasks"]:
    """KL of the mean posterior (background, foreground) from the assumed proportion of foreground."""
    mean = torch.sigmoid(logits).mean(dim=(1, 2, 3))
    found = torch.stack([1 - mean, mean]).clamp(min=TINY)
    assumed = torch.stack([1 - proportion, proportion]).clamp(min=TINY)
    return (found * (found.log() - assumed.log())).sum(dim=0)


def pixel_entropy(logits: Float[Tensor, "tasks shots h w"]) -> Float[Tensor, " tasks"]:
    """Mean over pixels of the entropy of their posterior, in nats."""
    p = torch.sigmoid(logits)
    return (p * F.softplus(-logits) + (1 - p) * F.softplus(logits)).mean(dim=(1, 2, 3))


@part(
    "repri",
    "adapt",
    title="Few-Shot Segmentation Without Meta-Learning: A Good Transductive Inference Is All You Need?",
    paper="arXiv:2012.06166",
    number=18,
    tasks=("segmentation",),
    search_space={"lr": Real(0.005, 0.1, log=True), "iterations": Whole(10, 100)},
)
class RePRI:
    """RePRI: segmenting a class that the network never saw, from one or a few labelled images.

    Equation: a pixel with features f is foreground with p = sigmoid(20 cos(w, f) - b). w starts as the mean
    of the support's foreground features, b as the mean of 20 cos(w, f) over the query. SGD on (w, b) of each
    task minimises CE(support) + l_KL KL(phat || pi) + l_H H, phat the mean posterior over the query's pixels
    and H the mean entropy of these, l_KL = l_H = 1 / shots. pi is phat at the start; after update 9 it is
    taken anew and l_KL grows by 1.

    Shapes: `segment(support, masks, query)` takes features (tasks, shots, channels, h, w) and
    (tasks, channels, h, w) of a frozen network, and masks (tasks, shots, height, width) of 0, 1 and 255
    (ignored); returns foreground probabilities (tasks, height, width). Tasks do not influence each other.
    `adapt` returns the classifiers. Features are normalised; masks go to their size by the nearest pixel,
    logits to the masks' bilinearly.

    Defaults: temperature 20, lr 0.025, 50 iterations (the first is the start, so 49 updates) and a new pi at
    iteration 10, the authors'. weights = (CE, KL, entropy), None for 1 / shots. `proportion` (tasks,), where
    it is known, replaces pi (the paper's oracle).

    Raises: ValueError for shapes that do not fit, no foreground in a task's support, mask values other than
    0, 1, 255, a temperature or lr that is not positive, fewer than 1 iteration, NaN, or an empty batch.

    Source: Boudiaf, Kervadec, Ziko, Piantanida, Ben Ayed, Dolz, CVPR 2021, arXiv:2012.06166, section 3, and
    the authors' `classifier.py`.

    Not for: queries without the class, where it finds something all the same; features that do not tell the
    class from its surroundings.
    """

    def __init__(
        self,
        temperature: float = 20.0,
        lr: float = 0.025,
        iterations: int = 50,
        update_at: tuple[int, ...] = (10,),
        weights: tuple[float, float | None, float | None] = (1.0, None, None),
    ) -> None:
        check_positive(temperature=temperature, lr=lr, iterations=iterations)
        self.temperature = temperature
        self.lr = lr
        self.iterations = iterations
        self.update_at = tuple(update_at)
        self.weights = weights

    def adapt(
        self,
        support: Float[Tensor, "tasks shots channels h w"],
        masks: Int[Tensor, "tasks shots height width"],
        query: Float[Tensor, "tasks channels h w"],
        proportion: Float[Tensor, " tasks"] | None = None,
    ) -> Adapted:
        """Fit the classifier of every task."""
        _check(support, masks, query, proportion)
        f_s, f_q = unit(support.movedim(2, -1)), unit(query.movedim(1, -1))
        f_s, f_q = f_s.detach().movedim(-1, 2), f_q.detach().movedim(-1, 1)[:, None]
        small = F.interpolate(masks.float(), size=support.shape[-2:], mode="nearest").long()
        foreground = (small == 1)[:, :, None]
        count = foreground.sum(dim=(1, 2, 3, 4))
        if values_visible(count) and not bool((count > 0).all()):
            raise ValueError(
                f"the support of task {int(count.argmin())} has no foreground pixel (1) at the size of the "
                f"features, {tuple(support.shape[-2:])}."
            )
        w = (f_s * foreground).sum(dim=(1, 3, 4)) / count[:, None]
        b = self.temperature * foreground_cosines(f_q, w).mean(dim=(1, 2, 3))
        ce, kl, entropy = (1 / support.shape[1] if v is None else v for v in self.weights)
        known = proportion is not None
        pi = proportion.to(w) if proportion is not None else self._logits(f_q, w, b).sigmoid().mean((1, 2, 3))
        trace = []
        for iteration in range(2, self.iterations + 1):
            with torch.enable_grad(), torch.autocast(w.device.type, enabled=False):
                w, b = w.requires_grad_(), b.requires_grad_()
                q = self._logits(f_q, w, b)
                loss = ce * support_cross_entropy(self._logits(f_s, w, b), small)
                loss = loss + kl * proportion_kl(q, pi) + entropy * pixel_entropy(q)
                dw, db = torch.autograd.grad(loss.sum(), (w, b))
            w, b = w.detach() - self.lr * dw, b.detach() - self.lr * db
            trace.append(loss.detach())
            if iteration in self.update_at and not known and kl:
                pi = self._logits(f_q, w, b).sigmoid().mean(dim=(1, 2, 3))
                kl += 1
        return Adapted(w, b, pi, torch.stack(trace) if trace else w.new_zeros(0, len(w)))

    def segment(
        self,
        support: Float[Tensor, "tasks shots channels h w"],
        masks: Int[Tensor, "tasks shots height width"],
        query: Float[Tensor, "tasks channels h w"],
        proportion: Float[Tensor, " tasks"] | None = None,
    ) -> Float[Tensor, "tasks height width"]:
        """Foreground probabilities of the queries."""
        found = self.adapt(support, masks, query, proportion)
        f_q = unit(query.detach().movedim(1, -1)).movedim(-1, 1)[:, None]
        logits = self._logits(f_q, found.prototype, found.bias)
        return F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=True)[
            :, 0
        ].sigmoid()

    def _logits(self, features: Tensor, w: Tensor, b: Tensor) -> Float[Tensor, "tasks shots h w"]:
        return self.temperature * foreground_cosines(features, w) - b[:, None, None, None]


def _check(support: Tensor, masks: Tensor, query: Tensor, proportion: Tensor | None) -> None:
    """Raise ValueError unless the tasks fit together."""
    tasks, shots = support.shape[:2] if support.ndim == 5 else (0, 0)
    if support.ndim != 5 or support.numel() == 0:
        raise ValueError(
            f"support must have shape (tasks, shots, channels, h, w), none empty, got {tuple(support.shape)}."
        )
    if query.shape != (tasks, *support.shape[2:]):
        raise ValueError(f"query must have shape {(tasks, *support.shape[2:])}, got {tuple(query.shape)}.")
    if masks.ndim != 4 or masks.shape[:2] != (tasks, shots):
        raise ValueError(
            f"masks must have shape ({tasks}, {shots}, height, width), got {tuple(masks.shape)}."
        )
    if masks.is_floating_point() or not (support.is_floating_point() and query.is_floating_point()):
        raise ValueError(
            f"features must be floating point and masks integers, got {support.dtype}, {query.dtype} and "
            f"{masks.dtype}."
        )
    if proportion is not None and proportion.shape != (tasks,):
        raise ValueError(f"proportion must have shape ({tasks},), got {tuple(proportion.shape)}.")
    if values_visible(support):
        if bool(support.detach().amin().isnan() | query.detach().amin().isnan()):
            raise ValueError("features contain NaN; expected numbers.")
        if not bool(((masks == 0) | (masks == 1) | (masks == IGNORE)).all()):
            raise ValueError(f"masks must hold 0, 1 and {IGNORE}, got {masks.unique().tolist()}.")
