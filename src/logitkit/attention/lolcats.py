"""LoLCATs: a trained softmax model made linear, by learned features and a window of softmax."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from logitkit import ops
from logitkit.attention.base import MultiheadAttention, repeat_heads
from logitkit.attention.softmax import SoftmaxAttention, softmax_attention
from logitkit.registry import Choice, part

B = TypeVar("B")


def hedgehog(
    x: Float[Tensor, "*batch heads tokens dim"], map: Float[Tensor, "heads features dim"]
) -> Float[Tensor, "*batch heads tokens twice"]:
    """[softmax(W x), softmax(-W x)], one W per head: positive features that sum to 2."""
    y = x @ map.mT.to(x.dtype)
    return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)


def window_and_linear(
    query: Float[Tensor, "*batch heads tokens dim"],
    key: Float[Tensor, "*batch heads tokens dim"],
    value: Float[Tensor, "*batch heads tokens out"],
    features_q: Float[Tensor, "*batch heads tokens features"],
    features_k: Float[Tensor, "*batch heads tokens features"],
    gate: Float[Tensor, " heads"],
    window: int,
    is_causal: bool = True,
) -> Float[Tensor, "*batch heads tokens out"]:
    """Softmax over the last `window` keys and linear attention over those before, by one denominator; see
    `LolcatsAttention`. Causal: in chunks of the window's size, in time linear in the tokens. Otherwise the
    window is |i - j| < window, and the whole matrix is made."""
    dtype = value.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value, features_q, features_k = (
            x.float() for x in (query, key, value, features_q, features_k)
        )
    gate = gate.to(query.dtype)[:, None, None]
    tokens = query.shape[-2]
    if not is_causal:
        far = _distance(tokens, tokens, 0, query.device).abs() >= window
        near = _window_weights(query, key, ~far, gate)
        weights = near + (features_q @ features_k.mT) * far
        return (weights @ value / weights.sum(-1, keepdim=True)).to(dtype)
    value = torch.cat([value, torch.ones_like(value[..., :1])], -1)  # the last column sums the weights
    total = _far(features_q, features_k, value, window) if window < tokens else torch.zeros_like(value)
    if window:
        size = min(window, tokens)
        chunks = [_chunks(x, size) for x in (query, key, value)]
        before = [torch.cat([torch.zeros_like(x[..., :1, :, :]), x[..., :-1, :, :]], -3) for x in chunks[1:]]
        k, v = (torch.cat(pair, -2) for pair in zip(before, chunks[1:], strict=True))
        apart = _distance(size, 2 * size, size, query.device)
        seen = (apart >= 0) & (apart < window)
        first = seen & (torch.arange(2 * size, device=query.device) >= size)  # nothing comes before it
        seen = torch.stack([first, *[seen] * (chunks[0].shape[-3] - 1)])
        near = _window_weights(chunks[0], k, seen, gate[..., None]) @ v
        total = total + near.flatten(-3, -2)[..., :tokens, :]
    return (total[..., :-1] / total[..., -1:]).to(dtype)


def _distance(queries: int, keys: int, offset: int, device: Any) -> Tensor:
    """How far each key lies back of each query."""
    return torch.arange(queries, device=device)[:, None] + offset - torch.arange(keys, device=device)


def _window_weights(query: Tensor, key: Tensor, seen: Tensor, gate: Tensor) -> Tensor:
    """gate exp(s - max s) over the keys that are seen."""
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    most = scores.amax(-1, keepdim=True)
    return gate * (scores - most.masked_fill(most == -torch.inf, 0)).exp()


def _far(features_q: Tensor, features_k: Tensor, value: Tensor, window: int) -> Tensor:
    """sum over the keys at least `window` back of phi(q) . phi(k) v."""
    late = features_q.shape[-2] - window
    with torch.autocast(value.device.type, enabled=False):
        mixed = ops.linear_attention(
            features_q[..., window:, :].contiguous(), features_k[..., :late, :].contiguous(),
            value[..., :late, :].contiguous(), feature=None, is_causal=True, normalize=False,
        )  # fmt: skip
    assert isinstance(mixed, Tensor)
    return F.pad(mixed, (0, 0, window, 0))


def _chunks(x: Tensor, size: int) -> Tensor:
    """(..., tokens, dim) -> (..., chunks, size, dim), filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size))


