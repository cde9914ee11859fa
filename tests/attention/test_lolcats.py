"""LoLCATs attention against its dense form, its limits, and numbers of the official code."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import (
    LolcatsAttention,
    SoftmaxAttention,
    attention_transfer,
    hedgehog,
    linearize,
    lora_finetune,
    softmax_attention,
    window_and_linear,
)
from logitkit.models import Transformer


def inputs(n, dim=4, seed=0):
    """Queries, keys, values (2, 3, n, dim), maps of queries and keys, gates."""
    g = torch.Generator().manual_seed(seed)
    x = [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]
    maps = [torch.randn(3, dim, dim, generator=g, dtype=torch.float64) for _ in range(2)]
    return *x, *maps, torch.rand(3, generator=g, dtype=torch.float64)


def dense(q, k, v, map_q, map_k, gate, window, causal=True):
    """The whole matrix of both kinds of weights."""
    n, d = q.shape[-2:]
    apart = torch.arange(n)[:, None] - torch.arange(n)
    seen = apart >= 0 if causal else torch.ones(n, n, dtype=torch.bool)
    near, far = seen & (apart.abs() < window), seen & (apart.abs() >= window)

    def phi(x, m):
        y = torch.einsum("hfd,bhnd->bhnf", m, x)
        return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1)

    scores = (q @ k.mT / math.sqrt(d)).masked_fill(~near, -math.inf)
    if window:
        scores = (scores - scores.amax(-1, keepdim=True)).exp()
        weights = gate[:, None, None] * scores
    else:
        weights = torch.zeros_like(scores)
    weights = weights + phi(q, map_q) @ phi(k, map_k).mT * far
    return weights @ v / weights.sum(-1, keepdim=True)


def mixed(q, k, v, map_q, map_k, gate, window, causal=True):
    return window_and_linear(q, k, v, hedgehog(q, map_q), hedgehog(k, map_k), gate, window, causal)


@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 11, 12, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_chunks_are_the_dense_form(window, causal):
    x = inputs(12)
    torch.testing.assert_close(mixed(*x, window, causal), dense(*x, window, causal))


def test_a_window_over_everything_is_softmax_attention():
    q, k, v, map_q, map_k, gate = inputs(9)
    found = mixed(q, k, v, map_q, map_k, torch.ones_like(gate), 9)
    torch.testing.assert_close(found, softmax_attention(q, k, v, is_causal=True))


def test_features_are_positive_and_sum_to_two():
    q, _, _, map_q, _, _ = inputs(6)
    phi = hedgehog(10 * q, map_q)
    assert (phi > 0).all()
    torch.testing.assert_close(phi.sum(-1), torch.full(phi.shape[:-1], 2.0, dtype=torch.float64))


def test_the_official_code():
    """hybrid_attention_quadratic of HazyResearch/lolcats (linear_window_attention_sw.py), window 2."""
    q, k, v = torch.arange(108).double().mul(0.37).sin().mul(2).view(3, 1, 2, 6, 3)
    maps = torch.arange(36).double().mul(0.9).cos().view(2, 2, 3, 3)
    gate = torch.tensor([0.1, 0.6], dtype=torch.float64)
    printed = [
        1.995964337, 1.906813541, 1.559584478, 1.681539951, 1.401248854, 0.931305299, 1.35924244, 0.919924835,
        0.356099719, 1.379343818, 1.002957565, 0.49082571, 0.942227617, 0.541395241, 0.067287559, 0.720140223,
        0.334347161, -0.09669822, 1.902657478, 1.551015812, 0.989451432, 1.812177119, 1.438958385,
        0.870983383, 0.850877149, 0.355990483, -0.187077824, 0.625699467, 0.243372752, -0.171893324,
        0.637402532, 0.259942053, -0.152700363, -0.560541452, -0.463046772, -0.302880885,
    ]  # fmt: skip
    torch.testing.assert_close(
        mixed(q, k, v, maps[0], maps[1], gate, 2).flatten(),
        torch.tensor(printed, dtype=torch.float64), atol=1e-8, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize("window", [0, 1, 4, 20])
@pytest.mark.parametrize("chunk", [1, 5])
def test_step_by_step(window, chunk):
    torch.manual_seed(0)
    part = LolcatsAttention(8, 2, window=window, num_kv_heads=1, rope=True).double()
    for p in part.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    state, found = None, []
    for piece in x.split(chunk, 1):
        out, state = part.step(piece, state)
        found.append(out)
        assert state.key.shape[2] <= window
    torch.testing.assert_close(torch.cat(found, 1), part(x, is_causal=True)[0])


def test_no_token_sees_those_after_it():
    torch.manual_seed(0)
    part, x = LolcatsAttention(8, 2, window=3).double(), torch.randn(1, 9, 8).double().requires_grad_()
    out = part(x, is_causal=True)[0]
    reach = torch.stack(
        [torch.autograd.grad(row.sum(), x, retain_graph=True)[0].abs().sum(-1)[0] for row in out[0]]
    )
    assert reach.triu(1).max() == 0
    assert (reach.tril() > 0).sum() == 45


def test_gradients():
    x = [t[:1, :1, :5].clone().requires_grad_() if t.ndim == 4 else t[:1].clone().requires_grad_()
         for t in inputs(5, dim=2)]  # fmt: skip
    assert torch.autograd.gradcheck(lambda *t: mixed(*t, 2), x)


def language_model():
    torch.manual_seed(0)
    return Transformer((24,), 13, dim=16, heads=2, position="rope").double()


def test_linearize_keeps_the_projections():
    model = language_model()
    x = torch.randint(13, (2, 24))
    swapped = linearize(model, window=24)
    for m in swapped.modules():
        if isinstance(m, LolcatsAttention):
            m.learned.window_factor.data.fill_(50.0)
    torch.testing.assert_close(swapped(x), model(x))
    assert any(isinstance(m, SoftmaxAttention) for m in model.modules())
    assert (linearize(model, window=4).forward_features(x) - model.forward_features(x)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="SoftmaxAttention"):
        linearize(swapped)


def test_transfer_trains_features_alone_on_the_teachers_states():
    model = language_model()
    swapped = linearize(model, window=4)
    batches = [torch.randint(13, (4, 24)) for _ in range(2)]
    before = {k: v.clone() for k, v in swapped.state_dict().items()}
    errors = attention_transfer(swapped, batches, steps=40)
    assert errors[-1] < 0.5 * errors[0]
    changed = {k for k, v in swapped.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.rsplit(".", 1)[1] for k in changed} == {"map_q", "map_k", "window_factor"}
    # the first error is the mean over layers of what each gets wrong on the states of softmax layers
    fresh, expected = linearize(model, window=4), []
    h = model.embedding(batches[0])
    for block, new in zip(model.blocks, fresh.blocks, strict=True):
        q, k, v = block.attention.project(*[block.norm1(h)] * 3)
        expected.append(
            F.mse_loss(new.attention.attend(q, k, v, None, 0), block.attention.attend(q, k, v, None, 0))
        )
        h = block(h)
    assert errors[0] == pytest.approx(torch.stack(expected).mean().item())
    with pytest.raises(ValueError, match="linearised"):
        attention_transfer(model, batches, 1)


def test_low_rank_changes_are_merged():
    model = language_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [torch.randint(13, (8, 25)) for _ in range(2)]

    def loss(model, x):
        scores = model.forward_features(x[:, :-1]) @ model.embedding.weight.T
        return F.cross_entropy(scores.flatten(0, 1), x[:, 1:].flatten())

    losses = lora_finetune(model, batches, loss, steps=30, lr=1e-2, rank=2)
    assert losses[-1] < losses[0]
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert {k.split("attention.")[1] for k in changed} == {"in_proj.weight", "out_proj.weight"}
    change = after["blocks.0.attention.in_proj.weight"] - before["blocks.0.attention.in_proj.weight"]
    assert [torch.linalg.matrix_rank(block, rtol=1e-6).item() for block in change.chunk(3)] == [2, 2, 2]
    assert loss(model, batches[0]).item() <= losses[-2] + 0.1


def test_a_window_cannot_be_negative():
    with pytest.raises(ValueError, match="window must not be negative"):
        LolcatsAttention(8, 2, window=-1)
