"""A transformer that holds many: widths, heads and kinds of attention to search through, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from logitkit.attention import CosformerAttention, SoftmaxAttention
from logitkit.models.base import Backbone
from logitkit.models.transformer import Transformer
from logitkit.models.vit import feed_forward
from logitkit.registry import part

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "softmax": SoftmaxAttention, "cosformer": CosformerAttention,
}  # fmt: skip


class Architecture(NamedTuple):
    """One network of the space: embedding width, heads, width of the feed-forward networks, and the kind of
    attention of each layer, whose number is the depth."""

    width: int
    heads: int
    hidden: int
    attention: tuple[str, ...]


class Space(NamedTuple):
    """The choices: every combination is an architecture."""

    widths: tuple[int, ...] = (32, 64)
    heads: tuple[int, ...] = (2, 4)
    hidden: tuple[int, ...] = (128, 256)
    depths: tuple[int, ...] = (3,)
    attention: tuple[str, ...] = ("softmax", "cosformer")

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """Every choice uniformly; from torch's global generator by default."""

        def pick(options: tuple[Any, ...]) -> Any:
            return options[int(torch.randint(len(options), (), generator=generator))]

        kinds = tuple(pick(self.attention) for _ in range(pick(self.depths)))
        return Architecture(pick(self.widths), pick(self.heads), pick(self.hidden), kinds)

    def largest(self) -> Architecture:
        """The one that the others' weights are cut from."""
        kinds = self.attention[:1] * max(self.depths)
        return Architecture(max(self.widths), max(self.heads), max(self.hidden), kinds)

    def features(self, arch: Architecture) -> Float[Tensor, " features"]:
        """The choices one-hot, those of layers that are missing as zeros."""
        chosen = [
            (self.widths, arch.width), (self.heads, arch.heads), (self.hidden, arch.hidden),
            (self.depths, len(arch.attention)),
        ]  # fmt: skip
        kinds = [*arch.attention, *[None] * (max(self.depths) - len(arch.attention))]
        rows = [*chosen, *((self.attention, kind) for kind in kinds)]
        return torch.tensor([float(o == c) for options, c in rows for o in options], dtype=torch.float64)


