"""Utilities: the gradient identities, a planted k, and what does and does not change with k."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.calibrate import UtilityToProbability, decode, rival_loss, utility_gradient


def sample(n=60, outcomes=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    u = 2 * torch.randn(n, outcomes, generator=g, dtype=torch.float64)
    return u, torch.randint(outcomes, (n,), generator=g), g


def gradient(u, y, rival, generator=None):
    u = u.clone().requires_grad_()
    rival_loss(u, y, rival, generator).sum().backward()
    return u.grad


def test_the_expected_rivals_gradient_is_that_of_cross_entropy():
    u, y, _ = sample()
    leaf = u.clone().requires_grad_()
    F.cross_entropy(leaf, y, reduction="sum").backward()
    torch.testing.assert_close(gradient(u, y, "expected"), leaf.grad, rtol=0, atol=1e-12)


def test_a_sampled_rivals_gradient_averages_to_it():
    u, y, g = sample(1, 5)
    n = 100_000
    found = gradient(u.expand(n, 5), y.expand(n), "sampled", g)
    expected = gradient(u, y, "expected")[0]
    error = found.std(dim=0) / n**0.5
    assert ((found.mean(dim=0) - expected).abs() <= 3 * error + 1e-12).all()


def test_the_best_rivals_update_is_the_structured_perceptrons():
    u, y, _ = sample()
    expected = F.one_hot(u.argmax(1), 6).double() - F.one_hot(y, 6)
    torch.testing.assert_close(gradient(u, y, "argmax"), expected)


def test_gradients_of_a_models_parameters():
    torch.manual_seed(0)
    model, (_, y, _) = nn.Linear(4, 6, dtype=torch.float64), sample()
    x = torch.randn(60, 4, dtype=torch.float64)
    expected = torch.autograd.grad(-F.cross_entropy(model(x), y), list(model.parameters()))
    torch.testing.assert_close(utility_gradient(model, x, y), expected)
    chosen = model(x).argmax(1)
    weight, bias = utility_gradient(model, x, y, "argmax")
    step = (F.one_hot(y, 6) - F.one_hot(chosen, 6)).double()
    torch.testing.assert_close(weight, step.T @ x / 60)
    torch.testing.assert_close(bias, step.mean(0))


def test_one_is_the_identity_and_no_k_moves_the_argmax():
    u, _, _ = sample()
    torch.testing.assert_close(UtilityToProbability().transform(u), u.softmax(1))
    for k in (1e-3, 0.3, 7.0, 1e3):
        found = UtilityToProbability(k).transform(u)
        assert torch.equal(decode(found), u.argmax(1))
    torch.testing.assert_close(found, F.one_hot(u.argmax(1), 6).double(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_a_planted_k_is_found(planted):
    u, _, g = sample(100_000)
    u[:, 4:] = -torch.inf  # rows with fewer candidates
    y = torch.multinomial((planted * u).softmax(1), 1, generator=g)[:, 0]
    assert UtilityToProbability().fit(u, y).k.item() == pytest.approx(planted, rel=0.02)


def test_the_likeliest_k_has_no_slope():
    u, y, _ = sample()
    y[:40] = u[:40].argmax(1)
    k = UtilityToProbability().fit(u, y).k.clone().requires_grad_()
    F.cross_entropy(k * u, y).backward()
    assert abs(k.grad) < 1e-12


def test_bounds_of_k():
    u, y, _ = sample()
    assert UtilityToProbability().fit(u, u.argmax(1)).k.item() == pytest.approx(1e3)
    assert UtilityToProbability().fit(u, u.argmin(1)).k.item() == pytest.approx(1e-3)
    assert UtilityToProbability(2.0).fit(u, y).k == 2.0


def test_by_score_it_is_the_best_of_a_grid():
    u, y, g = sample()
    score = torch.rand(60, 6, generator=g, dtype=torch.float64)
    k = UtilityToProbability(criterion="score").fit(u, y, score=score).k
    values = {10 ** (i / 20): ((10 ** (i / 20) * u).softmax(1) * score).sum(1).mean() for i in range(-60, 61)}
    assert k.item() == pytest.approx(max(values, key=values.get))
    exact = UtilityToProbability(criterion="score").fit(u, u.argmax(1)).k
    assert exact > 10


def test_lengths():
    u, y, _ = sample()
    lengths = torch.randint(1, 5, u.shape)
    y[:50] = (u / lengths)[:50].argmax(1)
    part = UtilityToProbability(length_norm=True).fit(u, y, lengths)
    assert part.k == UtilityToProbability().fit(u / lengths, y).k
    torch.testing.assert_close(part.transform(u, lengths), (part.k * u / lengths).softmax(1))
    with pytest.raises(ValueError, match="needs lengths"):
        part.transform(u)


def test_rules_of_decoding():
    p = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.8, 0.1]], dtype=torch.float64)
    gain = torch.tensor([[1.0, 0, 0], [0, 1, 0.9], [0, 0.9, 1]], dtype=torch.float64)
    assert decode(p).tolist() == [0, 1]
    assert decode(p, "mbr", gain).tolist() == [1, 1]
    assert decode(p, "mbr", torch.stack([torch.eye(3), gain.float()])).tolist() == [0, 1]
    drawn = decode(p[:1].expand(30_000, 3), "sample", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.bincount() / 30_000, p[0].float(), rtol=0, atol=0.01)


def test_bad_input():
    u, y, _ = sample()
    with pytest.raises(ValueError, match="criterion"):
        UtilityToProbability(criterion="bleu")
    with pytest.raises(ValueError, match="'worst'"):
        rival_loss(u, y, "worst")
    with pytest.raises(ValueError, match="got None"):
        decode(u.softmax(1), "mbr")
    with pytest.raises(ValueError, match="'beam'"):
        decode(u.softmax(1), "beam")
    with pytest.raises(ValueError, match="row 0 has the utility -inf"):
        UtilityToProbability().fit(torch.full((3, 2), -torch.inf), torch.zeros(3).long())
