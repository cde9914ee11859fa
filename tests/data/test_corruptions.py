"""Corruptions and stream orders."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from logitkit import data
from logitkit.data.corruptions import CORRUPTIONS, corrupt, stream_order
from logitkit.errors import InputError


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_zero_changes_nothing_and_more_changes_more(kind: str) -> None:
    x = data.load("attributes:n=40,size=16").x
    change = [float((corrupt(x, kind, s, generator()) - x).abs().mean()) for s in (0.0, 0.3, 1.0)]
    assert change[0] < 1e-6
    assert change[0] < change[1] < change[2]
    hard = corrupt(x, kind, 1.0, generator())
    assert hard.shape == x.shape
    assert hard.min() >= 0
    assert hard.max() <= 1
    assert torch.equal(hard, corrupt(x, kind, 1.0, generator()))


def test_noise_and_occlusion_have_the_size_they_say() -> None:
    grey = torch.full((200, 1, 20, 20), 0.5)
    assert float((corrupt(grey, "gaussian", 0.25, generator()) - 0.5).std()) == pytest.approx(0.1, rel=0.02)
    assert float((corrupt(grey, "impulse", 0.5, generator()) != 0.5).float().mean()) == pytest.approx(
        0.2, abs=0.01
    )
    assert float((corrupt(grey * 0, "occlude", 1.0, generator()) > 0).float().mean()) == 0.25


def test_blur_agrees_with_scipy() -> None:
    x = torch.rand(1, 1, 24, 24, generator=generator())
    oracle = gaussian_filter(x[0, 0].numpy(), 1.0, mode="mirror", radius=3)
    assert torch.allclose(corrupt(x, "blur", 0.5, generator())[0, 0], torch.from_numpy(oracle), atol=1e-5)


def test_streams_are_permutations_with_the_order_they_say() -> None:
    y = torch.arange(1000) % 10
    for kind in ("iid", "sorted", "dirichlet"):
        order = stream_order(y, kind, generator())
        assert order.sort().values.tolist() == list(range(1000))

    def switches(kind: str) -> int:
        return int((y[stream_order(y, kind, generator())].diff() != 0).sum())

    assert switches("sorted") == 9
    assert 9 < switches("dirichlet") < switches("iid")
    assert switches("iid") > 850


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="Did you mean 'gaussian'"):
        corrupt(torch.zeros(1, 1, 8, 8), "gausian", 0.5, generator())
    with pytest.raises(InputError, match="severity"):
        corrupt(torch.zeros(1, 1, 8, 8), "blur", 1.5, generator())
    with pytest.raises(InputError, match="iid, sorted or dirichlet"):
        stream_order(torch.zeros(3), "random", generator())
