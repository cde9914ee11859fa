"""Blocks without norm and activation: affine without attention, and as the loop over plain floats."""

import pytest
import torch

from logitkit import data
from logitkit.engine import Prepared, Recipe
from logitkit.engine.network import build_network
from logitkit.layers import NonlinearityLight


def test_loop_over_plain_floats():
    part = NonlinearityLight(2, 3)
    with torch.no_grad():
        part.scale.fill_(0.5)
    (w1, b1), (w2, b2) = ((f.weight.tolist(), f.bias.tolist()) for f in part.layers)
    x = [0.3, -2.0]
    h = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(w1, b1, strict=True)]
    y = [0.5 * (sum(w * v for w, v in zip(row, h, strict=True)) + b) for row, b in zip(w2, b2, strict=True)]
    torch.testing.assert_close(part(torch.tensor(x)), torch.tensor(y))


def test_without_hidden_it_is_nothing():
    part, x = NonlinearityLight(4), torch.randn(2, 3, 4)
    assert torch.equal(part(x), x)
    assert list(part.parameters()) == []
    assert NonlinearityLight(4, 8).scale.item() == 1
    with pytest.raises(ValueError, match="hidden"):
        NonlinearityLight(4, 0)


def test_a_transformer_of_it_is_affine_but_for_its_attention():
    prepared = Prepared.of(data.split(data.load("recall"), 0))
    network = build_network(
        Recipe.of(data="recall", model="transformer", layers="nonlinearity_light"), prepared.shape
    ).double()
    backbone = network.backbone
    for block in backbone.blocks:
        with torch.no_grad():  # weights are equal for all keys, and do not depend on the tokens
            block.attention.in_proj.weight[: 2 * backbone.out_features] = 0
            block.attention.in_proj.bias[: 2 * backbone.out_features] = 0
    x, y = torch.randn(2, 1, 6, backbone.out_features, dtype=torch.float64)
    run = torch.nn.Sequential(backbone.blocks, backbone.norm)
    torch.testing.assert_close(run(0.3 * x + 0.7 * y), 0.3 * run(x) + 0.7 * run(y))
