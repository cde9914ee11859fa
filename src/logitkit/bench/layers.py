"""Layers and backbones beside what they replace: rational activations, gating units, axis MLPs, columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal
from logitkit.layers import GRKAN, ActivatorBlock, GroupRational
from logitkit.models import MAXIM, RevCol
from logitkit.models.vit import Block

PEERS = ()
NOTE = """\
The rational activation is `ops.group_rational`, whose kernel keeps what lies between its input and result in
the cache. The spline layer is a B-spline KAN layer of order 3 on 5 intervals in its usual form, bases first
and then one product. The reversible columns compute every column but the last twice."""


class Spline(nn.Module):
    """A Kolmogorov-Arnold layer: y_o = sum_i (w_oi silu(x_i) + sum_k c_oik B_k(x_i)), cubic B-splines."""

    def __init__(self, inputs: int, outputs: int, intervals: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        beyond = 1 + 2 * order / intervals
        self.knots = torch.linspace(-beyond, beyond, intervals + 2 * order + 1)
        self.base = nn.Linear(inputs, outputs, bias=False)
        self.spline = nn.Linear(inputs * (intervals + order), outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        t, z = self.knots, x[..., None]
        b = ((z >= t[:-1]) & (z < t[1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (z - t[: -k - 1]) / (t[k:-1] - t[: -k - 1]) * b[..., :-1]
            b = left + (t[k + 1 :] - z) / (t[k + 1 :] - t[1:-k]) * b[..., 1:]
        return self.base(F.silu(x)) + self.spline(b.flatten(-2))


def _both_ways(make: Callable[[Tensor], Tensor], x: Tensor) -> Arm:
    def step() -> None:
        x.grad = None
        make(x).square().mean().backward()

    return step


def _activations(small: bool) -> Arms:
    rows = 64 if small else 4096
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rational = GroupRational(512, init="gelu")
    return Arms({"GELU": _both_ways(F.gelu, x), "rational": _both_ways(rational, x)}, leaves=(x,))


def _kan(small: bool) -> Arms:
    rows = 32 if small else 1024
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(0)
    both = {"B-splines": nn.Sequential(Spline(64, 128), Spline(128, 64)), "GR-KAN": GRKAN(64, 128)}
    return Arms({name: _both_ways(layer, x) for name, layer in both.items()}, leaves=(x,))


def _blocks(small: bool) -> Arms:
    tokens = 64 if small else 1024
    x = torch.randn(4, tokens, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    both = {"softmax block": Block(64, 4, 0.0), "gating block": ActivatorBlock(64, 128)}
    return Arms({name: _forward(layer, x) for name, layer in both.items()})


def _pixels(small: bool) -> Arms:
    torch.manual_seed(0)
    net = MAXIM(depth=1 if small else 2)
    images = {f"{side}x{side}": torch.rand(2, 3, side, side) for side in (32, 64)}
    return Arms({name: _forward(net, x) for name, x in images.items()})


def _columns(small: bool) -> Arms:
    x = torch.randn(4 if small else 32, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    arms: dict[str, Arm] = {}
    leaves: list[Tensor] = []
    for name, saves in (("all kept", False), ("reversible", True)):
        torch.manual_seed(0)
        net = RevCol((1, 32, 32), columns=8, save_memory=saves)
        leaves += net.parameters()
        arms[name] = partial(_step, net, x)
    return Arms(arms, leaves=leaves)


def _step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    net(x).square().mean().backward()


def _forward(net: nn.Module, x: Tensor) -> Arm:
    def run() -> None:
        with torch.no_grad():
            net(x)

    return run


def cases() -> list[Case]:
    return [
        Case("activation of 4,096 x 512, both ways", _activations, [Goal("rational", 4, "GELU")]),
        Case("feed-forward 64-128-64 on 1,024 rows, both ways", _kan, [Goal("GR-KAN", 1 / 5, "B-splines")]),
        Case("block, 1,024 tokens, forward", _blocks, [Goal("gating block", 0.5, "softmax block")]),
        Case("MAXIM by pixels, forward", _pixels, [Goal("64x64", 5, "32x32")]),
        Case(
            "RevCol of 8 columns, a step",
            _columns,
            [Goal("reversible", 1.8, "all kept")],
            memory=("all kept", "reversible"),
        ),
    ]