class Hedgehog(nn.Module):
    """What is learned of `LolcatsAttention`: feature maps of queries and keys, and a gate, per head.

    While `errors` is a list, a call gives what softmax attention would, and adds to the list the mean square
    of what it would have been wrong by.
    """

    def __init__(self, num_heads: int, head_dim: int, window: int) -> None:
        super().__init__()
        if window < 0:
            raise ValueError(f"window must not be negative, got {window}.")
        self.window = window
        eye = torch.eye(head_dim).expand(num_heads, -1, -1)
        self.map_q, self.map_k = nn.Parameter(eye.clone()), nn.Parameter(eye.clone())
        self.window_factor = nn.Parameter(torch.full((num_heads,), -math.log(9)))
        self.errors: list[Tensor] | None = None

    def forward(
        self,
        query: Float[Tensor, "batch heads tokens dim"],
        key: Float[Tensor, "batch kv_heads tokens dim"],
        value: Float[Tensor, "batch kv_heads tokens out"],
        is_causal: bool = True,
    ) -> Float[Tensor, "batch heads tokens out"]:
        heads = query.shape[1]
        key, value = repeat_heads(key, heads), repeat_heads(value, heads)
        mixed = window_and_linear(
            query, key, value, hedgehog(query, self.map_q), hedgehog(key, self.map_k),
            self.window_factor.sigmoid(), self.window, is_causal,
        )  # fmt: skip
        if self.errors is None:
            return mixed
        exact = softmax_attention(query, key, value, is_causal=is_causal).detach()
        self.errors.append(F.mse_loss(mixed, exact))
        return exact


class State(NamedTuple):
    """What decoding needs: the number of tokens so far, keys and values of the window, and the sums before
    it."""

    tokens: int
    key: Tensor
    value: Tensor
    matrix: Tensor
    vector: Tensor


@part(
    "lolcats",
    "attention",
    number=85,
    title="LoLCATs: On Low-Rank Linearizing of Large Language Models",
    paper="arXiv:2410.10254",
    replaces="softmax",
    aliases=("hedgehog",),
    tasks=("sequence", "classification"),
    search_space={"window": Choice(0, 8, 16, 64)},
)
class LolcatsAttention(MultiheadAttention):
    """LoLCATs attention: softmax over a window and learned linear attention before it; what `linearize` puts
    into a trained model, which then decodes with a state of fixed size.

    Equation: y_n = (sum_{i > n-w} g exp(q.k_i / sqrt(d) - c_n) v_i + phi_q(q)^T sum_{i <= n-w} phi_k(k_i)
    v_i^T) / (the same with 1 for v), phi(x) = [softmax(W x), softmax(-W x)], W per head, of queries and of
    keys; c_n the largest score of the window, g = sigmoid of a number per head.

    Shapes: x (batch, tokens, embed_dim) -> same, and the weights (batch, tokens, tokens) or None.

    Defaults: w = 64; as many features as a head has, W the identity at first; g starts at 0.1, the authors'.
    c_n is taken off the softmax terms alone, as published, so that g weighs them against the linear ones.
    `integrations.transformers.linearize` does the same to models of Hugging Face.

    Raises: ValueError for sizes that do not fit, a negative window, masks, other dtypes than floats, an empty
    batch or NaN.

    Source: Zhang et al., ICLR 2025, arXiv:2410.10254, section 3 and equation 6 to 8; Zhang et al.,
    arXiv:2402.04347 (Hedgehog), the features; the authors' `linear_window_attention_sw.py`.

    Not for: training from the start, for which `linear` or `dsf` are simpler.
    """

    takes = frozenset({"causal", "step", "weights"})

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        window: int = 64,
        num_kv_heads: int | None = None,
        rope: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, num_kv_heads=num_kv_heads, rope=rope, qk_norm=qk_norm
        )
        self.learned = Hedgehog(num_heads, self.head_dim, window)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: int | None
    ) -> Tensor:
        return self.learned(query, key, value, causal is not None)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As the base's; the state is a window of keys and values and the sums before it."""
        self._check_step(x)
        learned = self.learned
        start = 0 if state is None else state.tokens
        q, k, v = self.project(x, x, x, start)
        k, v = repeat_heads(k, self.num_heads), repeat_heads(v, self.num_heads)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if state is None:
            matrix = x.new_zeros(*k.shape[:2], 2 * learned.map_k.shape[1], v.shape[-1], dtype=wide)
            state = State(0, k[:, :, :0], v[:, :, :0], matrix, matrix[..., 0])
        _, keys, values, matrix, vector = state
        gate, found = learned.window_factor.sigmoid()[:, None, None], []
        for i in range(x.shape[1]):
            keys, values = (
                torch.cat([keys, k[:, :, i : i + 1]], 2),
                torch.cat([values, v[:, :, i : i + 1]], 2),
            )
            if keys.shape[2] > learned.window:  # the oldest leaves the window
                old = hedgehog(keys[:, :, :1], learned.map_k).to(wide)
                matrix, vector = matrix + old.mT @ values[:, :, :1].to(wide), vector + old[:, :, 0]
                keys, values = keys[:, :, 1:], values[:, :, 1:]
            now = q[:, :, i : i + 1]
            features = hedgehog(now, learned.map_q).to(wide)
            top, below = features @ matrix, features @ vector[..., None]
            if learned.window:
                near = _window_weights(now, keys, torch.ones_like(keys[0, 0, :, 0]).bool(), gate)
                top, below = top + near @ values, below + near.sum(-1, keepdim=True)
            found.append((top / below).to(v.dtype))
        state = State(start + x.shape[1], keys, values, matrix, vector)
        return self.merge(torch.cat(found, 2)), state


