"""Correctness-aware calibration: a temperature for each input, from what transformed copies of it score."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from logitkit.ops import check_batch, check_logits, check_positive
from logitkit.ops.fitted import Fitted
from logitkit.registry import Choice, Whole, part

COLDEST, HOTTEST = 0.1, 10.0
WEIGHTS = ("hidden_weight", "hidden_bias", "weight", "bias")


def ca_loss(
    confidence: Float[Tensor, " batch"], correct: Bool[Tensor, " batch"], balance: bool = True
) -> Float[Tensor, ""]:
    """Mean squared difference of confidence and correctness (1 or 0). With `balance`, examples that are right
    count 1 - r and those that are wrong r, r the share of right ones, so that both groups weigh the same;
    where all are right, or all wrong, they count as they are."""
    c = correct.to(confidence)
    squares = (confidence - c).square()
    r = c.mean()
    weight = torch.where(correct, 1 - r, r) if balance else torch.ones_like(c)
    weight = torch.where(weight.sum() > 0, weight, 1.0)
    return (weight * squares).sum() / weight.sum()


def view_features(
    logits: Float[Tensor, "batch classes"], views: Float[Tensor, "views batch classes"], topk: int
) -> Float[Tensor, "batch features"]:
    """What each view gives the `topk` classes that are likeliest in `logits`, one view after the other."""
    top = logits.topk(min(topk, logits.shape[1]), dim=1).indices
    scores = views.softmax(dim=-1).gather(-1, top.expand(len(views), -1, -1))
    return scores.transpose(0, 1).flatten(1)


def image_views(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "views batch *image"]:
    """Five versions of every image: itself, turned by 15 degrees either way, at half the contrast around each
    channel's mean, and blurred by a 3 x 3 mean. Borders repeat. Standardising channels before or after makes
    no difference."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "views are made of floating point images (batch, channels, height, width), got"
            f" {images.dtype} of shape {tuple(images.shape)}."
        )
    turned = []
    for degrees in (15.0, -15.0):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = images.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(turn, list(images.shape), align_corners=False)
        turned.append(F.grid_sample(images, grid, padding_mode="border", align_corners=False))
    mean = images.mean(dim=(2, 3), keepdim=True)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.stack([images, *turned, (images + mean) / 2, blurred])


