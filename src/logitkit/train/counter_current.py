"""Counter-current learning: a second network carries labels down, and every layer has a loss of its own."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from logitkit.registry import Choice, Real, part

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu, "leaky_relu": F.leaky_relu, "relu": F.relu, "tanh": torch.tanh,
}  # fmt: skip


class CounterCurrentLinear(nn.Module):
    """act(W x) forward and act(B c) in reverse, both of detached inputs. W (out, in) and B (in, out) are
    not tied. `linear` leaves the activation out: at the top of the forward, at the bottom of the reverse."""

    def __init__(self, in_features: int, out_features: int, act: str = "elu", bias: bool = False) -> None:
        super().__init__()
        self.act = _activation(act)
        self.down = nn.Linear(out_features, in_features, bias=bias)
        self.up = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, x: Float[Tensor, "batch in"], linear: bool = False) -> Float[Tensor, "batch out"]:
        h = self.up(x.detach())
        return h if linear else self.act(h)

    def reverse(self, c: Float[Tensor, "classes out"], linear: bool = False) -> Float[Tensor, "classes in"]:
        h = self.down(c.detach())
        return h if linear else self.act(h)


class CounterCurrentConv2d(nn.Module):
    """The same for maps: a convolution that halves them forward, and one of the map enlarged twice in
    reverse. Sizes must be even; kernels odd."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, act: str = "elu") -> None:
        super().__init__()
        self.act = _activation(act)
        around = kernel_size // 2
        self.down = nn.Conv2d(out_channels, in_channels, kernel_size, padding=around)
        self.up = nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=around)

    def forward(self, x: Float[Tensor, "batch in h w"], linear: bool = False) -> Tensor:
        h = self.up(x.detach())
        return h if linear else self.act(h)

    def reverse(self, c: Float[Tensor, "classes out h w"], linear: bool = False) -> Tensor:
        h = self.down(F.interpolate(c.detach(), scale_factor=2, mode="nearest"))
        return h if linear else self.act(h)


