"""Soft tokens against hard decoding, sums written out, and numbers of the authors' code."""

import math

import pytest
import torch

from logitkit.bottleneck import SoftToken, soft_token


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    return logits, torch.randn(6, 5, generator=generator, dtype=torch.float64)


def test_values_of_the_official_code():
    """The weighted codes in decode_soft of github.com/SwinTransformer/AiT, which multiplies logits by 0.8."""
    logits = (3 * torch.sin(torch.arange(40).double() * 1.1)).view(2, 5, 2, 2).permute(0, 2, 3, 1)
    codes = torch.cos(torch.arange(15).double()).view(5, 3)
    found, _ = SoftToken(codes, temperature=1 / 0.8)(logits)
    expected = [0.8102960958645375, 0.6358258627207456, -0.12321973634730149]
    assert found[1, 1, 0].tolist() == pytest.approx(expected, rel=1e-9)
    assert found.sum().item() == pytest.approx(1.8647813886886278, rel=1e-9)


def test_it_is_the_sum_over_codes():
    logits, codes = example()
    found, info = SoftToken(codes, temperature=0.7)(logits)
    for i in range(3):
        for j in range(4):
            e = [math.exp(v / 0.7) for v in logits[i, j].tolist()]
            weights = [v / sum(e) for v in e]
            z = [sum(w * c for w, c in zip(weights, codes[:, d].tolist(), strict=True)) for d in range(5)]
            assert found[i, j].tolist() == pytest.approx(z, rel=1e-10)
            assert info.weights[i, j].tolist() == pytest.approx(weights, rel=1e-10)
            assert info.tokens[i, j].item() == weights.index(max(weights))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_without_temperature_it_is_the_likeliest_code(temperature):
    logits, codes = example()
    torch.testing.assert_close(
        soft_token(logits, codes, temperature), codes[logits.argmax(-1)], atol=1e-5, rtol=0
    )
    if temperature > 1e-300:
        found = soft_token(logits.float(), codes.float(), temperature)
        torch.testing.assert_close(found, codes[logits.argmax(-1)].float(), atol=1e-5, rtol=0)


def test_equal_logits_give_the_mean_of_the_codebook():
    _, codes = example()
    found = soft_token(torch.full((2, 6), 3.0, dtype=torch.float64), codes)
    torch.testing.assert_close(found, codes.mean(dim=0).expand(2, 5), atol=1e-12, rtol=0)
    torch.testing.assert_close(soft_token(example()[0], codes, 1e9), codes.mean(dim=0).expand(3, 4, 5))


def test_the_gradient_reaches_the_logits_and_is_a_covariance():
    """d z / d l_k = w_k (E_k - z) / T; the codebook stays as it is."""
    logits, codes = example()
    part = SoftToken(codes, temperature=2.0)
    leaf = logits.requires_grad_()
    z, info = part(leaf)
    z[..., 1].sum().backward()
    expected = info.weights * (codes[:, 1] - z[..., 1:2]) / 2.0
    torch.testing.assert_close(leaf.grad, expected.detach())
    assert leaf.grad.abs().min() > 0
    assert not list(part.parameters())
    assert "codebook" in part.state_dict()
    assert not codes[info.tokens].requires_grad


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_huge_logits_are_finite(dtype, size):
    logits, codes = (t.to(dtype) for t in example())
    leaf = (size * logits).requires_grad_()
    z = soft_token(leaf, codes)
    z.sum().backward()
    assert z.dtype == dtype
    assert torch.isfinite(z).all()
    assert torch.isfinite(leaf.grad).all()


def test_a_learned_table_learns():
    logits, codes = example()
    codes.requires_grad_()
    soft_token(logits, codes)[..., 0].sum().backward()
    torch.testing.assert_close(codes.grad[:, 0], logits.softmax(-1).sum(dim=(0, 1)))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"codebook .* \(6,\)"):
        SoftToken(torch.zeros(6))
    with pytest.raises(ValueError, match=r"at least 2 codes, got \(1, 4\)"):
        SoftToken(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        SoftToken(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        SoftToken(torch.zeros(3, 4), temperature=0)
