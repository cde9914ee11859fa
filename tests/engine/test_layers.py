"""The slot `layers`: what goes where in a model, and penalties that layers add to the loss."""

import pytest
import torch
from torch import nn

from logitkit import data
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.engine.network import build_network
from logitkit.engine.objective import Batch
from logitkit.errors import InputError
from logitkit.layers import BinaryLinear, OrthogonalConv2d, ReLUSNNK, SpartanBlock, conv_matrix
from logitkit.models import CNN, MLP, ViT
from logitkit.models.vit import Block


@pytest.fixture(scope="module")
def digits():
    return Prepared.of(data.split(data.load("digits"), 0))


@pytest.mark.parametrize(
    ("part", "model", "kind", "instead", "count"),
    [
        ("orthogonal_conv", "cnn", OrthogonalConv2d, nn.Conv2d, 3),
        ("snnk", "mlp", ReLUSNNK, nn.Linear, 2),
        ("spartan", "vit", SpartanBlock, Block, 4),
    ],
)
def test_a_layer_takes_the_place_that_its_card_names(digits, part, model, kind, instead, count):
    network = build_network(Recipe.of(layers=part, model=model), digits.shape)
    modules = list(network.backbone.modules())
    assert sum(type(m) is kind for m in modules) == count
    assert not any(type(m) is instead for m in modules)
    x = digits.train[0][:4]
    assert network(x).shape == (4, 10)
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("model", ["vit(depth=2)", "mlp(hidden=(128,))"])
def test_linear_layers_but_the_first_and_the_last(digits, model):
    """Those of a transformer's blocks: projections of attention, and the feed-forward part."""
    network = build_network(Recipe.of(layers="binary_linear(act_bits=32)", model=model), digits.shape)
    found = {name for name, m in network.named_modules() if isinstance(m, BinaryLinear)}
    blocks = {
        f"backbone.blocks.{i}.{name}"
        for i in range(2)
        for name in ("attention.in_proj", "attention.out_proj", "mlp.0", "mlp.2")
    }
    assert found == (blocks if "vit" in model else {"backbone.layers.0"})
    network(digits.train[0][:4]).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_places_that_are_left_alone_draw_the_same_numbers():
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(after // 8, after)]
    torch.manual_seed(0)
    found = list(CNN((1, 8, 8)).parameters())
    assert all(torch.equal(a, b) for a, b in zip(nn.Sequential(*layers).parameters(), found, strict=True))
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 128))
    torch.manual_seed(0)
    found = list(MLP((1, 8, 8)).parameters())
    assert all(torch.equal(a, b) for a, b in zip(linear.parameters(), found, strict=True))


def test_a_block_sees_the_tokens_as_a_map():
    class Left(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x):
            return x.roll(-1, dims=3)

    model = ViT((1, 4, 12), depth=1, block=Left, patch=4)  # one row of three tokens
    tokens = torch.randn(2, 3, 64)
    torch.testing.assert_close(model.blocks(tokens), tokens[:, [1, 2, 0]])
    model = ViT((1, 12, 4), depth=1, block=Left, patch=4)  # one column
    torch.testing.assert_close(model.blocks(tokens), tokens)


def test_a_block_leaves_no_place_for_attention(digits):
    with pytest.raises(InputError, match="a block leaves no place"):
        build_network(Recipe.of(layers="spartan", model="vit", attention="sigmoid"), digits.shape)


def test_the_models_that_have_a_place_are_named(digits):
    with pytest.raises(InputError, match=r"model=mlp has no place for it; a model that has is cnn\."):
        build_network(Recipe.of(layers="orthogonal_conv", model="mlp"), digits.shape)
    # the block of maxim is the size of one
    with pytest.raises(InputError, match=r"model=maxim has no place for it; a model that has is vit\."):
        build_network(Recipe.of(layers="spartan", model="maxim"), digits.shape)


def test_the_loss_of_a_run_includes_penalties(digits):
    """Against the matrix A of each convolution: N^2 L = |A A^T - 1|^2, or |A^T A - 1|^2 for fewer columns."""
    plain, penalised = (
        Trainer(Recipe.of(layers=f"orthogonal_conv(lam={lam})", model="cnn(width=8)", epochs=1), digits)
        for lam in (0.0, 0.3)
    )
    with torch.no_grad():
        expected = 0.0
        for layer in penalised.network.modules():
            if isinstance(layer, OrthogonalConv2d):
                layer.weight.mul_(1.5)
                a = conv_matrix(layer.weight.double(), 5)
                gram = a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a
                expected += 0.3 * float((gram - torch.eye(len(gram))).square().sum()) / 25
    plain.network.load_state_dict(penalised.network.state_dict())
    batch = Batch(digits.train[0][:8], digits.train[1][:8], torch.arange(8))
    with torch.no_grad():
        added = penalised.objective(penalised.network, batch) - plain.objective(plain.network, batch)
    assert added.item() == pytest.approx(expected, rel=1e-5)


def test_a_heads_own_penalty_is_no_layers(digits):
    """`fourier` has a method of that name, which takes features and is for its user to call."""
    trainer = Trainer(Recipe.of(head="fourier", model="linear", epochs=1), digits)
    batch = Batch(digits.train[0][:8], digits.train[1][:8], torch.arange(8))
    before = trainer.objective(trainer.network, batch)
    trainer.network.head.lam = 1.0
    assert torch.equal(trainer.objective(trainer.network, batch), before)
