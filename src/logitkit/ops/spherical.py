"""An output layer over very many classes whose exact SGD step does not touch most of its weights.

A loss of the spherical family sees the outputs o = W h only through the target's output, the sum and the sum
of squares. With Q = W'W and the column sums kept, loss and gradient need O(d^2); the gradient of W has the
form W (d x d matrix) + 1 (row) + (target rows), so a step changes a factor shared by all rows and m rows of
its own (Vincent, de Brebisson, Bouthillier, arXiv:1412.7091).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops.checks import check_features, check_labels, check_positive, values_visible
from logitkit.ops.dispatch import untraced
from logitkit.ops.gemm import fast_products

LOSSES = ("squared", "taylor_softmax", "z_loss")
# How far the shared factor may amplify the rounding of the rows before it is multiplied into them.
GROWTH = 8.0
# How far its entries may leave 1: the rows grow as it shrinks.
SCALE = 1e6
# Steps after which Q is made anew from the rows, and how far steps that stretch some direction may have
# amplified the difference between the two before that is done at once.
REFRESH = 8192
DRIFT = 100.0
# Rows that are multiplied at once.
CHUNK = 8192
SIGMA_MIN = 1e-6

# Loss per example and the scalars a, b, c of its derivative a o + b 1 + c e_y, from o_y, sum o and sum o^2.
Terms = tuple[Tensor, Tensor, Tensor, Tensor]


def squared(o: Tensor, total: Tensor, square: Tensor, classes: int) -> Terms:
    """|o - e_y|^2."""
    return square - 2 * o + 1, torch.full_like(o, 2.0), torch.zeros_like(o), torch.full_like(o, -2.0)


def taylor_softmax(o: Tensor, total: Tensor, square: Tensor, classes: int) -> Terms:
    """-log t(o_y) / sum_k t(o_k), t(x) = 1 + x + x^2 / 2."""
    mass = classes + total + square / 2
    own = 1 + o + o**2 / 2
    return mass.log() - own.log(), 1 / mass, 1 / mass, -(1 + o) / own


def z_loss(o: Tensor, total: Tensor, square: Tensor, classes: int, a: float, b: float) -> Terms:
    """softplus(a (b - z)) / a, z = (o_y - mean) / deviation."""
    mean = total / classes
    variance = square / classes - mean**2
    free = variance > SIGMA_MIN**2  # held at its least, the deviation is a constant
    deviation = variance.clamp(min=SIGMA_MIN**2).sqrt()
    z = (o - mean) / deviation
    slope = -torch.sigmoid(a * (b - z)) / deviation
    along = torch.where(free, -slope * z / (classes * deviation), torch.zeros_like(z))
    loss = -nn.functional.logsigmoid(a * (z - b)) / a
    return loss, along, -slope / classes - along * mean, slope


class _Batch(NamedTuple):
    """What a step needs of a batch: inputs h, labels, the rows h Q and w_y, and the scaled a, b, c."""

    h: Tensor
    target: Tensor
    hq: Tensor
    rows: Tensor
    scalars: Tensor


class SphericalOutput(nn.Module):
    """The last linear layer o = W h and its loss together, over very many classes, trained by exact plain
    SGD.

        layer = SphericalOutput(512, 800_000, "z_loss", a=0.1, b=10.0)
        loss = layer(network(x), target)  # the mean over the batch
        loss.backward()                   # gradients of the network below; the layer notes its own
        layer.step(lr=0.1)                # W <- W - lr dloss/dW, exactly
        optimizer.step()                  # the network's own optimiser

    `backward` and `step` follow autograd: the loss may be scaled or be part of a sum, several backward calls
    before a step add up, and a loss without a backward call changes nothing. The weights are no parameters,
    and no other optimiser, weight decay or momentum can be had: only a plain step keeps the form.

    Equations: with o = W h, D classes and the mean over the batch outside,
    squared: |o - e_y|^2; taylor_softmax: -log(t(o_y) / sum_k t(o_k)), t(x) = 1 + x + x^2/2;
    z_loss: softplus(a (b - z)) / a, z = (o_y - mean o) / (standard deviation of o, at least 1e-6).

    Shapes: features (batch, in_features) of any floating dtype, target (batch,) integer labels. A step costs
    O(m d^2 + m^2 d) for a batch of m, whatever D. `predict`, `logits`, `weight` and `state_dict` first
    multiply the shared factor into the rows, one pass of D d^2 if a step was made since the last one.

    Rounding: rows are kept as V with W = V T, T a d x d matrix in float64 like Q and the inverse of T. The
    bound |T| |T^-1| / d (Frobenius norms, 1 for the identity) says how far T amplifies the rounding of V.
    Above 8, T is multiplied into the rows that were targets since the last full fold. All others wait, since
    no inverse is ever applied to them; they follow once the small folds have cost as much as a full one.
    So learning rates that shrink a direction to nothing in one step are exact too. Q is made anew every
    8,192 steps, and sooner after steps that stretch a direction, which would amplify its rounding. The
    weights stay within 1e-5 of the largest weight of dense SGD in float64, where that is stable.

    Defaults: a = 1, b = 0 (used by z_loss only) as in `losses.ZLoss`, weights as `nn.Linear` draws them.
    `weight` sets them; zeros suit the squared error. They are kept in float32 or float64: `.half()` and
    `.bfloat16()` leave them as they are. `state_dict` holds W under `weight`, as `nn.Linear` without bias.

    Pays: from some ten thousand classes on, against a full softmax step: 145 to 245 times at 800,000 classes.
    Not for few classes, nor where probabilities are wanted, nor where sampled softmax will do: it costs about
    as much, is not exact, and was ahead in top-1 after the same time on 200,000 classes
    (benchmarks/spherical_training.py).

    Raises: ValueError for another loss, sizes below 1 feature or 2 classes, a weight of the wrong shape or
    dtype, features that are not finite or of the wrong shape, an empty batch, labels out of range, a negative
    learning rate. RuntimeError for a step without a backward call, a backward call after the step that
    changed its weights, double backward, and an update that is not finite (the weights are left as they
    were).

    Source: Vincent, de Brebisson, Bouthillier, arXiv:1412.7091; Z-loss: de Brebisson, Vincent,
    arXiv:1604.08859; Taylor softmax: de Brebisson, Vincent, arXiv:1511.05042.
    """

    _rows: Tensor  # V
    _hot: Tensor  # which rows were targets since the last full fold
    _factor: Tensor  # T
    _inverse: Tensor  # of T
    _spare: Tensor  # room for the next T
    _base: Tensor
    _shift: Tensor
    _gram: Tensor  # Q
    _sums: Tensor  # of W's columns
    _pending: list[_Batch]
    _work: int  # rows multiplied by small folds since the last full one
    _age: int  # steps since Q was made from the rows
    _drift: float

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: str = "squared",
        *,
        a: float = 1.0,
        b: float = 0.0,
        weight: Float[Tensor, "classes features"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if in_features < 1 or num_classes < 2:
            raise ValueError(
                f"the layer needs at least 1 feature and 2 classes, got {in_features} and {num_classes}."
            )
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}.")
        check_positive(a=a)
        if not math.isfinite(b):
            raise ValueError(f"b must be finite, got {b}.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the weights must be float32 or float64, got {dtype}.")
        self.in_features, self.num_classes = in_features, num_classes
        self.loss, self.a, self.b = loss, a, b
        self._clock = 0  # moves with every change of W
        if weight is None:
            rows = torch.empty(num_classes, in_features, device=device, dtype=dtype)
            rows.uniform_(-(in_features**-0.5), in_features**-0.5)
        else:
            self._check_weight(weight)
            rows = weight.detach().to(device=device, dtype=dtype).clone(memory_format=torch.contiguous_format)
        self._set(rows)

    def extra_repr(self) -> str:
        parameters = f", a={self.a}, b={self.b}" if self.loss == "z_loss" else ""
        return f"{self.in_features}, {self.num_classes}, loss={self.loss!r}{parameters}"

    @untraced
    def forward(self, features: Float[Tensor, "batch features"], target: Int[Tensor, " batch"]) -> Tensor:
        """The mean loss over the batch; its `backward` gives the features' gradient and notes what `step`
        is to do."""
        check_features(features, self.in_features)
        if values_visible(features) and not bool(features.detach().isfinite().all()):
            raise ValueError("features hold numbers that are not finite.")
        target = check_labels(target, features.shape[0], self.num_classes)
        # Without an input that needs a gradient autograd would not call backward.
        ask = torch.zeros((), requires_grad=True)
        loss: Tensor = _Loss.apply(features, ask, target, self)
        return loss

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """W <- W - lr g, g the gradient that the backward calls since the last step have made."""
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must be at least 0 and finite, got {lr}.")
        if not self._pending:
            raise RuntimeError("there is no gradient: call backward on the layer's loss before step.")
        parts = list(zip(*self._pending, strict=True))
        h, target, hq, rows = (torch.cat(part) for part in parts[:4])
        scalars = torch.cat(parts[4], 1)
        self._pending = []
        if lr > 0:
            self._update(_Batch(h, target, hq, rows, lr * scalars))

    def _update(self, batch: _Batch) -> None:
        h, target, hq, rows, (a, b, c) = batch
        # The update is W - F h, with F = O diag(a) + 1 b' + E diag(c), O the outputs, E the targets' one-hot
        # columns. `gradient` is F'W.
        gradient = _gradient(hq, rows, self._sums, a, b, c)
        total = h @ self._sums
        same = (target[:, None] == target).to(h.dtype)
        half = torch.outer(a * total + self.num_classes / 2 * b + c, b) + a[:, None] * (h @ rows.T) * c
        inner = a[:, None] * (h @ hq.T) * a + half + half.T + c[:, None] * same * c  # F'F
        cross = torch.addmm(gradient, inner, h, alpha=-0.5)
        scaled = a[:, None] * h
        factor = torch.addmm(self._factor, self._factor @ h.T, scaled, alpha=-1, out=self._spare)
        size = factor.norm()
        if not bool((size + cross.sum()).isfinite()):
            raise RuntimeError(
                "the update of the weights is not finite; they are left as they were. The learning rate is "
                "too large."
            )
        self._clock += 1
        self._age += 1
        self._warm(target)
        self._factor, self._spare = factor, self._factor
        twice = torch.mm(cross.T, h, out=self._spare)
        self._gram.sub_(twice).sub_(twice.T)
        self._sums -= (a * total + self.num_classes * b + c) @ h
        self._shift -= (a * (h @ self._shift) + b) @ h
        # T became T (I - h' diag(a) h); its inverse by Woodbury. `change` is h times that inverse.
        products = h @ h.T
        system = torch.eye(len(h), dtype=h.dtype, device=h.device) - products * a
        change = torch.linalg.solve_ex(system, h @ self._inverse)[0].contiguous()
        self._inverse.addmm_(scaled.T, change)
        growth, scale = (
            float(size * self._inverse.norm()) / self.in_features,
            float(size) / self.in_features**0.5,
        )
        if not (growth <= GROWTH and 1 / SCALE <= scale <= SCALE):
            self._fold()
            change = h
        self._rows.index_add_(0, target, (-c[:, None] * change).to(self._rows.dtype))
        self._drift *= _stretch(products, a) ** 2
        if self._age >= REFRESH or self._drift > DRIFT:
            self._folded()
            self._refresh()

    @torch.no_grad()
    def weight(self) -> Float[Tensor, "classes features"]:
        """A copy of W."""
        return self._folded().clone()

    def logits(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """All outputs W h, in the weights' dtype; see `predict` for the largest ones only."""
        check_features(features, self.in_features)
        with torch.autocast(features.device.type, enabled=False), fast_products():
            return nn.functional.linear(features.to(self._rows.dtype), self._folded())

    @torch.no_grad()
    def predict(
        self, features: Float[Tensor, "batch features"], k: int = 1
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """The k best classes of each row, best first: (scores, classes).

        The score is the output, and 1 + o + o^2/2 with the Taylor softmax, whose probability is not in the
        outputs' order. Takes memory for batch x 8,192 outputs. Raises: ValueError for k outside [1, D].
        """
        check_features(features, self.in_features)
        if not 1 <= k <= self.num_classes:
            raise ValueError(f"k must be in [1, {self.num_classes}], got {k}.")
        h = features.to(self._rows.dtype)
        scores, classes = h.new_empty(len(h), 0), torch.empty(len(h), 0, dtype=torch.long, device=h.device)
        with torch.autocast(h.device.type, enabled=False), fast_products():
            for i, part in enumerate(self._folded().split(CHUNK)):
                o = h @ part.T
                if self.loss == "taylor_softmax":
                    o = 1 + o + o**2 / 2
                best, which = o.topk(min(k, len(part)), 1)
                scores, classes = torch.cat([scores, best], 1), torch.cat([classes, which + i * CHUNK], 1)
                scores, which = scores.topk(min(k, scores.shape[1]), 1)
                classes = classes.gather(1, which)
        return scores, classes

    # Rows that were no targets since the last full fold (cold) are W = V base T + 1 shift', the others (hot)
    # W = V T + 1 shift'. A small fold multiplies T into the hot rows and into `base`.

    def _set(self, rows: Tensor) -> None:
        """Start from W = `rows`."""
        for name, start in (("_rows", rows), ("_hot", torch.zeros_like(rows[:, 0], dtype=torch.bool))):
            self.register_buffer(name, start, persistent=False)
        self._pending = []
        self._clock += 1
        self._restart()
        self._refresh()

    def _restart(self) -> None:
        """The state after a full fold."""
        identity = torch.eye(self.in_features, dtype=torch.float64, device=self._rows.device)
        self._factor, self._inverse, self._base = identity, identity.clone(), identity.clone()
        self._spare = torch.empty_like(identity)
        self._shift = identity.new_zeros(self.in_features)
        self._hot.zero_()
        self._work = 0
        self._folded_at = self._clock

    def _refresh(self) -> None:
        """Q and the column sums from the rows."""
        self._gram = torch.zeros_like(self._base)
        self._sums = torch.zeros_like(self._shift)
        for part in self._rows.split(CHUNK):
            exact = part.double()
            self._gram.addmm_(exact.T, exact)
            self._sums += exact.sum(0)
        self._age, self._drift = 0, 1.0

    def _warm(self, target: Tensor) -> None:
        """Make the targets' rows hot."""
        new = target[~self._hot[target]]
        if self._work > 0:
            self._rows[new] = (self._rows[new].double() @ self._base).to(self._rows.dtype)
        self._hot[new] = True

    def _current(self, target: Tensor) -> Tensor:
        """W's rows of the targets, in float64."""
        rows = self._rows[target].double()
        if self._work > 0:
            cold = ~self._hot[target]
            rows[cold] = rows[cold] @ self._base
        return rows @ self._factor + self._shift

    def _folded(self) -> Tensor:
        """The rows, once they are W itself."""
        if self._folded_at != self._clock:
            with torch.no_grad():
                self._fold_all()
        return self._rows

    def _fold(self) -> None:
        """Multiply T into the hot rows, or into all if the small folds have cost as much as that."""
        hot = self._hot.nonzero()[:, 0]
        self._work += len(hot)
        if self._work >= self.num_classes:
            self._fold_all()
            return
        self._multiply(hot, self._factor)
        self._base = self._base @ self._factor
        self._factor = torch.eye(self.in_features, dtype=torch.float64, device=hot.device)
        self._inverse = self._factor.clone()

    def _fold_all(self) -> None:
        self._multiply(self._hot.nonzero()[:, 0], self._factor)
        self._multiply((~self._hot).nonzero()[:, 0], self._base @ self._factor)
        if bool((self._shift != 0).any()):
            self._rows += self._shift.to(self._rows.dtype)
        self._restart()

    def _multiply(self, rows: Tensor, matrix: Tensor) -> None:
        """V <- V matrix on some rows, as V t + V (matrix - t I) with t the diagonal's mean: where the matrix
        is nearly that, little is rounded."""
        t = float(matrix.diagonal().mean())
        rest = matrix.clone()
        rest.diagonal().sub_(t)
        rest = rest.to(self._rows.dtype)
        with torch.autocast(matrix.device.type, enabled=False), fast_products():
            for some in rows.split(CHUNK):
                part = self._rows[some]
                self._rows[some] = torch.addmm(part, part, rest, beta=t)

    def _check_weight(self, weight: Tensor) -> None:
        shape = (self.num_classes, self.in_features)
        if weight.shape != shape or not weight.is_floating_point():
            raise ValueError(
                f"weight must be floating point of shape {shape}, got {weight.dtype} {tuple(weight.shape)}."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SphericalOutput:
        like = fn(self._rows.new_empty(0))
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else self._rows.dtype
        if (like.device, dtype) != (self._rows.device, self._rows.dtype):
            self._set(self._folded().to(like.device, dtype))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        others = dict(state_dict)
        weight = others.pop(prefix + "weight", None)
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if weight is None:
            if strict:
                missing_keys.append(prefix + "weight")
            return
        try:
            self._check_weight(weight)
        except ValueError as error:
            error_msgs.append(f"{prefix}{error}")
            return
        self._set(self._rows.copy_(weight.detach()))


def _gradient(hq: Tensor, rows: Tensor, sums: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """W'(a o + b 1 + c e_y) of each example."""
    return a[:, None] * hq + torch.outer(b, sums) + c[:, None] * rows


def _stretch(products: Tensor, a: Tensor) -> float:
    """An upper bound, at least 1, of the norm of I - h' diag(a) h, from h h'."""

    def bound(largest: Tensor) -> float:
        return max(1.0, float(1 - a.min() * largest), float(a.max() * largest - 1))

    size = products.norm()
    if bound(size) == 1:
        return 1.0
    power = products / size
    for _ in range(3):
        power = power @ power
    return bound(size * power.norm() ** 0.125)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, ask: Tensor, target: Tensor, layer: SphericalOutput) -> Tensor:
        h = features.detach().to(torch.float64, copy=True)
        hq, rows = h @ layer._gram, layer._current(target)
        o, total, square = (h * rows).sum(1), h @ layer._sums, (h * hq).sum(1)
        if layer.loss == "z_loss":
            loss, *scalars = z_loss(o, total, square, layer.num_classes, layer.a, layer.b)
        else:
            terms = squared if layer.loss == "squared" else taylor_softmax
            loss, *scalars = terms(o, total, square, layer.num_classes)
        ctx.layer, ctx.version, ctx.dtype = layer, layer._clock, features.dtype
        ctx.save_for_backward(h, target, hq, rows, torch.stack(scalars) / len(h))
        return loss.mean().to(features.dtype if features.dtype == torch.float64 else torch.float32)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("SphericalOutput does not support double backward.")
        layer: SphericalOutput = ctx.layer
        if layer._clock != ctx.version:
            raise RuntimeError(
                "backward came after the step that changed this loss's weights; call it before."
            )
        h, target, hq, rows, scalars = ctx.saved_tensors
        batch = _Batch(h, target, hq, rows, g.double() * scalars)
        layer._pending.append(batch)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return _gradient(hq, rows, layer._sums, *batch.scalars).to(ctx.dtype), None, None, None
