"""Helpers of the loss claims, against hand calculation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from logitkit import data
from logitkit.claims.base import Trial, accuracy
from logitkit.claims.losses.bias_loss import CompactCNN, washed_out
from logitkit.claims.losses.dco import pass_rates
from logitkit.claims.losses.ensloss import Exponential, Hinge
from logitkit.claims.losses.z_loss import SquaredError
from logitkit.engine import Diverged, Prepared, Recipe


def test_accuracy_counts_labels_among_the_k_highest() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    y = torch.tensor([0, 2, 0, 2])
    assert [accuracy(nn.Identity(), (scores, y), k) for k in (1, 2, 3)] == [25.0, 75.0, 100.0]


def test_pass_rates_are_the_chance_of_one_right_sample() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [200.0, 0.0]])
    found = pass_rates(nn.Identity(), (logits, torch.tensor([1, 0])))
    assert found == pytest.approx([100 * (1 + 1 - 0.75**n) / 2 for n in (1, 4, 16, 64)])


def test_fixed_losses_against_their_formulas() -> None:
    logits, target = torch.tensor([[0.0, 2.0], [0.5, 0.0]]), torch.tensor([1, 1])
    assert Exponential()(logits, target).item() == pytest.approx((math.exp(-2) + math.exp(0.5)) / 2)
    assert Hinge()(logits, target).item() == pytest.approx((0 + 1.5) / 2)
    assert SquaredError()(logits, target).item() == pytest.approx((1 + 0.25 + 1) / 2)


def test_washed_out_images_are_pale_noisy_and_mislabelled_in_training_only() -> None:
    split = data.split(data.load("shapes:n=600,size=16,sd=0"), 0)
    spoilt = washed_out(split, 0)
    washed = spoilt.train.extras["washed"]
    assert int(washed.sum()) == round(0.3 * len(washed))
    assert torch.equal(spoilt.train.x[~washed], split.train.x[~washed])
    assert torch.equal(spoilt.train.y[~washed], split.train.y[~washed])
    assert (spoilt.train.y[washed] == split.train.y[washed]).double().mean() < 0.35
    assert spoilt.val is split.val
    assert spoilt.test is split.test
    before = split.train.x[washed]
    mean = before.mean(dim=(1, 2, 3), keepdim=True)
    noise = spoilt.train.x[washed] - (mean + 0.1 * (before - mean))
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(0.1, abs=0.01)


def test_compact_network_is_compact_and_lets_contrast_through() -> None:
    network = CompactCNN((1, 24, 24)).eval()
    assert sum(p.numel() for p in network.parameters()) + 6 * 65 <= 30_000
    x = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0)) - 0.5
    full, pale = (network.forward_features(image).var(dim=(1, 2, 3)) for image in (x, 0.1 * x))
    assert torch.all(pale < 0.05 * full)


def test_tuned_takes_the_best_on_validation_and_passes_over_what_diverges() -> None:
    trial, prepared = Trial(seeds=(0,)), Prepared.of(data.split(data.load("iris"), 0))
    good, slow = (Recipe.of(model="linear", optimizer="sgd", lr=lr, epochs=5) for lr in (0.1, 1e-9))
    burst = Recipe.of(model="mlp(hidden=(8,))", optimizer="sgd", lr=1e30, epochs=5)  # layers multiply to inf
    assert trial.tuned(prepared, [burst, slow, good]).recipe == good
    with pytest.raises(Diverged):
        trial.tuned(prepared, [burst, burst])


def test_train_shows_the_network_after_every_epoch() -> None:
    trial, prepared = Trial(seeds=(0,)), Prepared.of(data.split(data.load("iris"), 0))
    modes: list[bool] = []
    trainer = trial.train(
        prepared, Recipe.of(model="linear", epochs=3), lambda t: modes.append(t.network.training)
    )
    assert modes == [False] * 3
    assert len(trainer.progress.curve) == 3
