"""The sigmoid loss against a loop, and its two learned numbers."""

import math

import pytest
import torch

from logitkit.contrast import SigLIPLoss


def test_loop_over_plain_floats():
    a, b = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = SigLIPLoss()
    with torch.no_grad():
        loss.log_scale.fill_(math.log(3))
        loss.bias.fill_(-0.5)
    cos = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).tolist()
    total = 0.0
    for i in range(6):
        for j in range(6):
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (3 * cos[i][j] - 0.5)))
    assert loss(torch.stack([a, b])).item() == pytest.approx(total / 6, abs=1e-6)


def test_scale_and_bias_start_as_in_the_paper_and_learn():
    loss = SigLIPLoss()
    assert loss.log_scale.exp().item() == pytest.approx(10)
    assert loss.bias.item() == -10
    views = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    loss(views).backward()
    assert loss.log_scale.grad.abs() > 0
    assert loss.bias.grad.abs() > 0
