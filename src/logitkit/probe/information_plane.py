"""The information plane of Shwartz-Ziv and Tishby: fixed bins, the bound that no layer can pass, and the
signal and the noise of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.ops import check_positive
from logitkit.probe.base import Known, check_layer, of_codes
from logitkit.registry import part


@part(
    "information_plane",
    "probe",
    title="Opening the Black Box of Deep Neural Networks via Information",
    paper="arXiv:1703.00810",
    number=182,
    aliases=("fixed_bins",),
)
class FixedBins:
    """Information of a layer whose units are cut into equal bins: for saturating activations, of which the
    range is known. `probe.InformationPlane` follows layers with it through training.

    Equation: I(X; T) = H(T), I(T; Y) = H(T) + H(Y) - H(T, Y), in bits, T the vector of bins of a row's units:
    `bins` of equal width in [low, high].

    Shapes: t (rows, *layer), y (rows,) integer labels or None; returns `Known(input, label)`. x is not looked
    at, as T is a function of X.

    Defaults: 30 bins of [-1, 1], the range of tanh, as in the paper.

    Raises: ValueError for values outside the range (they are not clipped: use `EBAB` for layers without a
    bound), wrong shapes or dtypes, NaN, fewer than 1 bin, or a range that is none.

    Source: Shwartz-Ziv, Tishby, arXiv:1703.00810. `ib_curve` iterates the equations of Tishby,
    Pereira, Bialek, arXiv:physics/0004057.

    Not for: comparing activations with each other: what falls under fixed bins is that units saturate. Nor
    for subsampled inputs: H(T) of n rows is at most log2 n.
    """

    def __init__(self, bins: int = 30, low: float = -1.0, high: float = 1.0) -> None:
        check_positive(bins=bins)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}.")
        self.bins, self.low, self.high = bins, low, high

    def __call__(
        self, t: Float[Tensor, " rows *layer"], y: Int[Tensor, " rows"] | None = None, x: Tensor | None = None
    ) -> Known:
        t, y = check_layer(t, y)
        if float(t.amin()) < self.low or float(t.amax()) > self.high:
            raise ValueError(
                f"t must lie in [{self.low}, {self.high}], got {float(t.amin()):.4g} to"
                f" {float(t.amax()):.4g}: EBAB has bins that fit themselves to the layer."
            )
        share = (t.double() - self.low) / (self.high - self.low)
        return of_codes((share * self.bins).long().clamp_(max=self.bins - 1), y)


def ib_curve(
    joint: Float[Tensor, "x y"], betas: Sequence[float], iterations: int = 2000
) -> Float[Tensor, "betas 2"]:
    """I(X; T) and I(T; Y) in bits of the best T at each beta, which minimises I(X; T) - beta I(T; Y): the
    bound that no layer passes.

    joint: p(x, y), which sums to 1. betas: any order; they are taken from the largest to the smallest, from T
    = X on, each from where the one before ended, as the equations have many fixed points. T takes as many
    values as X. Float64; each beta ends when p(t|x) moves by less than 1e-12, or after `iterations`.
    """
    if joint.ndim != 2 or not joint.is_floating_point() or not bool((joint >= 0).all()):
        raise ValueError(
            f"joint must be p(x, y), two-dimensional and not negative, got {tuple(joint.shape)}."
        )
    p = joint.double()
    if abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError(f"joint must sum to 1, got {float(p.sum()):.6g}.")
    check_positive(**{f"betas[{k}]": b for k, b in enumerate(betas)})
    p = p[p.sum(1) > 0]
    px = p.sum(1)
    given = p / px[:, None]
    code = torch.eye(len(p), dtype=torch.float64)  # p(t|x), (x, t)
    found = torch.empty(len(betas), 2, dtype=torch.float64)
    for k in sorted(range(len(betas)), key=lambda k: -betas[k]):
        for _ in range(iterations):
            pt = px @ code
            labels = (code * px[:, None]).mT @ given / pt.clamp_min(_TINY)[:, None]  # p(y|t)
            divergence = torch.xlogy(given, given).sum(1)[:, None] - given @ labels.clamp_min(_TINY).log().mT
            new = (pt.clamp_min(_TINY).log() - betas[k] * divergence).softmax(1)
            moved = float((new - code).abs().max())
            code = new
            if moved < 1e-12:
                break
        pt = px @ code
        found[k, 0] = _information(code * px[:, None])
        found[k, 1] = _information((code * px[:, None]).mT @ given)
    return found


_TINY = 1e-300


def _information(joint: Tensor) -> Tensor:
    """Mutual information in bits of a joint distribution."""
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum() / math.log(2)


def gradient_snr(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, float]:
    """The norm of the mean gradient over that of its standard deviation, of every module with parameters of
    its own: above 1 training drifts, far below it diffuses.

    batches: at least two pairs of inputs and targets. loss(model(x), y) is a scalar. The model and the
    gradients it holds stay as they are.
    """
    owners = {
        name: [p for p in m.parameters(recurse=False) if p.requires_grad] for name, m in model.named_modules()
    }
    owners = {name: own for name, own in owners.items() if own}
    every = [p for own in owners.values() for p in own]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in every]
    squares = [torch.zeros_like(p, dtype=torch.float64) for p in every]
    count = 0
    for x, y in batches:
        count += 1
        for g, s, q in zip(torch.autograd.grad(loss(model(x), y), every), total, squares, strict=True):
            s += g
            q += g.double().square()
    if count < 2:
        raise ValueError(f"batches must hold at least two, got {count}.")
    means = iter([s / count for s in total])
    second = iter([q / count for q in squares])
    found = {}
    for name, own in owners.items():
        signal = noise = 0.0
        for _ in own:
            mean, square = next(means), next(second)
            signal += float(mean.square().sum())
            noise += float((square - mean.square()).clamp_min(0).sum()) * count / (count - 1)
        found[name] = math.sqrt(signal / noise) if noise > 0 else math.inf
    return found
