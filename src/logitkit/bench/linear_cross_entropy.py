"""Linear cross-entropy, forward and backward, without the matrix of logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal, peer
from logitkit.ops import linear_cross_entropy
from logitkit.ops.gemm import fast_products

PEERS = ("cut-cross-entropy", "liger-kernel")
NOTE = """\
At 32,768 words ours runs at 0.84 to 0.90 of the three bare products in float32 (0.88 to 0.93 in other runs
of the same code), in about twice the speed of the compiled form at default settings. Three things stand in
the way of the other figures. The naive form is bound by its products too where fresh memory is cheap: the
three products alone take 0.40 of its time, so 0.29 is out of reach on such a machine. At 131,072 words, 56
MiB hold 112 rows of float32 logits, and products that thin reach about three quarters of the full rate; the
other design, blocks of columns whose logits are made twice, has four products where there were three and came
out slower. In bfloat16, one product per chunk also reads and writes the whole gradient of the weight; "one
rounding" makes the logits twice instead and rounds that gradient once. "trained-like": logits of Zipf-like
words with a loss of 2.9 nats. The default
filter, which may only leave out what changes the features' gradient by less than a rounding, finds
nothing to leave out there. The threshold of Cut Cross-Entropy, 2^-12, is an approximation.
These are figures of the CPU's kernels. The Triton kernels are tested by its interpreter and were not measured
on a GPU."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _naive(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy((x @ w.T).float(), y)


def _medium(loss: Loss, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """What a user gets who sets the flag; the backward runs under it too."""
    torch.set_float32_matmul_precision("medium")
    try:
        value = loss(x, w, y)
        value.backward()
        return value
    finally:
        torch.set_float32_matmul_precision("highest")


def _cut(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy as cut

    return cut(x, w, y, impl="torch_compile")


def _chunked(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(x, w, y, options=options)


def _inputs(n: int, d: int, classes: int, dtype: torch.dtype, sharp: bool) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g), torch.randn(classes, d, generator=g) * d**-0.5
    y = torch.randint(classes, (n,), generator=g)
    if sharp:
        # Logits like a trained language model's: -log2 of a word's rank, plus a spread of 3.
        rank = 1.0 + torch.randperm(classes, generator=g)
        x[:, 0], w = 8.0, 3.0 * w
        w[:, 0] = -rank.log2() / 8
        some = torch.cat(
            [torch.softmax(x[i : i + 64] @ w.T, 1).multinomial(1, generator=g) for i in range(0, n, 64)]
        )
        y = some[:, 0]
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), y


def _arms(
    n: int, d: int, classes: int, dtype: torch.dtype, names: Sequence[str], sharp: bool, small: bool
) -> Arms:
    if small:
        n, d, classes = 640, 16, 2048  # enough for the kernels to run
    x, w, y = _inputs(n, d, classes, dtype, sharp)
    losses: dict[str, float] = {}
    compiled = torch.compile(_naive) if not small else _naive

    def run(name: str, loss: Loss, backward: bool = True) -> Arm:
        def arm() -> None:
            x.grad = w.grad = None
            value = loss(x, w, y)
            if backward:
                value.backward()
            losses[name] = float(value.detach())

        return arm

    arms: dict[str, Arm] = {
        "ours": run("ours", linear_cross_entropy),
        "ours, 2^-12": run("ours, 2^-12", partial(linear_cross_entropy, filter_eps=2.0**-12)),
        "ours, unfiltered": run("ours, unfiltered", partial(linear_cross_entropy, filter_eps=None)),
        "ours, one rounding": run(
            "ours, one rounding", partial(linear_cross_entropy, accum_dtype=torch.float32)
        ),
        "naive": run("naive", _naive),
        "compiled": run("compiled", compiled),
        "compiled, medium": run("compiled, medium", partial(_medium, compiled), backward=False),
    }
    if hasattr(F, "linear_cross_entropy"):
        arms["torch, chunked"] = run("torch, chunked", _chunked)
    if peer("cut_cross_entropy") and not small:
        arms["cut-cross-entropy"] = run("cut-cross-entropy", _cut)
    if "3 products" in names:
        arms["3 products"] = _limit(x.detach(), w.detach())
    reference = float(_naive(x[:256].detach(), w.detach(), y[:256]))

    def values() -> Mapping[str, float]:
        few = float(linear_cross_entropy(x[:256].detach(), w.detach(), y[:256]))
        return {"loss, relative difference to naive on 256 rows": abs(few / reference - 1)}

    return Arms({name: arms[name] for name in names if name in arms}, leaves=(w, x), values=values)


def _limit(x: Tensor, w: Tensor) -> Arm:
    """The three products alone, in oneDNN, into memory that is there already."""
    g = torch.full((x.shape[0], w.shape[0]), 1e-3, dtype=x.dtype)
    gx, gw = torch.empty_like(x), torch.empty_like(w)

    def arm() -> None:
        with fast_products():
            torch.mm(x, w.T, out=g)
            torch.mm(g, w, out=gx)
            torch.mm(g.T, x, out=gw)

    return arm


def _case(
    n: int,
    d: int,
    classes: int,
    dtype: torch.dtype,
    names: Sequence[str],
    goals: Sequence[Goal],
    memory: Sequence[str] = (),
    sharp: bool = False,
    rounds: int = 7,
) -> Case:
    kind = str(dtype).removeprefix("torch.") + (", trained-like" if sharp else "")
    build = partial(_arms, n, d, classes, dtype, names, sharp)
    return Case(f"{kind}, N={n}, d={d}, V={classes}", build, goals, memory, rounds)


FULL = Goal("ours", 1 / 0.88, "3 products")
SIXTY_FOUR = Goal("ours", 64, unit="MiB")
FP32 = [
    Goal("ours", 0.29, "naive"),
    Goal("ours", 0.5, "compiled"),
    Goal("ours", 0.95, "compiled, medium"),
    FULL,
    SIXTY_FOUR,
]
BF16 = [Goal("ours", 0.9, "compiled"), FULL, SIXTY_FOUR]


def cases() -> list[Case]:
    f, b = torch.float32, torch.bfloat16
    ours, limit = "ours", "3 products"
    peers = ["naive", "compiled", "compiled, medium", "cut-cross-entropy", "torch, chunked"]
    filters = [ours, "ours, 2^-12", "ours, unfiltered"]
    number, default = Goal("ours, 2^-12", 0.8, "ours, unfiltered"), Goal(ours, 0.8, "ours, unfiltered")
    large = [Goal(ours, 0.29, "naive"), FULL, SIXTY_FOUR]
    rounding = [ours, "ours, one rounding", limit, "compiled"]
    measured = [ours, "compiled", "torch, chunked"]
    return [
        _case(2048, 512, 32_768, f, [ours, limit, *peers], FP32, measured),
        _case(2048, 512, 131_072, f, [ours, limit, "naive"], large, [ours], rounds=3),
        _case(8192, 1024, 32_768, f, [ours, limit], [FULL, SIXTY_FOUR], [ours], rounds=3),
        _case(4096, 512, 32_768, b, rounding, BF16, [ours, "compiled"], rounds=5),
        _case(4096, 512, 131_072, b, [ours, limit, "compiled"], BF16, [ours], rounds=3),
        _case(2048, 512, 32_768, b, filters, [default, number], sharp=True),
        _case(2048, 512, 32_768, f, filters, [number], sharp=True),
    ]