@part(
    "correctness_aware",
    "calibrate",
    title="Optimizing Calibration by Gaining Aware of Prediction Correctness",
    paper="arXiv:2404.13016",
    number=3,
    replaces="temperature",
    aliases=("ca",),
    needs=("views",),
    search_space={"topk": Whole(2, 4), "balance": Choice(True, False)},
)
class CorrectnessAware(Fitted):
    """Correctness-aware calibration: confidence that drops where an image's prediction does not survive small
    changes, also on inputs unlike those it was fitted on. It never changes a prediction.

    Equation: p = softmax(z / T(v)), T = clamp(w . relu(A v + a) + b, 0.1, 10) with 5 hidden units. v holds,
    for each view of the input, the probabilities of the k classes that are likeliest in z. (A, a, w, b)
    minimise the mean of (max p - c)^2, c = 1 where argmax z is the label, else 0, with right examples
    weighted by the share of wrong ones and the other way round (`balance`).

    Shapes: `fit(logits, y, views=...)` with logits (batch, classes), labels (batch,) and views (views, batch,
    classes), the logits of transformed copies of the same inputs; `transform(logits, views=...)` ->
    probabilities (batch, classes), in at least float32; `temperature(logits, views)` -> (batch,). The engine
    makes the views of images with `make_views`, which is `image_views`.

    Defaults: k = 4 and 5 hidden units, the authors'. Their Adam at 1e-4 for 10 epochs of batches of 1000 is
    made for 25 000 validation images or more and would move nothing on a few hundred; here Adam takes `steps`
    = 1000 steps at `lr` = 0.01 on all rows at once, from weights drawn from `seed` with T near 1, in float64.

    Raises: ValueError for settings that are not positive, wrong shapes or dtypes, views of another number,
    batch or classes, NaN, labels out of range, an empty batch, or use before `fit`.

    Source: Liu et al., arXiv:2404.13016, section 3; the network, k and the weights from the authors' code,
    which lets the choice of views depend on the data and does not count the input itself among them.

    Not for: the rows the network was trained on, where all is right; inputs without meaningful views; data
    like those of `fit`, where `balance` makes a confidence that half are right, too low if most are.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        topk: int = 4,
        hidden: int = 5,
        balance: bool = True,
        lr: float = 0.01,
        steps: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(topk=topk, hidden=hidden, lr=lr, steps=steps)
        self.topk = topk
        self.hidden = hidden
        self.balance = balance
        self.lr = lr
        self.steps = steps
        self.seed = seed
        for name in WEIGHTS:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    @staticmethod
    def make_views(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "views batch ..."]:
        """What the engine passes through the network to get `views`."""
        return image_views(images)

    def fit(
        self,
        logits: Float[Tensor, "batch classes"],
        y: Int[Tensor, " batch"],
        views: Float[Tensor, "views batch classes"],
    ) -> CorrectnessAware:
        """Fit the temperature on held-out logits, labels and views; returns self."""
        logits, y = check_batch(logits.detach(), y)
        z, v = logits.double(), self._features(logits, views.detach())
        correct = z.argmax(dim=1) == y
        weights = self._initial(v)
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        with torch.inference_mode(False), torch.enable_grad():
            z, v = z.clone(), v.clone()
            for _ in range(self.steps):
                optimizer.zero_grad()
                scaled = z / _temperature(v, *weights)[:, None]
                ca_loss(scaled.softmax(dim=1).amax(dim=1), correct, self.balance).backward()
                optimizer.step()
        for name, value in zip(WEIGHTS, weights, strict=True):
            setattr(self, name, value.detach())
        return self

    def temperature(
        self, logits: Float[Tensor, "batch classes"], views: Float[Tensor, "views batch classes"]
    ) -> Float[Tensor, " batch"]:
        """T of every input, in [0.1, 10]."""
        logits = check_logits(logits)
        if not self.weight.numel():
            raise ValueError(f"correctness_aware must be fitted before it sees logits {tuple(logits.shape)}.")
        v = self._features(logits, views)
        if v.shape[1] != self.hidden_weight.shape[1]:
            raise ValueError(
                f"views must give {self.hidden_weight.shape[1]} numbers an input as in fit, got {v.shape[1]}"
                f" from views {tuple(views.shape)}."
            )
        return _temperature(v, *(getattr(self, name) for name in WEIGHTS)).to(logits.dtype)

    def transform(
        self, logits: Float[Tensor, "batch classes"], views: Float[Tensor, "views batch classes"]
    ) -> Float[Tensor, "batch classes"]:
        """Calibrated probabilities."""
        t = self.temperature(logits, views)
        return torch.softmax(check_logits(logits) / t[:, None], dim=-1)

    def _features(self, logits: Tensor, views: Tensor) -> Float[Tensor, "batch features"]:
        if views.ndim != 3 or views.shape[1:] != logits.shape or not len(views):
            raise ValueError(
                f"views must have shape (views, {logits.shape[0]}, {logits.shape[1]}) to match the logits,"
                f" got {tuple(views.shape)}."
            )
        check_logits(views.flatten(0, 1), "views")
        return view_features(logits.double(), views.double(), self.topk)

    def _initial(self, v: Tensor) -> list[Tensor]:
        """Weights as those of `nn.Linear`, but for a last bias of 1."""
        generator = torch.Generator().manual_seed(self.seed)

        def uniform(*shape: int, fan: int) -> Tensor:
            drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
            return ((2 * drawn - 1) / math.sqrt(fan)).to(v.device).requires_grad_()

        inputs = v.shape[1]
        with torch.inference_mode(False):
            return [
                uniform(self.hidden, inputs, fan=inputs),
                uniform(self.hidden, fan=inputs),
                uniform(self.hidden, fan=self.hidden),
                torch.ones((), dtype=torch.float64, device=v.device).requires_grad_(),
            ]


def _temperature(
    v: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor
) -> Float[Tensor, " batch"]:
    hidden = (v @ hidden_weight.T + hidden_bias).relu()
    return (hidden @ weight + bias).clamp(COLDEST, HOTTEST)
