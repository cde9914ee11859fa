"""The causal transformer: what a position may see, and its parts put together by hand."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.models import Transformer


def make(**settings):
    torch.manual_seed(0)
    return Transformer((12,), vocabulary=20, dim=16, **settings).eval()


def test_a_position_sees_itself_and_what_came_before():
    model = make()
    x = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.forward_features(x)
    for place in (0, 5, 11):
        changed = x.clone()
        changed[:, place] = (changed[:, place] + 1) % 20
        with torch.no_grad():
            moved = (model.forward_features(changed) - expected).abs().amax(dim=(0, 2))
        assert float(moved[:place].max() if place else 0.0) < 1e-6
        assert float(moved[place:].min()) > 1e-6
    torch.testing.assert_close(model.forward_features(x[:, :7]), expected[:, :7])
    assert torch.equal(model(x), expected[:, -1])


def test_one_block_is_attention_and_mlp_on_normalised_inputs():
    model = make(depth=1, heads=2)
    block = model.blocks[0]
    x = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(2))
    z = model.embedding.weight[x] + model.position[:9]
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    mixing, out = block.attention.in_proj, block.attention.out_proj
    attention.load_state_dict(
        {
            "in_proj_weight": mixing.weight, "in_proj_bias": mixing.bias,
            "out_proj.weight": out.weight, "out_proj.bias": out.bias,
        }
    )  # fmt: skip
    h = F.layer_norm(z, (16,))
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    z = z + attention(h, h, h, attn_mask=hidden, need_weights=False)[0]
    z = z + block.mlp(F.layer_norm(z, (16,)))
    torch.testing.assert_close(model.forward_features(x), F.layer_norm(z, (16,)), rtol=1e-4, atol=1e-5)


def test_what_it_refuses():
    for settings, message in (
        ({"vocabulary": 1}, "vocabulary must be at least 2, got 1"),
        ({"heads": 3}, "multiple of heads"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"input_shape": (1, 8, 8)}, "reads tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            Transformer(**{"input_shape": (12,), "vocabulary": 20, "dim": 16, **settings})
