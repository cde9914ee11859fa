"""Hopfield networks against what the paper proves, torch's attention and the authors' numbers."""

import pytest
import torch
from torch import nn

from logitkit.attention import (
    Hopfield,
    HopfieldLayer,
    HopfieldPooling,
    classify_fixed_point,
    hopfield_attention,
    hopfield_energy,
    hopfield_update,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_updates_go_down_the_energy(beta):
    stored, states = draw(9, 4), draw(20, 4, seed=1)
    largest = stored.norm(dim=1).max()
    states = states * (largest / states.norm(dim=1, keepdim=True)).clamp(max=1)
    before = hopfield_energy(states, stored, beta)
    for _ in range(10):
        assert (before >= -1e-12).all()
        assert (before <= 2 * largest**2).all()
        states = hopfield_update(states, stored, beta)
        after = hopfield_energy(states, stored, beta)
        assert (after <= before + 1e-12).all()
        before = after


def test_the_energys_gradient_is_the_state_minus_its_update():
    stored, states = draw(6, 4), draw(5, 4, seed=1).requires_grad_()
    hopfield_energy(states, stored, 1.7).sum().backward()
    torch.testing.assert_close(states.grad, states.detach() - hopfield_update(states.detach(), stored, 1.7))


def test_retrieval_is_as_good_as_the_patterns_are_apart():
    """|f(s) - x_i| <= 2 M (N - 1) exp(-beta delta), delta the margin of x_i's score; a small beta gives the
    mean of all."""
    stored = draw(7, 16)
    largest = stored.norm(dim=1).max()
    for i in range(7):
        state = stored[i] + 0.1 * draw(16, seed=i)
        scores = stored @ state
        margin = scores[i] - scores[torch.arange(7) != i].max()
        for beta in (0.1, 0.5, 2.0):
            error = (hopfield_update(state, stored, beta) - stored[i]).norm()
            assert error <= 2 * largest * 6 * torch.exp(-beta * margin) + 1e-12
    torch.testing.assert_close(hopfield_update(state, stored, 1e-9), stored.mean(0), rtol=1e-6, atol=1e-6)


def test_kinds_of_fixed_points():
    stored = torch.eye(8, dtype=torch.float64)
    assert classify_fixed_point(stored[:1], stored, 20.0) == ["single"]
    pair = (stored[:1] + stored[1:2]) / 2
    assert classify_fixed_point(torch.cat([pair, stored[:1]]), stored, 20.0) == ["metastable", "single"]
    assert classify_fixed_point(stored[:1], stored, 0.01) == ["global"]


def test_without_updates_and_norms_it_is_torchs_attention():
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    part = Hopfield(8, 2, normalize=False).double().load_torch(theirs)
    state, stored = draw(2, 3, 8), draw(2, 5, 8, seed=1)
    padding = torch.tensor([[False] * 4 + [True], [False] * 5])
    expected = theirs(state, stored, stored, key_padding_mask=padding)[0]
    torch.testing.assert_close(part(state, stored, stored, padding)[0], expected)


def test_numbers_of_the_authors_code():
    """ml-jku/hopfield-layers, hflayers.Hopfield with two updates and beta = 0.6, in float64 on sine waves."""
    part = Hopfield(8, 2, beta=0.6, steps=2, eps=1e-9).double()
    weights = [
        part.in_proj.weight, part.in_proj.bias, part.out_proj.weight, part.out_proj.bias,
        part.norms[1].weight, part.norms[1].bias, part.norms[0].weight, part.norms[0].bias,
        part.norms[2].weight, part.norms[2].bias,
    ]  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(weights):
            p.copy_(wave(*p.shape, k=1 + 0.1 * i))
    state, stored = wave(1, 3, 8, k=0.3).requires_grad_(), wave(1, 5, 8, k=0.45)
    out = part(state, stored, stored)[0]
    out.square().sum().backward()
    for found, expected in (
        (out[0, 1, :4], [-1.74794676, 3.02524495, -3.62926377, 3.06657633]),
        (out[0, 2, -4:], [-1.1386953, -1.64550132, 4.11607867, -4.98772597]),
        (state.grad[0, 2, :4], [-0.050714, 0.06025, 0.038679, -0.096408]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_updates_end_where_they_move_nothing():
    query, key = draw(1, 1, 3, 4), draw(1, 1, 6, 4, seed=1)
    state = query
    for _ in range(200):
        state = (2.0 * state @ key.mT).softmax(-1) @ key
    expected = (2.0 * state @ key.mT).softmax(-1) @ key
    found = hopfield_attention(query, key, key, scale=2.0, steps=200, eps=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    at_once = hopfield_attention(query, key, key, scale=2.0, steps=200, eps=1e9)
    torch.testing.assert_close(at_once, hopfield_attention(query, key, key, scale=2.0, steps=1))


def test_each_state_stops_by_itself():
    query, key = draw(2, 1, 3, 4), draw(2, 1, 6, 4, seed=1)
    both = hopfield_attention(query, key, key, steps=20, eps=1e-2)
    for i in range(2):
        for j in range(3):
            alone = hopfield_attention(query[i, :, j : j + 1], key[i], key[i], steps=20, eps=1e-2)
            torch.testing.assert_close(both[i, :, j : j + 1], alone)


def test_gradients_go_through_the_updates():
    query, key, value = (draw(1, 1, n, 3, seed=n).requires_grad_() for n in (2, 4, 4))
    assert torch.autograd.gradcheck(
        lambda *x: hopfield_attention(*x, steps=3, eps=1e-12), (query, key, value)
    )


def test_pooling_and_memory():
    pool, x = HopfieldPooling(8, 2, quantity=3, steps=1).double(), draw(2, 5, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert pool(x).shape == (2, 24)
    torch.testing.assert_close(pool(x[:, order]), pool(x))
    padding = torch.tensor([False, False, False, True, True]).expand(2, 5)
    torch.testing.assert_close(pool(x, padding), pool(x[:, :3]))
    table = HopfieldLayer(8, 2, memory=4).double()
    assert table.stored.shape == table.read.shape == (4, 8)
    expected = table.hopfield(x, table.stored.expand(2, 4, 8), table.read.expand(2, 4, 8))[0]
    torch.testing.assert_close(table(x), expected)
    for make, match in (
        (lambda: HopfieldPooling(8, quantity=0), "quantity"),
        (lambda: HopfieldLayer(8, memory=0), "memory"),
        (lambda: Hopfield(8, 2, beta=0.0), "beta must be positive"),
        (lambda: Hopfield(8, 2, steps=-1), "steps"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
