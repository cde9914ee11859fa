"""Adaptive computation modules: how many of its small learners a feed-forward layer runs, token by token."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.ops import draw_gumbel
from logitkit.registry import Choice, part

Gates = Float[Tensor, "batch tokens choices"]
Mode = Literal["all", "gated"] | int


@part(
    "acm",
    "layers",
    title="Adaptive Computation Modules: Granular Conditional Computation For Efficient Inference",
    paper="arXiv:2312.10193",
    number=223,
    replaces="mlp",
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
    search_space={"learners": Choice(2, 4)},
)
class ACM(nn.Module):
    """A feed-forward layer cut into learners that run one after the other, as many as a gate gives each
    token: to make a trained network cheaper at inference, on easy tokens most.

    Equation: h_k(x) = b_0 + sum over i <= k of s_i(x), s_i(x) = W2_i act(W1_i x + b1_i) + b_i, k of 0 .. N;
    the gate has N + 1 logits V x + c. In training k is drawn, with gradients straight through a softmax of
    temperature tau (Gumbel); afterwards it is the largest logit, and only learners 1 .. k run.

    Shapes: x (..., dim) -> same, unitless. Each learner has hidden / N units and 2 dim hidden / N
    multiply-adds per token.

    Defaults: N = 4, GELU, tau = 1. `mode` is "all", every learner for every token, until a gate has been
    trained; "gated"; or a number of learners for all tokens. `acmize` puts modules into a trained model,
    `distill`, `pretrain_gates` and `finetune` are the three stages of training it.

    Raises: ValueError for a hidden width that the learners do not divide, an unknown mode, inputs of another
    width or dtype, or none.

    Source: Wojcik et al., AAAI 2025, arXiv:2312.10193, section 3; the authors' `acm.py`, whose loop stops one
    learner short of the largest choice, and whose gates get no gradient of the task.

    Not for: the speed of small layers on an accelerator, where gathering tokens costs more than it saves.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        learners: int = 4,
        tau: float = 1.0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        check_whole(dim=dim, hidden=hidden, learners=learners)
        if hidden % learners:
            raise ValueError(f"learners must divide hidden, got {learners} learners and {hidden} units.")
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}.")
        self.dim, self.learners, self.tau, self.activation = dim, learners, tau, activation
        block = hidden // learners
        self.w1 = nn.Parameter(_uniform((learners, dim, block), dim))
        self.b1 = nn.Parameter(_uniform((learners, block), dim))
        self.w2 = nn.Parameter(_uniform((learners, block, dim), block))
        self.b2 = nn.Parameter(_uniform((learners + 1, dim), block))
        self.gate = nn.Linear(dim, learners + 1)
        self.mode: Mode = "all"
        self._record: list[Tensor] | None = None

    @property
    def cost(self) -> int:
        """Multiply-adds of one learner on one token."""
        return 2 * self.dim * self.b1.shape[1]

    def partial_sums(
        self, x: Float[Tensor, "*batch dim"], detach: bool = False
    ) -> Float[Tensor, "*batch choices dim"]:
        """h_0 .. h_N; with `detach` each gives gradients to its last learner only."""
        inner = self.activation(torch.einsum("...d,ndb->...nb", x, self.w1) + self.b1)
        each = torch.einsum("...nb,nbd->...nd", inner, self.w2)
        each = torch.cat([torch.zeros_like(each[..., :1, :]), each], dim=-2) + self.b2
        sums = each.cumsum(-2)
        return each + (sums - each).detach() if detach else sums

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        x = check_tokens(x, self.dim)
        if self.mode != "gated":
            return self._up_to(self.learners if self.mode == "all" else self.mode, x)
        logits = self.gate(x)
        if self.training:
            soft = ((logits + draw_gumbel(logits.shape, logits)) / self.tau).softmax(-1)
            gates = _hardened(soft)
            y = (gates[..., None] * self.partial_sums(x)).sum(-2)
        else:
            gates = _hardened(logits.softmax(-1)).detach()
            y = self.chosen(x, gates.argmax(-1))
        if self._record is not None:
            self._record.append(gates)
        return y

    def chosen(self, x: Float[Tensor, "*batch dim"], k: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        """h_k of every token for its own k; a learner runs on the tokens that need it."""
        rows, choices = x.reshape(-1, self.dim), k.reshape(-1)
        y = self.b2[0].expand_as(rows).to(rows.dtype)
        for i in range(self.learners):
            need = (choices > i).nonzero()[:, 0]
            if len(need):
                y = y.index_add(0, need, self._learner(i, rows[need]).to(y.dtype))
        return y.view_as(x)

    def _up_to(self, k: Mode, x: Tensor) -> Tensor:
        if not (isinstance(k, int) and 0 <= k <= self.learners):
            raise ValueError(f'mode must be "all", "gated" or one of 0 .. {self.learners}, got {k!r}.')
        y = self.b2[0].expand_as(x)
        for i in range(k):
            y = y + self._learner(i, x)
        return y

    def _learner(self, i: int, x: Tensor) -> Tensor:
        return self.activation(x @ self.w1[i] + self.b1[i]) @ self.w2[i] + self.b2[i + 1]


def modules_of(model: nn.Module) -> list[ACM]:
    """The adaptive modules of a model, in its order."""
    return [module for module in model.modules() if isinstance(module, ACM)]


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Put all of a model's adaptive modules into a mode."""
    for module in modules_of(model):
        module.mode = mode


@contextmanager
def recorded_gates(model: nn.Module) -> Iterator[list[Gates]]:
    """The gates of what the model does inside, one (batch, tokens, choices) per module and call, in order."""
    found: list[Tensor] = []
    for module in modules_of(model):
        module._record = found
    try:
        yield found
    finally:
        for module in modules_of(model):
            module._record = None


def gate_labels(
    sums: Float[Tensor, "*batch choices dim"], target: Float[Tensor, "*batch dim"], factor: float = 0.95
) -> Int[Tensor, "*batch"]:
    """What a gate should say: with e_k = |h_k - target|, one more than the first k at which e_k / e_(k+1)
    falls below `factor`; N where none does, or where k is 0."""
    errors = (sums - target[..., None, :]).norm(dim=-1)
    below = errors[..., :-1] < factor * errors[..., 1:]
    first = below.int().argmax(-1)
    return torch.where(first == 0, errors.shape[-1] - 1, first + 1)


def computed(gates: Sequence[Gates], costs: Sequence[float] | None = None) -> Float[Tensor, ""]:
    """The share of all learners that run, weighted by what one of each module costs."""
    weights = [1.0] * len(gates) if costs is None else costs
    k = [torch.arange(each.shape[-1], device=each.device, dtype=each.dtype) for each in gates]
    used = sum(w * (each @ n).mean() for w, each, n in zip(weights, gates, k, strict=True))
    return used / sum(w * (each.shape[-1] - 1) for w, each in zip(weights, gates, strict=True))  # type: ignore[return-value]


def gate_entropy(gates: Sequence[Gates]) -> Float[Tensor, ""]:
    """The entropy of an example's choices in a module over all its tokens, over log(N + 1): the mean over
    examples and modules. 1 where all choices are equally frequent."""
    p = torch.stack([each.mean(1) for each in gates], dim=1)
    logs = p.clamp(min=torch.finfo(p.dtype).tiny).log()  # whose gradient at 0 is 0
    return -(p * logs).sum(-1).mean() / math.log(p.shape[-1])


def gate_diversity(gates: Sequence[Gates]) -> Float[Tensor, ""]:
    """Twice the mean distance between two examples of their mean number of learners over N + 1."""
    k = torch.arange(gates[0].shape[-1], device=gates[0].device, dtype=gates[0].dtype)
    mean = torch.stack([(each * k).mean((1, 2)) for each in gates]).mean(0)
    return 2 * (mean[:, None] - mean).abs().mean()


def acmize(model: nn.Module, learners: int = 4, ratio: float = 1.0, tau: float = 1.0) -> nn.Module:
    """A copy of the model with an adaptive module for every Linear, activation, Linear; of `ratio` times as
    many units, rounded to a multiple of the learners.

    Raises: ValueError for a model without such layers.
    """
    made = copy.deepcopy(model)
    found = [name for name, module in made.named_modules() if _feed_forward(module) is not None]
    if not found:
        raise ValueError(
            f"found 0 feed-forward layers (Linear, activation, Linear) in {type(model).__name__}."
        )
    for name in found:
        parts = _feed_forward(made.get_submodule(name))
        assert parts is not None
        first, activation, _ = parts
        hidden = learners * max(1, round(ratio * first.out_features / learners))
        made.set_submodule(name, ACM(first.in_features, hidden, learners, tau, activation).to(first.weight))
    return made


def distill(student: nn.Module, teacher: nn.Module, batches: Iterable[Tensor], lr: float = 1e-3) -> None:
    """First stage: every module learns, on the inputs of the layer whose place it has in the teacher, to be
    near its output with any number of learners."""
    _layerwise(
        student,
        teacher,
        batches,
        lr,
        lambda module: [p for name, p in module.named_parameters() if not name.startswith("gate")],
        lambda module, x, y: F.mse_loss(module.partial_sums(x, detach=True), _for_each(y, module)),
    )


def pretrain_gates(
    student: nn.Module, teacher: nn.Module, batches: Iterable[Tensor], lr: float = 1e-3, factor: float = 0.95
) -> None:
    """Second stage: every gate learns the labels of `gate_labels`."""

    def loss(module: ACM, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            labels = gate_labels(module.partial_sums(x), y, factor)
        return F.cross_entropy(module.gate(x).flatten(0, -2), labels.flatten())

    _layerwise(student, teacher, batches, lr, lambda module: list(module.gate.parameters()), loss)


def finetune(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    target: float,
    lr: float = 1e-3,
    budget: float = 1.0,
    entropy: float = 0.05,
    diversity: float = 0.05,
    task: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:
    """Third stage: the whole model on task + budget |C - target| - entropy H - diversity D, where C, H and D
    are `computed`, `gate_entropy` and `gate_diversity`. Leaves the modules gated."""
    set_mode(model, "gated")
    costs = [float(module.cost) for module in modules_of(model)]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for x, y in batches:
        with recorded_gates(model) as gates:
            loss = task(model(x), y)
        loss = loss + budget * (computed(gates, costs) - target).abs()
        loss = loss - entropy * gate_entropy(gates) - diversity * gate_diversity(gates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _layerwise(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Tensor],
    lr: float,
    trained: Callable[[ACM], list[nn.Parameter]],
    loss_of: Callable[[ACM, Tensor, Tensor], Tensor],
) -> None:
    names = [name for name, module in student.named_modules() if isinstance(module, ACM)]
    modules = modules_of(student)
    optimizer = torch.optim.Adam(itertools.chain(*map(trained, modules)), lr=lr)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    hooks = [teacher.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    teacher.eval()
    try:
        for x in batches:
            with torch.no_grad():
                teacher(x)
            pairs = zip(modules, names, strict=True)
            loss = torch.stack([loss_of(module, *seen[name]) for module, name in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()


def _for_each(y: Tensor, module: ACM) -> Tensor:
    return y[..., None, :].expand(*y.shape[:-1], module.learners + 1, -1)


def _hardened(soft: Tensor) -> Tensor:
    """One-hot at the largest, with the gradient of `soft`."""
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + (soft - soft.detach())  # in this order exactly one-hot


def _uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


def _feed_forward(module: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Linear] | None:
    """The layers of a Linear, activation, Linear of one width in and out, dropout aside."""
    if not isinstance(module, nn.Sequential):
        return None
    layers = [layer for layer in module if not isinstance(layer, nn.Dropout)]
    if len(layers) != 3 or isinstance(layers[1], nn.Linear):
        return None
    first, activation, last = layers
    if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)):
        return None
    return (first, activation, last) if first.in_features == last.out_features else None
