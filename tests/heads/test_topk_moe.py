"""The mixture head against the density of `theory.TopKMoE`, scipy, and the noise it is to find."""

import pytest
import torch
from scipy.stats import norm

import logitkit
from logitkit import data
from logitkit.engine import Prepared, Recipe, run
from logitkit.heads import TopKMoEHead
from logitkit.theory import Parameters, TopKMoE


def filled(features=3, experts=5, active=2, seed=0):
    """A head of random parameters in float64."""
    generator = torch.Generator().manual_seed(seed)
    head = TopKMoEHead(features, experts, active).double()
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return head


@pytest.mark.parametrize("active", [1, 2, 5])
def test_density_mean_and_gate_are_those_of_the_theory(active):
    head = filled(active=active)
    law = TopKMoE.of(
        Parameters(
            head.score.weight, head.gate_bias, head.mean.weight, head.mean.bias, head.log_variance.exp()
        ),
        active,
    )
    x, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    raw = head(x)
    torch.testing.assert_close(head.loss(raw, y, reduction="none"), -law.log_prob(x, y))
    torch.testing.assert_close(head.loss(raw, y[:, None]), -law.log_prob(x, y).mean())
    torch.testing.assert_close(head.predict(raw), law.predict(x))
    torch.testing.assert_close(head.gate(raw), law.gate(x))


def test_density_written_out_for_one_row():
    head = filled(features=2, experts=3, active=2)
    x, y = torch.tensor([[0.7, -1.2]], dtype=torch.float64), 0.4
    scores, means = (head(x)[0, part].tolist() for part in (slice(3), slice(3, 6)))
    best = sorted(range(3), key=lambda i: -scores[i])[:2]
    weights = {i: torch.tensor(scores[i] + head.gate_bias[i].item()).exp().item() for i in best}
    total = sum(weights.values())
    density = sum(
        w / total * norm.pdf(y, means[i], head.log_variance[i].div(2).exp().item())
        for i, w in weights.items()
    )
    expected = -torch.tensor(density, dtype=torch.float64).log()
    torch.testing.assert_close(head.loss(head(x), torch.tensor([y])), expected, rtol=1e-5, atol=1e-6)
    assert head.predict(head(x)).item() == pytest.approx(
        sum(w / total * means[i] for i, w in weights.items())
    )


def test_one_expert_is_a_gaussian():
    head = filled(experts=1, active=1)
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    mean, scale = head.mean(x)[:, 0].detach(), head.log_variance.div(2).exp().item()
    expected = -norm.logpdf(y.numpy(), mean.numpy(), scale).mean()
    assert head.loss(head(x), y).item() == pytest.approx(expected)
    torch.testing.assert_close(head.predict(head(x)), mean)


def test_gradient_of_the_loss_reaches_selected_experts_only():
    head = filled(experts=4, active=2)
    x, y = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, dtype=torch.float64)
    kept = head.gate(head(x))[0] > 0
    head.loss(head(x), y).backward()
    assert kept.sum() == 2
    for parameter in (head.score.weight, head.mean.weight, head.log_variance, head.gate_bias):
        assert torch.isfinite(parameter.grad).all()
        moved = parameter.grad.flatten(1).abs().sum(1) > 0 if parameter.ndim == 2 else parameter.grad != 0
        assert torch.equal(moved, kept)
    raw = head(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda raw: head.loss(raw, y), (raw,))


def test_noiseless_targets_stop_at_the_floor():
    head = filled(experts=1, active=1)
    x = torch.randn(4, 3, dtype=torch.float64)
    head.log_variance.data.fill_(-1e4)
    expected = -norm.logpdf(0.0, 0.0, 1e-3)
    assert head.loss(head(x), head.mean(x)[:, 0].detach()).item() == pytest.approx(expected)


def test_training_finds_the_law_and_the_noise_of_each_region():
    torch.manual_seed(0)
    x = 2 * torch.rand(3000, 1) - 1
    sd = torch.where(x < 0, 0.05, 0.5)
    mean = torch.where(x < 0, -1 - 2 * x, 2 * x)
    y = mean + sd * torch.randn(3000, 1)
    head = TopKMoEHead(1, experts=2, active=1)
    head.score.weight.data = torch.tensor([[1.0], [-1.0]])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = head.loss(head(x), y)
        loss.backward()
        optimizer.step()
    entropy = 0.5 * (norm(scale=0.05).entropy() + norm(scale=0.5).entropy())
    assert loss.item() == pytest.approx(entropy, abs=0.05)
    torch.testing.assert_close(head.log_variance.exp().sqrt(), torch.tensor([0.5, 0.05]), rtol=0.1, atol=0)
    assert (head.predict(head(x)) - mean[:, 0]).square().mean().sqrt() < 0.05


def test_through_the_engine(tmp_path):
    recipe = Recipe.of(data="friedman:n=400", head="topk_moe(experts=3, active=1)", epochs=8, lr=1e-2)
    prepared = Prepared.of(data.split(data.load(recipe.data), 0))
    result = run(recipe, prepared)
    predictor = result.predictor
    x, y = prepared.test
    raw = predictor.network(x)
    mean = raw[:, 3:].gather(1, raw[:, :3].argmax(1, keepdim=True))[:, 0]
    expected = prepared.preprocessor.inverse_target(mean)
    torch.testing.assert_close(predictor.values(x), expected)
    truth = prepared.preprocessor.inverse_target(y)
    assert result.metrics["rmse"] == pytest.approx((expected - truth).square().mean().sqrt().item(), rel=1e-5)
    assert result.metrics["r2"] > 0.5
    predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    assert torch.equal(again.values(x), predictor.values(x))


@pytest.mark.parametrize("bad", [{"in_features": 0}, {"experts": 0}, {"active": 0}, {"active": 5}], ids=str)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TopKMoEHead(**{"in_features": 3, **bad})


def test_bad_targets():
    head, raw = TopKMoEHead(3), torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"target must have shape \(4,\)"):
        head.loss(raw, torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        head.loss(raw, torch.full((4,), torch.nan))
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        head.loss(raw, torch.zeros(4).long())
    with pytest.raises(ValueError, match="8 columns"):
        head.predict(torch.zeros(4, 7))
