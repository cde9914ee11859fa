"""Subsampled attention against loops over its windows, and the statistics of what a token sees."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitkit.attention import (
    SelfEnsemble,
    SoftmaxAttention,
    SubsampledAttention,
    random_windows,
    set_dense,
    softmax_attention,
)
from logitkit.attention.subsampled import within_windows
from logitkit.models import Transformer
from logitkit.ops import use


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_one_window_and_evaluation_are_dense(training, causal):
    torch.manual_seed(0)
    part = SubsampledAttention(8, 2, windows=1 if training else 4).double().train(training)
    plain = SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict())
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(part(x, is_causal=causal)[0], plain(x, is_causal=causal)[0])


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_loop_over_windows(n, causal, masked):
    q, k, v = inputs(n)
    torch.manual_seed(1)
    windows = random_windows(n, 4)
    assert sorted(windows[windows >= 0].tolist()) == list(range(n))
    mask = torch.rand(2, 1, n, n) < 0.7 if masked else None
    found = within_windows(softmax_attention, windows, q, k, v, mask, causal)
    expected = torch.zeros_like(v)
    for window in windows.tolist():
        for i in window:
            for b in range(2):
                seen = [
                    j for j in window
                    if j >= 0 and (not causal or j <= i) and (mask is None or mask[b, 0, i, j])
                ]  # fmt: skip
                if i >= 0 and seen:
                    for h in range(3):
                        weights = (k[b, h, seen] @ q[b, h, i] / math.sqrt(8)).softmax(0)
                        expected[b, h, i] = weights @ v[b, h, seen]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["no", "pairs", "keys"])
def test_loop_over_windows_with_class_tokens(causal, masked):
    n, first = 11, 2
    q, k, v = inputs(n)
    torch.manual_seed(1)
    windows = random_windows(n - first, 3, "local", shift=True)
    windows = torch.where(windows < 0, windows, windows + first)
    mask = None if masked == "no" else torch.rand(2, 1, n if masked == "pairs" else 1, n) < 0.7
    found = within_windows(softmax_attention, windows, q, k, v, mask, causal, first)
    group = {i: g for g, window in enumerate(windows.tolist()) for i in window if i >= 0}
    assert sorted(group) == list(range(first, n))
    expected = torch.zeros_like(v)
    for b in range(2):
        for i in range(n):
            seen = [
                j for j in range(n)
                if (i < first or j < first or group[i] == group[j]) and (not causal or j <= i)
                and (mask is None or mask[b, 0, i if masked == "pairs" else 0, j])
            ]  # fmt: skip
            for h in range(3 if seen else 0):
                weights = (k[b, h, seen] @ q[b, h, i] / math.sqrt(8)).softmax(0)
                expected[b, h, i] = weights @ v[b, h, seen]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("first", [1, 3])
def test_class_tokens_are_seen_by_all_and_see_all(first):
    torch.manual_seed(0)
    part = SubsampledAttention(8, 2, windows=4, class_tokens=first).double().train()
    x = torch.randn(1, 11, 8, dtype=torch.float64)
    weights = part(x, need_weights=True)[1][0]
    assert (weights[:, :first] > 0).all()
    assert (weights[:first] > 0).all()
    assert ((weights[first:, first:] > 0).sum(-1) <= math.ceil((11 - first) / 4)).all()
    plain = SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(x[:, :first])[0], plain(x[:, :first])[0])  # there is no other token
    part.windows = 1
    torch.testing.assert_close(part(x)[0], plain(x)[0])
    out = part.eval()(x, is_causal=True)[0]
    torch.testing.assert_close(out, plain(x, is_causal=True)[0])


def test_weights_are_those_of_the_windows():
    torch.manual_seed(0)
    part = SubsampledAttention(8, 2, windows=4).double().train()
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    _, weights = part(x, need_weights=True, is_causal=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 12, dtype=torch.float64))
    assert weights.triu(1).abs().max() == 0
    part.dropout = 0.5  # on top of it
    assert part(x)[0].isfinite().all()


def visits(mode, n, windows, draws):
    """How often token i saw token j."""
    count = torch.zeros(n, n)
    torch.manual_seed(0)
    for _ in range(draws):
        found = random_windows(n, windows, mode)
        group = torch.empty(n, dtype=torch.long)
        group[found.flatten()] = torch.arange(windows).repeat_interleave(found.shape[1])
        count += group[:, None] == group
    return count


def test_every_other_token_is_seen_equally_often():
    draws, n, w = 20_000, 12, 3
    count = visits("unlocal", n, n // w, draws)
    p = (w - 1) / (n - 1)
    others = count[~torch.eye(n, dtype=torch.bool)]
    error = (others / draws - p) / math.sqrt(p * (1 - p) / draws)
    # 66 pairs are independent enough for 4 standard errors
    assert error.abs().max() < 4
    assert (count.diagonal() == draws).all()


def test_local_windows_hold_neighbours():
    draws, n = 2000, 32
    count = visits("local", n, 4, draws)
    near = torch.stack([count.diagonal(d).mean() / draws for d in range(1, 25)])
    assert (near[:20:4].diff() < 0).all()
    assert near[0] > 2 * 7 / 31  # twice what unlocal windows have
    assert near[-1] < 0.01


def test_windows_with_a_shift_begin_anywhere():
    """Without jitter, tokens d apart are in one window of size w with probability 1 - d / w."""
    draws, n, w = 4000, 12, 4
    torch.manual_seed(0)
    apart = torch.zeros(n)
    for _ in range(draws):
        found = random_windows(n, n // w, "local", 0.0, shift=True)
        assert found[found >= 0].tolist() == list(range(n))
        group = (found >= 0).nonzero()[:, 0]
        apart += group == group[5]
    for d in range(5):
        p = max(0.0, 1 - d / w)
        assert abs(apart[5 + d] / draws - p) <= 4 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "unlocal"},
        {"mode": "local"},
        {"mode": "local", "shift": True},
        {"mode": "unlocal", "class_tokens": 2},
        {"mode": "local", "shift": True, "class_tokens": 1},
    ],
    ids=str,
)
def test_no_token_sees_those_after_it(settings):
    torch.manual_seed(0)
    part = SubsampledAttention(8, 2, **settings).double().train()
    x = torch.randn(1, 10, 8, dtype=torch.float64, requires_grad=True)
    reach = torch.zeros(10, 10)
    for draw in range(5):
        torch.manual_seed(draw)
        out = part(x, is_causal=True)[0]
        for i in range(10):
            reach[i] += torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0].abs().sum(-1)[0].float()
    assert reach.triu(1).max() == 0
    assert (reach.diagonal() > 0).all()


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_gradients(class_tokens):
    q, k, v = (x[:1, :1, : 5 + class_tokens, :3].clone().requires_grad_() for x in inputs(6))
    windows = torch.tensor([[3, 0, 1], [4, 2, -1]])
    windows = torch.where(windows < 0, windows, windows + class_tokens)
    assert torch.autograd.gradcheck(
        lambda *x: within_windows(softmax_attention, windows, *x, is_causal=True, class_tokens=class_tokens),
        (q, k, v),
    )

    def products(query, key, value, attn_mask=None, is_causal=False):
        scores = query @ key.mT
        return (scores if attn_mask is None else scores.masked_fill(~attn_mask, 0)) @ value

    assert torch.autograd.gradgradcheck(
        lambda *x: within_windows(products, windows, *x, class_tokens=class_tokens), (q, k, v)
    )


def small_model():
    torch.manual_seed(0)
    model = Transformer((12,), 20, dim=16, heads=2, attention=SubsampledAttention)
    return nn.Sequential(model, nn.Linear(16, 5)).eval()


def test_self_ensemble():
    model, x = small_model(), torch.randint(20, (4, 12))
    dense = model(x)
    torch.manual_seed(3)
    one = SelfEnsemble(model, 1)(x)
    torch.manual_seed(3)
    torch.testing.assert_close(one, set_dense(model, False)(x).log_softmax(-1))
    set_dense(model, None)
    torch.manual_seed(4)
    many = SelfEnsemble(model, 3)(x)
    torch.manual_seed(4)
    set_dense(model, False)
    mean = torch.stack([model(x).softmax(-1) for _ in range(3)]).mean(0)
    torch.testing.assert_close(many.exp(), mean)
    torch.testing.assert_close(set_dense(model, None)(x), dense)
    with pytest.raises(ValueError, match="SubsampledAttention"):
        SelfEnsemble(nn.Linear(2, 2))(torch.zeros(1, 2))


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_score_memory_falls_by_the_number_of_windows():
    part = SubsampledAttention(8, 1, windows=8, of="power").train()
    x, found = torch.randn(1, 256, 8), {}
    for dense in (True, False):
        set_dense(part, dense)
        with use("reference"), Largest() as largest:
            part(x)
        found[dense] = largest.numel
    assert found[True] == 8 * found[False] == 256 * 256


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"windows": 0}, "windows must be at least 1"),
        ({"mode": "global"}, "mode must be"),
        ({"jitter": -1.0}, "jitter must not be negative"),
        ({"of": "linear"}, "of must be one of"),
        ({"shift": True}, "mode is 'unlocal'"),
        ({"class_tokens": -1}, "class_tokens must not be negative"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(ValueError, match=match):
        SubsampledAttention(8, 2, **settings)