@part(
    "attention_supernet",
    "models",
    number=142,
    companion_of="cosformer",
    title="Supernet of transformers with softmax and cosFormer attention",
    paper="arXiv:2207.13955",
    tasks=("sequence", "classification", "binary", "regression", "multilabel"),
    no_compile="its weights are cut to the architecture in use",
    no_gradcheck="tokens are whole numbers, which have no gradient",
)
class AttentionSupernet(Backbone):
    """A supernet: one training for all architectures of a space, so that a search can compare them without
    training each.

    Equation: the network of architecture a has the first rows and columns of the largest network's weights;
    every training pass runs a random a, the same for the whole batch. Evaluation runs the one that `set`
    chose, the largest at first. Features of a narrower network are filled up with zeros.

    Shapes: as `transformer`: x (batch, tokens) whole numbers -> feature map (batch, tokens, max width).

    Defaults: 3 layers, widths 32 and 64, 2 and 4 heads, feed-forward networks of 128 and 256, softmax or
    cosFormer attention in each layer. `search` finds the best architecture under a budget of multiply-adds,
    `extract` makes it a `Transformer` of its own, which the paper trains anew.

    Raises: ValueError for a space without options, widths that heads do not divide, an unknown kind of
    attention, an architecture outside the space, tokens that are not, or an empty batch.

    Source: Liu et al., arXiv:2207.13955, the mixed search space and its weight-sharing supernet; Hu et al.,
    RankNAS, EMNLP 2021, the ranker.

    Not for: a final model, whose weights are shared with all others: train what `extract` returns.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        vocabulary: int,
        widths: tuple[int, ...] = (32, 64),
        heads: tuple[int, ...] = (2, 4),
        hidden: tuple[int, ...] = (128, 256),
        depths: tuple[int, ...] = (3,),
        attention: tuple[str, ...] = ("softmax", "cosformer"),
    ) -> None:
        super().__init__(input_shape)
        space = Space(widths, heads, hidden, depths, attention)
        for name, options in space._asdict().items():
            if not options:
                raise ValueError(f"{name} needs at least one option, got {options!r} of length 0.")
        if any(w % h for w in widths for h in heads):
            raise ValueError(
                f"every width must be a multiple of every number of heads, got {widths}, {heads}."
            )
        if set(attention) - set(ATTENTION):
            raise ValueError(f"attention must be among {sorted(ATTENTION)}, got {attention}.")
        self.space, self.vocabulary = space, vocabulary
        self.current = space.largest()
        self.shared = self._transformer(self.current)
        self.out_features = self.current.width
        self._shapes: dict[Architecture, _Features] = {}

    def sample(self, generator: torch.Generator | None = None) -> Architecture:
        """A random architecture of the space."""
        return self.space.sample(generator)

    def set(self, arch: Architecture) -> AttentionSupernet:
        """Choose the architecture that evaluation runs. Returns self."""
        self.current = self._check_inside(arch)
        return self

    def forward_features(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        arch = self.sample() if self.training else self.current
        skeleton = self._skeleton(arch).train(self.training)
        weights = {f"network.{k}": v for k, v in self._slices(skeleton.network).items()}
        return F.pad(functional_call(skeleton, weights, (x,)), (0, self.out_features - arch.width))

    def pool(self, map: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return map[:, -1]

    def forward(self, x: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
        return self.pool(self.forward_features(x))

    def extract(self, arch: Architecture) -> Transformer:
        """The network of `arch` with a copy of its weights."""
        made = self._transformer(self._check_inside(arch)).to(next(self.parameters()))
        made.load_state_dict({k: v.detach() for k, v in self._slices(made).items()})
        return made

    def flops(self, arch: Architecture) -> int:
        """Multiply-adds for one sequence of the full length, without those of the head.

        Softmax attention is counted as its whole matrix; cosFormer as its state of twice a head's width
        squared, brought up to date and read for every token.
        """
        arch = self._check_inside(arch)
        tokens, w = self.input_shape[0], arch.width
        a_head = w // arch.heads
        per_token = {"softmax": 2 * tokens * w, "cosformer": 4 * a_head * w + 2 * w}
        layers = (4 * w * w + 2 * w * arch.hidden + per_token[kind] for kind in arch.attention)
        return tokens * sum(layers)

    def _transformer(self, arch: Architecture) -> Transformer:
        kinds = iter(arch.attention)

        def attention(dim: int, heads: int, max_len: int) -> nn.Module:
            kind = next(kinds)
            return ATTENTION[kind](dim, heads, **({"max_len": max_len} if kind == "cosformer" else {}))

        return Transformer(
            self.input_shape, self.vocabulary, depth=len(arch.attention), dim=arch.width, heads=arch.heads,
            attention=attention, mlp=lambda dim, _: feed_forward(dim, arch.hidden),
        )  # fmt: skip

    def _skeleton(self, arch: Architecture) -> _Features:
        """The network of `arch` without weights."""
        if arch not in self._shapes:
            with torch.device("meta"):
                self._shapes[arch] = _Features(self._transformer(arch))
        return self._shapes[arch]

    def _slices(self, network: nn.Module) -> dict[str, Tensor]:
        """The shared weights cut to those of `network`."""
        shared, found = dict(self.shared.named_parameters()), {}
        for name, own in network.named_parameters():
            p, shape = shared[name], own.shape
            if ".in_proj." in name:  # queries, keys and values one below the other
                p, shape = p.unflatten(0, (3, -1)), own.unflatten(0, (3, -1)).shape
                found[name] = p[tuple(slice(n) for n in shape)].flatten(0, 1)
            else:
                found[name] = p[tuple(slice(n) for n in shape)]
        return found

    def _check_inside(self, arch: Architecture) -> Architecture:
        arch, space = Architecture(*arch), self.space
        inside = (
            arch.width in space.widths and arch.heads in space.heads and arch.hidden in space.hidden
            and len(arch.attention) in space.depths and set(arch.attention) <= set(space.attention)
        )  # fmt: skip
        if not inside:
            raise ValueError(f"expected an architecture of {space}, got {arch}.")
        return arch


class _Features(nn.Module):
    """A network whose call is `forward_features`, for `functional_call`."""

    def __init__(self, network: Transformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)


class PairwiseRanker:
    """A linear score of architectures' features, fitted so that of each pair the better scores higher.

    Equation: minimise the mean over pairs of log(1 + exp(-(s_better - s_worse))) + penalty |w|^2, s = w . x.
    """

    def __init__(self, penalty: float = 1e-4) -> None:
        self.penalty = penalty
        self.weight: Tensor | None = None

    def fit(self, x: Float[Tensor, "n features"], loss: Float[Tensor, " n"]) -> PairwiseRanker:
        """Lower losses are better; ties are left out. Returns self."""
        if len(x) != len(loss) or len(x) < 2:
            raise ValueError(f"expected a loss for each of at least 2 rows, got {len(x)} and {len(loss)}.")
        better, worse = (loss[:, None] < loss[None, :]).nonzero(as_tuple=True)
        apart = (x[better] - x[worse]).double()
        weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = F.softplus(-(apart @ weight)).mean() + self.penalty * weight.square().sum()
            value.backward()
            return value

        if len(apart):
            optimizer.step(closure)
        self.weight = weight.detach()
        return self

    def predict(self, x: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        """Scores, higher for what is expected to be better."""
        if self.weight is None:
            raise ValueError("the ranker has not been fitted: call fit(x, loss) first, with 2 rows or more.")
        return x.double() @ self.weight


def search(
    supernet: AttentionSupernet,
    loss: Callable[[Architecture], float],
    budget: float,
    n_eval: int = 40,
    rounds: int = 4,
    seed: int = 0,
) -> tuple[Architecture, dict[Architecture, float]]:
    """The architecture of at most `budget` multiply-adds with the lowest loss found, and all losses seen.

    loss(arch): the supernet's loss with that architecture, on the same batches each time. Half of `n_eval`
    evaluations go to random architectures; then, in rounds, a ranker fitted on all losses so far chooses
    among mutations and crossings of the best ones within the budget.

    Raises: ValueError where the first 1,000 random architectures are all over the budget.
    """
    g = torch.Generator().manual_seed(seed)
    draws = [supernet.sample(g) for _ in range(1000)]
    within = list(dict.fromkeys(a for a in draws if supernet.flops(a) <= budget))
    if not within:
        least = min(supernet.flops(a) for a in draws)
        raise ValueError(f"no architecture within {budget:g} multiply-adds; the smallest found has {least}.")
    found = {a: loss(a) for a in within[: max(2, n_eval // 2)]}
    for k in range(rounds):
        room = (n_eval - len(found)) // (rounds - k)
        parents = sorted(found, key=lambda a: found[a])[:5]
        children = {_child(supernet.space, parents, g) for _ in range(200)}
        fresh = [a for a in sorted(children) if a not in found and supernet.flops(a) <= budget]
        if not fresh or room < 1:
            continue
        x = torch.stack([supernet.space.features(a) for a in found])
        ranker = PairwiseRanker().fit(x, torch.tensor(list(found.values()), dtype=torch.float64))
        scores = ranker.predict(torch.stack([supernet.space.features(a) for a in fresh]))
        for i in scores.argsort(descending=True)[:room].tolist():
            found[fresh[i]] = loss(fresh[i])
    return min(found, key=lambda a: found[a]), found


def _child(space: Space, parents: list[Architecture], g: torch.Generator) -> Architecture:
    """Each choice from one of two parents, or with probability 0.2 at random; the depth with the kinds."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    one, two, new = parents[draw(len(parents))], parents[draw(len(parents))], space.sample(g)

    def either(a: Any, b: Any, c: Any) -> Any:
        return c if draw(5) == 0 else (a, b)[draw(2)]

    length = len(either(one, two, new).attention)
    kinds = (either(*(a.attention[i % len(a.attention)] for a in (one, two, new))) for i in range(length))
    width, heads, hidden = (either(one[k], two[k], new[k]) for k in range(3))
    return Architecture(width, heads, hidden, tuple(kinds))