def linearize(model: nn.Module, window: int = 64) -> nn.Module:
    """A copy of `model` with LolcatsAttention, of the same projections, in the place of SoftmaxAttention.

    Raises ValueError where there is none.
    """
    model = copy.deepcopy(model)
    softmax = {name: m for name, m in model.named_modules() if type(m) is SoftmaxAttention}
    if not softmax:
        raise ValueError("expected a model with SoftmaxAttention, got 0 such layers.")
    for name, old in softmax.items():
        new = LolcatsAttention(
            old.embed_dim, old.num_heads, old.dropout, old.in_proj.bias is not None, window=window,
            num_kv_heads=old.num_kv_heads, rope=old.rope, qk_norm=old.q_norm is not None,
        ).to(old.in_proj.weight)  # fmt: skip
        new.load_state_dict(old.state_dict(), strict=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(old.training))
    return model


def attention_transfer(model: nn.Module, batches: Iterable[Any], steps: int, lr: float = 1e-2) -> list[float]:
    """Stage 1: learn features and gates of a linearised model so that each layer gives what its softmax
    would, each fed what softmax layers before it give. Returns the error of each step, a mean over layers.

    batches: inputs of the model, begun anew when they end. Nothing else is trained.
    """
    layers = [m for m in model.modules() if isinstance(m, Hedgehog)]
    learned = [p for m in layers for p in (m.map_q, m.map_k, m.window_factor)]
    if not learned:
        raise ValueError("expected a linearised model, got 0 layers of linear attention.")
    optimizer, errors = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0), []
    for x in islice(cycle(batches), steps):
        for layer in layers:
            layer.errors = []
        model(x)
        loss = torch.stack([e for layer in layers for e in layer.errors or []]).mean()
        for p, g in zip(learned, torch.autograd.grad(loss, learned, allow_unused=True), strict=True):
            p.grad = g
        optimizer.step()
        errors.append(loss.item())
    for layer in layers:
        layer.errors = None
    optimizer.zero_grad()
    return errors


class LowRank(nn.Module):
    """W + alpha / rank B A for each of the square blocks of W that lie one below the other; B starts at 0."""

    def __init__(self, weight: Tensor, blocks: int, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(blocks, rank, columns))
        self.b = nn.Parameter(weight.new_zeros(blocks, rows // blocks, rank))
        nn.init.kaiming_uniform_(self.a.flatten(0, 1), a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).flatten(0, 1)


def lora_finetune(
    model: nn.Module,
    batches: Iterable[B],
    loss: Callable[[nn.Module, B], Tensor],
    steps: int,
    lr: float = 1e-3,
    rank: int = 8,
    alpha: float = 16.0,
) -> list[float]:
    """Stage 2: low-rank changes of the projections of queries, keys, values and outputs, by `loss(model,
    batch)`; merged into the weights at the end. Returns the loss of each step.

    batches: begun anew when they end. Nothing else is trained.
    """
    chosen = _projections(model)
    if not chosen:
        raise ValueError("expected a model with attention, got 0 projections of queries, keys and values.")
    learned: list[nn.Parameter] = []
    for linear, blocks in chosen:
        change = LowRank(linear.weight, blocks, rank, alpha)
        parametrize.register_parametrization(linear, "weight", change)
        learned += [change.a, change.b]
    optimizer, losses = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0), []
    for batch in islice(cycle(batches), steps):
        value = loss(model, batch)
        for p, g in zip(learned, torch.autograd.grad(value, learned), strict=True):
            p.grad = g
        optimizer.step()
        losses.append(value.item())
    for linear, _ in chosen:
        parametrize.remove_parametrizations(linear, "weight")
    return losses


def _projections(model: nn.Module) -> list[tuple[nn.Linear, int]]:
    """The projections of attention, and of how many blocks that lie one below the other each consists: those
    of logitkit's modules, and those that transformers calls q_proj, k_proj, v_proj and o_proj."""
    found: list[tuple[nn.Linear, int]] = []
    for m in model.modules():
        if isinstance(m, MultiheadAttention):
            found += [(m.in_proj, 3 if m.num_kv_heads == m.num_heads else 1), (m.out_proj, 1)]
        elif all(isinstance(getattr(m, f"{x}_proj", None), nn.Linear) for x in "qkvo"):
            found += [(getattr(m, f"{x}_proj"), 1) for x in "qkvo"]
    return found