class CounterCurrentNet(nn.Module):
    """Layers with a forward and a reverse. The last layer is linear forward, the first in reverse; between
    maps and vectors, signals are reshaped."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Float[Tensor, "batch ..."]) -> list[Tensor]:
        """a_0 = x, a_1, ..., a_L, the scores."""
        found = [x]
        for layer in self.layers:
            h = found[-1].flatten(1) if isinstance(layer, CounterCurrentLinear) else found[-1]
            found.append(layer(h, linear=layer is self.layers[-1]))
        return found

    def reverse(self, target: Float[Tensor, "classes out"], like: Sequence[Tensor] = ()) -> list[Tensor]:
        """c_0, ..., c_L = target. like: the activations, where some of them are maps."""
        found = [target]
        for at in reversed(range(len(self.layers))):
            c = self.layers[at].reverse(found[0], linear=at == 0)  # type: ignore[operator]
            found.insert(0, c.unflatten(1, like[at].shape[1:]) if like and c.ndim != like[at].ndim else c)
        return found


def counter_current_loss(
    activation: Float[Tensor, "batch ..."],
    signal: Float[Tensor, "classes ..."],
    target: Int[Tensor, " batch"],
    scale: float = 0.5,
) -> Float[Tensor, ""]:
    """256 scale / d times the mean squared difference of a c^T (batch, classes) from the one-hot targets, d
    the size of a: 0 where every activation meets the signal of its class with 1 and all others with 0."""
    a, c = activation.flatten(1), signal.flatten(1)
    wanted = F.one_hot(target, len(c)).to(a.dtype)
    return 256 * scale / a.shape[1] * F.mse_loss(a @ c.mT, wanted)


@part(
    "counter_current",
    "train",
    title="Counter-Current Learning: A Biologically Plausible Dual Network Approach for Deep Learning",
    paper="arXiv:2409.19841",
    number=217,
    aliases=("ccl",),
    tasks=("classification",),
    search_space={"act": Choice(*ACTIVATIONS), "scale": Real(0.05, 5.0, log=True)},
)
class CounterCurrent:
    """Counter-current learning: no error travels back through the network, whose layers learn from the
    signals that a second network makes of the labels; for those who study learning without backpropagation.

    Equation: a_l = f_l(stopgrad(a_{l-1})), l = 1..L; c_L = the one-hot labels of all classes, c_{l-1} =
    act(B_l stopgrad(c_l)), the lowest without act. The loss is that of the recipe, which reaches the last
    layer only, plus sum_{l < L} 256 scale / d_l mean((a_l c_l^T - T)^2), T_ik = 1 where i is of class k. Each
    term trains the weights W_l and B_{l+1} and no others.

    Shapes: an algorithm of the engine, `algorithm=counter_current`, for models of linear layers
    (`model=mlp`, `model=linear`), with a linear head. `CounterCurrentNet` is the same for any training loop,
    and for convolutions.

    Defaults: the authors' scale of 0.5 and their ELU in reverse; B has no bias and the optimiser of W, with a
    state of its own. They train with optimizer=sgd(momentum=0.9), lr=0.5 and clip=1; the clip is of W's
    gradient and of B's, each by itself. centralize subtracts the mean of each row of a gradient first.

    Raises: ValueError for an unknown act, a scale that is not positive, or a network with other parameters
    than those of linear layers.

    Source: Kao, Hariharan, NeurIPS 2024, arXiv:2409.19841, section 3; the constants as in the authors'
    `utils/loss.py`.

    Not for: accuracy: backpropagation is better where it can be used.
    """

    def __init__(self, act: str = "elu", scale: float = 0.5, centralize: bool = False) -> None:
        _activation(act)
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        self.act, self.scale, self.centralize = act, scale, centralize
        self.feedback: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def check(self, network: nn.Module) -> None:
        """Raise ValueError for a network that it cannot train."""
        linear_layers(network)

    def step(self, trainer: Any, batch: Any) -> Tensor:
        """One step of both networks; the recipe's loss, detached."""
        network = trainer.network
        layers = linear_layers(network)
        if self.optimizer is None:
            self._begin(trainer, layers)
        assert self.optimizer is not None
        activations: list[Tensor] = []

        def cut(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            activations.append(inputs[0])
            return (inputs[0].detach(), *inputs[1:])

        hooks = [layer.register_forward_pre_hook(cut) for layer in layers]
        try:
            with trainer.autocast():
                loss = trainer.objective(network, batch)
        finally:
            for hook in hooks:
                hook.remove()
        terms = [
            counter_current_loss(a.to(c.dtype), c, batch.y, self.scale)
            for a, c in zip(activations, self.signals(), strict=True)
        ]
        trainer.optimizer.zero_grad()
        self.optimizer.zero_grad()
        trainer.backward(loss + torch.stack(terms).sum())
        for weights in (list(network.parameters()), self.feedback):
            if self.centralize:
                for w in weights:
                    if w.ndim > 1 and w.grad is not None:
                        w.grad -= w.grad.mean(1, keepdim=True)
            if trainer.recipe.clip is not None:
                nn.utils.clip_grad_norm_(weights, trainer.recipe.clip)
        for mine, theirs in zip(self.optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
            mine["lr"] = theirs["lr"]
        trainer.optimizer.step()
        self.optimizer.step()
        return loss.detach()

    def signals(self) -> list[Float[Tensor, "classes dims"]]:
        """c_0, ..., c_{L-1} of all classes."""
        act, top = ACTIVATIONS[self.act], self.feedback[-1]
        found = [torch.eye(top.shape[1], dtype=top.dtype, device=top.device)]
        for at in reversed(range(len(self.feedback))):
            c = found[0].detach() @ self.feedback[at].mT
            found.insert(0, act(c) if at else c)
        return found[:-1]

    def state_dict(self) -> dict[str, Any]:
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        return {"feedback": [w.detach() for w in self.feedback], "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state

    def _begin(self, trainer: Any, layers: list[nn.Linear]) -> None:
        """The feedback's weights, those of a checkpoint if there is one, and its optimiser."""
        generator = Generator().manual_seed(trainer.recipe.seed)
        for layer in layers:
            bound = layer.out_features**-0.5  # as nn.Linear
            w = bound * (2 * torch.rand(layer.in_features, layer.out_features, generator=generator) - 1)
            self.feedback.append(w.to(layer.weight).requires_grad_())
        like = trainer.optimizer
        takes = inspect.signature(type(like)).parameters
        self.optimizer = type(like)(self.feedback, **{k: v for k, v in like.defaults.items() if k in takes})
        saved = getattr(self, "_saved", {"feedback": []})
        if saved["feedback"]:
            with torch.no_grad():
                for w, value in zip(self.feedback, saved["feedback"], strict=True):
                    w.copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """The network's linear layers from bottom to top. Raises ValueError if it learns anything else."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    other = len(list(network.parameters())) - sum(len(list(m.parameters())) for m in layers)
    fits = all(a.out_features == b.in_features for a, b in itertools.pairwise(layers))
    if other or not layers or not fits:
        raise ValueError(
            "counter-current learning takes networks of linear layers, one after the other; of"
            f" {len(list(network.parameters()))} parameters {other} are not; use model=mlp, head=linear."
        )
    return layers


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {name!r}.")
    return ACTIVATIONS[name]
