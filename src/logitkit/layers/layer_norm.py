"""Layer normalisation, and the recurrent networks it was made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.registry import Real, part

State = Any  # (batch, hidden) of RNN and GRU, a pair (h, c) of these of the LSTM


def layer_norm(
    x: Float[Tensor, "*batch dim"],
    gain: Float[Tensor, " dim"] | None = None,
    bias: Float[Tensor, " dim"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*batch dim"]:
    """gain (x - mean) / sqrt(variance + eps) + bias over the last axis; see `LayerNorm`."""
    return F.layer_norm(x, x.shape[-1:], gain, bias, eps)


@part(
    "layer_norm",
    "layers",
    title="Layer Normalization",
    paper="arXiv:1607.06450",
    number=213,
    replaces="norm",
    aliases=("ln",),
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
    search_space={"eps": Real(1e-6, 1e-3, log=True)},
)
class LayerNorm(nn.LayerNorm):
    """Layer normalisation: for recurrent networks, transformers and small batches, as each case is normalised
    by itself and alike in training and evaluation.

    Equation: y = g (x - mu) / sqrt(v + eps) + b, mu and v the mean and the biased variance of the case's own
    features. In front of a nonlinearity, x = W a are the summed inputs of a layer; the output then stays the
    same when all weights or one case are scaled, and when one vector is added to every row of W.

    Shapes: x (..., dim) -> same, unitless. The cells of the paper are `LayerNormRNNCell`, `LayerNormLSTMCell`
    and `LayerNormGRUCell`, and as layers over time `LayerNormRNN`, `LayerNormLSTM` and `LayerNormGRU`, with
    torch's shapes and one difference in the parameters: gains, and one bias.

    Defaults: g = 1, b = 0, and eps = 1e-5 inside the root as in the authors' code; the paper's equation has
    none.

    Raises: ValueError for a dim below 2, whose output would be b alone, a negative eps, inputs of another
    width or dtype, or none.

    Source: Ba, Kiros, Hinton, 2016, arXiv:1607.06450, equations 3 and 4, and its supplement for the
    cells; the authors' `layers.py`.

    Not for: convolutions, whose positions at the border have other statistics; features on scales that
    matter, or that are already one constant.
    """

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = True) -> None:
        if not (isinstance(dim, int) and dim >= 2):
            raise ValueError(f"dim must be a whole number of at least 2, got {dim!r}.")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}.")
        super().__init__(dim, eps, affine)

    def forward(self, input: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        x = check_tokens(input, self.normalized_shape[0])
        return layer_norm(x, self.weight, self.bias, self.eps)


class _Cell(nn.Module):
    """One step of a recurrent network: `gates` summed inputs for each of `hidden_size` units.

    Weights start uniform in +-1/sqrt(hidden_size), as torch's; gains at 1 and the bias at 0.
    """

    gates: int

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_whole(input_size=input_size)
        if not (isinstance(hidden_size, int) and hidden_size >= 2):
            raise ValueError(f"hidden_size must be a whole number of at least 2, got {hidden_size!r}.")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}.")
        self.input_size, self.hidden_size, self.eps = input_size, hidden_size, eps
        self.ih = nn.Linear(input_size, self.gates * hidden_size, bias=False)
        self.hh = nn.Linear(hidden_size, self.gates * hidden_size, bias=False)
        for weight in (self.ih.weight, self.hh.weight):
            nn.init.uniform_(weight, -(hidden_size**-0.5), hidden_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(self.gates * hidden_size))

    def start(self, x: Float[Tensor, "batch numbers"]) -> State:
        """The state before the first step."""
        return x.new_zeros(len(x), self.hidden_size)

    def look(self, x: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        """What the inputs of a step contribute; needs no state, so that it is done for all steps at once."""
        raise NotImplementedError

    def step(self, seen: Float[Tensor, "batch gates"], state: State) -> State:
        """The state after what `look` has seen."""
        raise NotImplementedError

    def output(self, state: State) -> Float[Tensor, "batch hidden"]:
        """What the layer above gets of a state."""
        return state

    def forward(self, x: Float[Tensor, "batch input"], state: State | None = None) -> State:
        x = check_tokens(x, self.input_size)
        if x.ndim != 2:
            raise ValueError(f"x must have shape (batch, {self.input_size}), got {tuple(x.shape)}.")
        return self.step(self.look(x), self.start(x) if state is None else state)

    def _gain(self, size: int) -> nn.Parameter:
        return nn.Parameter(torch.ones(size))


class LayerNormRNNCell(_Cell):
    """h' = tanh(LN(W_ih x + W_hh h)), as `nn.RNNCell`; the two products are normalised together (equation 4).

    Shapes: x (batch, input_size), h (batch, hidden_size) or None for zeros -> h' (batch, hidden_size).
    """

    gates = 1

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(input_size, hidden_size, eps)
        self.gain = self._gain(hidden_size)

    def look(self, x: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        return self.ih(x)

    def step(self, seen: Float[Tensor, "batch gates"], state: State) -> State:
        return torch.tanh(layer_norm(seen + self.hh(state), self.gain, self.bias, self.eps))


class LayerNormLSTMCell(_Cell):
    """The LSTM with normalised products and cell, as `nn.LSTMCell`:
    i, f, g, o = LN(W_ih x) + LN(W_hh h) + b; c' = sigma(f) c + sigma(i) tanh(g); h' = sigma(o) tanh(LN(c')).

    A product is normalised over its four gates together. The two biases that the paper adds to the products
    are in b, since only their sum matters.

    Shapes: x (batch, input_size), (h, c) or None for zeros -> (h', c'), each (batch, hidden_size).
    """

    gates = 4

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(input_size, hidden_size, eps)
        self.gain_ih, self.gain_hh = self._gain(4 * hidden_size), self._gain(4 * hidden_size)
        self.gain_c, self.bias_c = self._gain(hidden_size), nn.Parameter(torch.zeros(hidden_size))

    def start(self, x: Float[Tensor, "batch numbers"]) -> State:
        h = super().start(x)
        return h, h

    def look(self, x: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        return layer_norm(self.ih(x), self.gain_ih, self.bias, self.eps)

    def step(self, seen: Float[Tensor, "batch gates"], state: State) -> State:
        h, c = state
        i, f, g, o = (seen + layer_norm(self.hh(h), self.gain_hh, None, self.eps)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * layer_norm(c, self.gain_c, self.bias_c, self.eps).tanh(), c

    def output(self, state: State) -> Float[Tensor, "batch hidden"]:
        return state[0]


class LayerNormGRUCell(_Cell):
    """The GRU with normalised products, as `nn.GRUCell`:
    r, z = sigma(LN(W_ih x) + LN(W_hh h) + b); n = tanh(LN(U_ih x) + b_in + r (LN(U_hh h) + b_hn));
    h' = (1 - z) n + z h.

    The two gates are normalised together and the candidate by itself. The paper has z and 1 - z the other way
    round, its code as here and in torch.

    Shapes: x (batch, input_size), h (batch, hidden_size) or None for zeros -> h' (batch, hidden_size).
    """

    gates = 3

    def __init__(self, input_size: int, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(input_size, hidden_size, eps)
        self.gain_ih, self.gain_hh = self._gain(3 * hidden_size), self._gain(3 * hidden_size)
        self.bias_hn = nn.Parameter(torch.zeros(hidden_size))

    def look(self, x: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        return self._normed(self.ih(x), self.gain_ih) + self.bias

    def step(self, seen: Float[Tensor, "batch gates"], state: State) -> State:
        sizes = [2 * self.hidden_size, self.hidden_size]
        gates, candidate = seen.split(sizes, dim=-1)
        before, past = self._normed(self.hh(state), self.gain_hh).split(sizes, dim=-1)
        r, z = (gates + before).sigmoid().chunk(2, dim=-1)
        n = torch.tanh(candidate + r * (past + self.bias_hn))
        return n + z * (state - n)

    def _normed(self, a: Tensor, gain: Tensor) -> Tensor:
        """The two gates, and the candidate, each normalised."""
        sizes = [2 * self.hidden_size, self.hidden_size]
        pairs = zip(a.split(sizes, dim=-1), gain.split(sizes), strict=True)
        return torch.cat([layer_norm(each, scale, None, self.eps) for each, scale in pairs], dim=-1)


class _Layers(nn.Module):
    """Cells over time, stacked. `start` and the final states are one state per layer, stacked as torch's."""

    cell: type[_Cell]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_whole(num_layers=num_layers)
        self.input_size, self.batch_first = input_size, batch_first
        widths = [input_size] + [hidden_size] * (num_layers - 1)
        self.cells = nn.ModuleList(self.cell(width, hidden_size, eps) for width in widths)

    def forward(
        self, x: Float[Tensor, "a b input"], states: State | None = None
    ) -> tuple[Float[Tensor, "a b hidden"], State]:
        x = check_tokens(x, self.input_size)
        if x.ndim != 3:
            axes = "batch, time" if self.batch_first else "time, batch"
            raise ValueError(f"x must have shape ({axes}, {self.input_size}), got {tuple(x.shape)}.")
        x = x.transpose(0, 1) if self.batch_first else x
        last = []
        for layer, cell in enumerate(self.cells):
            assert isinstance(cell, _Cell)
            state = cell.start(x[0]) if states is None else _of_layer(states, layer)
            outputs = []
            for seen in cell.look(x):
                state = cell.step(seen, state)
                outputs.append(cell.output(state))
            x = torch.stack(outputs)
            last.append(state)
        return (x.transpose(0, 1) if self.batch_first else x), _stacked(last)


def _of_layer(states: State, layer: int) -> State:
    return tuple(each[layer] for each in states) if isinstance(states, tuple) else states[layer]


def _stacked(states: list[State]) -> State:
    if isinstance(states[0], tuple):
        return tuple(torch.stack(each) for each in zip(*states, strict=True))
    return torch.stack(states)


class LayerNormRNN(_Layers):
    """Layers of `LayerNormRNNCell` with the shapes of `nn.RNN`: x (time, batch, input_size), or batch first,
    and states (num_layers, batch, hidden_size) or None -> outputs of the last layer, last states of all."""

    cell = LayerNormRNNCell


class LayerNormLSTM(_Layers):
    """Layers of `LayerNormLSTMCell` with the shapes of `nn.LSTM`: x (time, batch, input_size), or batch
    first, and (h, c), each (num_layers, batch, hidden_size), or None -> outputs, (h, c)."""

    cell = LayerNormLSTMCell


class LayerNormGRU(_Layers):
    """Layers of `LayerNormGRUCell` with the shapes of `nn.GRU`: x (time, batch, input_size), or batch first,
    and states (num_layers, batch, hidden_size) or None -> outputs of the last layer, last states of all."""

    cell = LayerNormGRUCell


def invariance_table(
    normalized: Callable[[Tensor, Tensor], Tensor], tolerance: float = 1e-6, seed: int = 0
) -> dict[str, bool]:
    """What a layer's normalised summed inputs do not depend on: table 1 of the paper, for any normalisation.

    normalized: (inputs (batch, d), weights (units, d)) -> (batch, units), in float64, such as
                `lambda x, w: layer_norm(x @ w.T, eps=0)`.

    Each change is made to random inputs and weights. Returns whether the output stayed the same to within
    `tolerance` of its largest number.
    """
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (9, 6))
    row = torch.randn(7, generator=generator, dtype=torch.float64)
    one, first = torch.ones(len(x), 1).double(), torch.ones(len(w), 1).double()
    one[0], first[0] = 3.0, 3.0
    changed = {
        "weight matrix re-scaling": (x, 3 * w),
        "weight matrix re-centering": (x, w + row),
        "weight vector re-scaling": (x, first * w),
        "data set re-scaling": (3 * x, w),
        "data set re-centering": (x + row, w),
        "single case re-scaling": (one * x, w),
    }
    before = normalized(x, w)
    allowed = tolerance * float(before.abs().max())
    return {name: float((normalized(*c) - before).abs().max()) <= allowed for name, c in changed.items()}
