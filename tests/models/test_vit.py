"""The vision transformer: shapes, one block against its equation, and patches."""

import pytest
import torch

from logitkit.models import ViT


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((1, 8, 8), 16),
        ((3, 16, 16), 16),
        ((1, 28, 28), 16),
        ((3, 64, 64), 16),
        ((2, 9, 17), 15),
        ((1, 4, 4), 16),
    ],
)
def test_shapes(shape, tokens):
    model, x = ViT(shape, depth=1), torch.randn(2, *shape)
    map = model.forward_features(x)
    assert map.shape == (2, tokens, 64)
    torch.testing.assert_close(model(x), map.mean(1))


def test_a_block_is_the_equation():
    block = ViT((1, 8, 8), depth=1, dim=8, heads=2).double().blocks[0]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = block.attention.in_proj(block.norm1(x)).chunk(3, dim=-1)
    mixed = [
        torch.softmax(q[..., i : i + 4] @ k[..., i : i + 4].mT / 2, dim=-1) @ v[..., i : i + 4]
        for i in (0, 4)
    ]
    h = x + block.attention.out_proj(torch.cat(mixed, dim=-1))
    torch.testing.assert_close(block(x), h + block.mlp(block.norm2(h)))


def test_tokens_are_patches_in_reading_order():
    model = ViT((1, 16, 16), depth=1)  # 4x4 patches, 4 to a row
    x = torch.zeros(1, 1, 16, 16)
    x[..., 4:8, 12:16] = 1.0
    changed = (model.patches(x) - model.patches(0 * x)).flatten(2).abs().sum(1)[0].nonzero().flatten()
    assert changed.tolist() == [7]


def test_position_matters():
    model, x = ViT((1, 8, 8), depth=1), torch.randn(1, 1, 8, 8)
    assert not torch.allclose(model(x), model(x.flip(-1)), atol=1e-4)


@pytest.mark.parametrize(
    "bad", [{"depth": 0}, {"dim": 10, "heads": 4}, {"heads": 0}, {"dropout": 1.0}], ids=str
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ViT((1, 8, 8), **bad)


def test_vectors_are_sent_to_mlp():
    with pytest.raises(ValueError, match="mlp and linear read any shape"):
        ViT((64,))
