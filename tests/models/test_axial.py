"""The axial model of images: what each pixel depends on, probabilities, and sampling both ways."""

import itertools

import pytest
import torch

from logitkit.models import AxialEncoder, AxialImageLM


def make(size=(3, 4), vocabulary=3, channels=1):
    torch.manual_seed(0)
    model = AxialImageLM(size, vocabulary, dim=8, heads=2, channels=channels, outer=2, inner=1).double()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("channels", [1, 2])
def test_a_pixel_depends_on_every_one_before_it_and_no_other(channels):
    """Changing a pixel changes the logits of all later ones, and of no earlier one or itself."""
    model = make(channels=channels)
    x = torch.randint(3, (1, channels, 3, 4), generator=torch.Generator().manual_seed(1))
    logits = model(x).view(-1, 3)
    for pixel in range(channels * 12):
        changed = x.clone().flatten()
        changed[pixel] = (changed[pixel] + 1) % 3
        moved = (model(changed.view(x.shape)).view(-1, 3) - logits).abs().sum(-1)
        assert moved[: pixel + 1].max() == 0
        assert (moved[pixel + 1 :] > 0).all()


def test_probabilities_of_all_small_images_sum_to_1():
    model = make(size=(2, 2), vocabulary=2)
    images = torch.tensor(list(itertools.product(range(2), repeat=4))).view(16, 1, 2, 2)
    torch.testing.assert_close(
        model.log_prob(images).exp().sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-9
    )
    model = make(size=(1, 2), vocabulary=2, channels=2)
    total = model.log_prob(images.view(16, 2, 1, 2)).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 2])
def test_fast_sampling_draws_the_same_images(channels):
    model = make(channels=channels)
    ran = []
    model.outer.register_forward_hook(lambda *_: ran.append(1))
    fast = model.sample(4, generator=torch.Generator().manual_seed(2))
    assert len(ran) == channels * 3
    slow = model.sample(4, fast=False, generator=torch.Generator().manual_seed(2))
    assert torch.equal(fast, slow)
    assert len(torch.unique(fast)) == 3


def test_samples_come_from_the_distribution():
    model = make(size=(1, 2), vocabulary=2)
    images = torch.tensor(list(itertools.product(range(2), repeat=2))).view(4, 1, 1, 2)
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    counts = torch.bincount(2 * drawn[:, 0] + drawn[:, 1], minlength=4) / 20_000
    torch.testing.assert_close(counts.double(), model.log_prob(images).exp(), rtol=0, atol=0.015)


def test_bad_images_and_sizes():
    model = make()
    for bad, match in (
        (torch.zeros(1, 1, 3, 3).long(), "shape"),
        (torch.zeros(1, 1, 3, 4), "whole numbers"),
        (torch.full((1, 1, 3, 4), 3), "lie in"),
    ):
        with pytest.raises(ValueError, match=match):
            model(bad)
    with pytest.raises(ValueError, match="even and at least 2"):
        AxialImageLM((2, 2), 2, outer=3)
    with pytest.raises(ValueError, match="depth must be at least 2"):
        AxialEncoder((1, 8, 8), depth=1)


def test_the_encoder_sees_everything_after_two_blocks():
    model = AxialEncoder((1, 5, 6), depth=2, dim=8, heads=2).double()
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    model.forward_features(x)[0, 8, 0].backward()
    assert (x.grad.abs() > 0).all()
    places = model.positions()
    torch.testing.assert_close(places[1, 2] - places[1, 0], places[4, 2] - places[4, 0])
