"""Linear attention against a loop over pairs of tokens."""

import pytest
import torch

from logitkit.attention import LinearAttention, linear_attention


def phi(x):
    return x + 1 if x > 0 else x.exp()


@pytest.mark.parametrize("causal", [False, True])
def test_loop_over_pairs(causal):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 3, generator=g, dtype=torch.float64) for _ in range(3))
    seen = torch.tensor([True, True, False, True, True])
    found = linear_attention(q, k, v, seen[None, None, None], is_causal=causal)
    for h in range(2):
        for i in range(5):
            top, total = torch.zeros(3, dtype=torch.float64), 1e-6
            for j in range(5):
                if seen[j] and (j <= i or not causal):
                    w = sum(phi(a) * phi(b) for a, b in zip(q[0, h, i], k[0, h, j], strict=True))
                    top, total = top + w * v[0, h, j], total + w
            torch.testing.assert_close(found[0, h, i], top / total)


def test_its_state_does_not_grow():
    part, state = LinearAttention(8, 2), None
    sizes = set()
    for _ in range(3):
        _, state = part.step(torch.randn(1, 4, 8), state)
        sizes.add(sum(x.numel() for x in state[1]))
    assert len(sizes) == 1


def test_what_it_has_no_meaning_for():
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="has no scale"):
        linear_attention(q, q, q, scale=0.5)
    with pytest.raises(ValueError, match="the same for every query"):
        linear_attention(q, q, q, torch.ones(3, 3, dtype=torch.bool))
