"""Softmax attention against torch's module and function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.attention import SoftmaxAttention, softmax_attention


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_module(bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64)
    ours = SoftmaxAttention(12, 3, bias=bias).double().load_torch(theirs)
    x, y = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    hidden = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden[:, 0] = False
    for masks in ({}, {"key_padding_mask": padding}, {"attn_mask": hidden}):
        found = ours(x, y, y, need_weights=True, **masks)
        torch.testing.assert_close(found, theirs(x, y, y, need_weights=True, **masks))


def test_the_function_is_torchs():
    q, k, v = draw(2, 3, 4, 8), draw(2, 3, 6, 8, seed=1), draw(2, 3, 6, 5, seed=2)
    mask = draw(4, 6, seed=3)
    torch.testing.assert_close(
        softmax_attention(q, k, v, mask, scale=0.3), F.scaled_dot_product_attention(q, k, v, mask, scale=0.3)
    )


def test_a_query_that_sees_no_key_gives_0():
    q, k, v = draw(1, 1, 3, 4), draw(1, 1, 5, 4, seed=1), draw(1, 1, 5, 4, seed=2)
    seen = torch.ones(3, 5, dtype=torch.bool)
    seen[1] = False
    assert (softmax_attention(q, k, v, seen)[0, 0, 1] == 0).all()


def test_a_module_of_another_shape_is_not_loaded():
    with pytest.raises(ValueError, match="the same embed_dim, heads and bias"):
        SoftmaxAttention(12, 3).load_torch(nn.MultiheadAttention(12, 4, batch_first=True))
