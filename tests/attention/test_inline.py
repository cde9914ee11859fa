"""InLine attention against its dense weights, the authors' numbers, and what it can tell apart."""

import pytest
import torch
from torch.nn import functional as F

from logitkit.attention import InlineAttention, inline_attention
from logitkit.ops import linear_attention


def inputs(n, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, dim, generator=g, dtype=torch.float64) for _ in range(3)]


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


PHI = {
    "identity": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "exp": lambda x: torch.exp(0.2 * x),
}


@pytest.mark.parametrize("phi", PHI)
def test_the_weights_of_the_paper(phi):
    """w_ij = s/n phi(q_i) . phi(k_j) + (1 - s phi(q_i) . kbar) / n over the keys that are seen."""
    q, k, v = inputs(7)
    seen = torch.tensor([True, True, False, True, True, False, True])
    pq, pk = PHI[phi](q), PHI[phi](k)[:, :, seen]
    n, s = 5, 8**-0.5
    w = s / n * pq @ pk.mT + (1 - s * pq @ pk.mean(-2, keepdim=True).mT) / n
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    found = inline_attention(q, k, v, seen[None], phi=phi)
    torch.testing.assert_close(found, w @ v[:, :, seen], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("phi", "first", "last", "gradient"),
    [
        (
            "identity",
            [0.0426966161, 1.5634314135, -0.4191903208, -1.511599073],
            [-0.6670604378, 2.4674334461, -0.2541204991, -2.5150604221],
            [11.09480068, 7.29478396, -16.2056339, 1.78927422],
        ),
        (
            "exp",
            [-0.2193181349, 1.2623825317, 0.0242150424, -1.477714679],
            [-0.7010453204, 2.5010049073, -0.2403633877, -2.5569209388],
            [11.56069387, 9.1647631, -17.12468371, 0.09569067],
        ),
    ],
)
def test_numbers_of_the_authors_code(phi, first, last, gradient):
    """LeapLabTHU/InLine, models/inline_swin.py, InLineAttention, in float64 on sine waves."""
    part = InlineAttention(4, 2, grid=(3, 3), phi=phi).double()
    theirs = [part.in_proj, part.out_proj, part.kernels[0], part.kernels[2]]
    with torch.no_grad():
        for i, p in enumerate(p for layer in theirs for p in (layer.weight, layer.bias)):
            p.copy_(wave(*p.shape, k=1 + 0.1 * i))
    x = wave(2, 9, 4, k=0.3).requires_grad_()
    out = part(x)[0]
    out.square().sum().backward()
    for found, expected in ((out[0, 4], first), (out[1, 0], last), (x.grad[1, 3], gradient)):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_a_query_without_features_gives_the_mean():
    q, k, v = inputs(5)
    torch.testing.assert_close(inline_attention(0 * q, k, v), v.mean(-2, keepdim=True).expand_as(v))
    nobody = torch.zeros(1, 5, dtype=torch.bool)
    assert torch.equal(inline_attention(q, k, v, nobody), torch.zeros_like(v))


def test_it_tells_queries_apart_that_division_does_not():
    q, k, v = inputs(5)
    divided = linear_attention(q, k, v, feature=F.relu)
    torch.testing.assert_close(linear_attention(3 * q, k, v, feature=F.relu), divided)
    ours = inline_attention(q, k, v, phi="relu")
    assert (inline_attention(3 * q, k, v, phi="relu") - ours).abs().max() > 0.1
    constant = torch.ones_like(v)
    torch.testing.assert_close(inline_attention(q, k, constant), constant)


def test_the_local_term():
    """Each image's own kernels, made of its mean token, over its values."""
    part = InlineAttention(4, 2, grid=(2, 3)).double()
    x = wave(2, 6, 4, k=0.7)
    plain = InlineAttention(4, 2, grid=(2, 3), local=False).double()
    plain.load_state_dict(part.state_dict(), strict=False)
    value = part.in_proj(x)[..., 8:]
    near = torch.zeros_like(x)
    for b in range(2):
        kernel = part.kernels(x[b].mean(0)[None, :, None]).view(4, 3, 3)
        for i in range(6):
            for j in range(6):
                down, right = j // 3 - i // 3 + 1, j % 3 - i % 3 + 1
                if 0 <= down < 3 and 0 <= right < 3:
                    near[b, i] += kernel[:, down, right] * value[b, j]
    expected = plain(x)[0] + near @ part.out_proj.weight.T
    torch.testing.assert_close(part(x)[0], expected)
    with torch.no_grad():
        part.kernels[2].weight.zero_()
        part.kernels[2].bias.zero_()
    torch.testing.assert_close(part(x)[0], plain(x)[0])


def test_refusals():
    q, k, v = inputs(4)
    with pytest.raises(ValueError, match="no causal form"):
        inline_attention(q, k, v, is_causal=True)
    with pytest.raises(ValueError, match=r"phi must be one of.*'elu'"):
        inline_attention(q, k, v, phi="elu")
    with pytest.raises(ValueError, match=r"square grid.* got 6"):
        InlineAttention(8, 2)(torch.randn(1, 6, 8))
