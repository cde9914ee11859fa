"""What a layer knows: its mutual information with the input and with the label, through training.

The slot is an estimator, `estimator(t, y=None, x=None)` -> `Known`, in bits: t (rows, *layer) is what a layer
puts out for rows of inputs x, y (rows,) their integer labels. Where T is a function of X, I(X; T) is the
entropy of T and x is not looked at. `InformationPlane` puts any estimator on the layers of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.errors import nearest
from logitkit.ops import check_labels, check_numbers

if TYPE_CHECKING:
    import plotly.graph_objects as go

CHUNK = 4096  # rows that pass through the model at once


class Known(NamedTuple):
    """Bits that a layer T knows of the input X and of the label Y; `label` is None where there are none."""

    input: float
    label: float | None


Estimator = Callable[..., Known]


class InformationPlane:
    """The path of every layer through the plane of I(X; T) and I(T; Y) while a model trains.

        plane = InformationPlane(EBAB(), model, x, y, layers=["1", "3"])
        for epoch in range(100):
            train(model)
            plane.record(epoch)
        plane.values, plane.compression(), plane.plot()

    estimator: a part of `probe`. x, y: the rows that are looked at, all at once, with integer labels; they
    should be all there are or rows that the model was not trained on, and are never subsampled. layers: names
    as in `model.named_modules()`; None: every module that is an activation of torch, such as `nn.Tanh`. A
    layer's output is flattened per row. The model is put into evaluation mode while it is looked at.

    steps: what `record` was called with. values: (steps, layers, 2) float64 in bits, I(X; T) and I(T; Y).

    Raises ValueError for a name that the model lacks, no layer at all, or a layer that puts out no tensor
    with a row per input.
    """

    def __init__(
        self,
        estimator: Estimator,
        model: nn.Module,
        x: Tensor,
        y: Int[Tensor, " rows"],
        layers: Sequence[str] | None = None,
    ) -> None:
        if layers is None:
            layers = [name for name, m in model.named_modules() if type(m).__module__ == _ACTIVATIONS]
        named(model, layers)
        if not layers:
            count = len(list(model.modules()))
            raise ValueError(f"the model has no activation of torch among its {count} modules: name layers.")
        if len(x) != len(y):
            raise ValueError(f"x and y must have as many rows, got {len(x)} and {len(y)}.")
        self.estimator, self.model, self.x, self.y = estimator, model, x, y
        self.layers = tuple(layers)
        self.steps: list[int] = []
        self._known: list[list[Known]] = []

    def record(self, step: int) -> list[Known]:
        """Look at every layer now; returns what each knows."""
        outputs = layer_outputs(self.model, self.x, self.layers)
        known = [self.estimator(outputs[name], self.y, self.x) for name in self.layers]
        self.steps.append(step)
        self._known.append(known)
        return known

    @property
    def values(self) -> Float[Tensor, "steps layers 2"]:
        """I(X; T) and I(T; Y) in bits, NaN where there is none."""
        rows = [[(k.input, math.nan if k.label is None else k.label) for k in known] for known in self._known]
        return torch.tensor(rows, dtype=torch.float64).view(len(rows), len(self.layers), 2)

    def compression(self) -> dict[str, float]:
        """Bits of the input that each layer had at its best and has no more: max I(X; T) - last I(X; T)."""
        if not self.steps:
            raise ValueError("nothing is recorded: 0 calls of record.")
        bits = self.values[..., 0]
        return dict(zip(self.layers, (bits.amax(0) - bits[-1]).tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Steps, layers and values as plain lists."""
        return {"steps": list(self.steps), "layers": list(self.layers), "values": self.values.tolist()}

    def plot(self) -> go.Figure:
        """A plotly figure with one path for each layer, coloured by step."""
        import plotly.graph_objects as go

        figure = go.Figure()
        values = self.values
        for k, name in enumerate(self.layers):
            figure.add_scatter(
                x=values[:, k, 0].tolist(), y=values[:, k, 1].tolist(), mode="lines+markers", name=name,
                text=[f"step {step}" for step in self.steps],
                line={"color": "#c2c9d2", "width": 1},
                marker={
                    "color": self.steps, "colorscale": "Viridis", "symbol": k, "size": 8, "showscale": k == 0,
                    "colorbar": {"title": "step"},
                },
            )  # fmt: skip
        figure.update_layout(
            template="plotly_white", xaxis_title="I(X; T), bits", yaxis_title="I(T; Y), bits",
            legend={"title": "layer", "orientation": "h", "y": 1.1},
        )  # fmt: skip
        return figure


_ACTIVATIONS = nn.Tanh.__module__


def named(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """The model's modules of these names. Raises ValueError for one that it lacks."""
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise ValueError(f"layers must name modules of the model, got {name!r}.{nearest(name, modules)}")
    return {name: modules[name] for name in layers}


@torch.no_grad()
def layer_outputs(model: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, Float[Tensor, "rows d"]]:
    """What the named modules put out for x, flattened per row."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[name].append(output)

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in named(model, layers).items()]
    try:
        with evaluating(model):
            for rows in x.split(CHUNK):
                model(rows)
    finally:
        for handle in handles:
            handle.remove()
    chunks = math.ceil(len(x) / CHUNK)
    for name, outputs in found.items():
        if len(outputs) != chunks or not all(isinstance(t, Tensor) for t in outputs):
            raise ValueError(
                f"layer {name!r} must put out one tensor for a batch, got {len(outputs)} outputs for {chunks}"
                " batches."
            )
        if sum(map(len, outputs)) != len(x):
            raise ValueError(
                f"layer {name!r} must put out a row for each of {len(x)} inputs, got"
                f" {sum(map(len, outputs))}."
            )
    return {name: torch.cat(outputs).flatten(1) for name, outputs in found.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each of its modules as before afterwards."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_layer(t: Tensor, y: Tensor | None) -> tuple[Float[Tensor, "rows d"], Int[Tensor, " rows"] | None]:
    """t as (rows, d) and y, checked: floating point numbers without NaN or infinity, a label for each row."""
    if t.ndim < 2 or t.numel() == 0:
        raise ValueError(f"t must have shape (rows, d), both at least 1, got {tuple(t.shape)}.")
    if not t.is_floating_point():
        raise ValueError(f"t must be floating point, got {t.dtype}.")
    t = t.detach().flatten(1)
    check_numbers(t, "t")
    if bool(t.isinf().any()):
        raise ValueError(f"t must be finite, got {int(t.isinf().sum())} infinite values.")
    if y is not None:
        check_labels(y, len(t), int(y.max()) + 1 if y.numel() and not y.is_floating_point() else 1)
    return t, y


def of_codes(codes: Int[Tensor, "rows d"], y: Int[Tensor, " rows"] | None) -> Known:
    """H(T) and H(T) + H(Y) - H(T, Y) in bits, where each different row of `codes` is a value of T."""
    t = torch.unique(codes, dim=0, return_inverse=True)[1]
    bits = entropy_of_counts(torch.bincount(t))
    if y is None:
        return Known(bits, None)
    together = t * (int(y.max()) + 1) + y
    joint = entropy_of_counts(torch.unique(together, return_counts=True)[1])
    return Known(bits, bits + entropy_of_counts(torch.bincount(y)) - joint)


def entropy_of_counts(counts: Int[Tensor, " values"]) -> float:
    """Bits of the distribution with these counts."""
    p = counts[counts > 0].double() / counts.sum()
    return -float((p * p.log2()).sum())
