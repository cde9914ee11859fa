"""iLLaMA: the mask's two ends, the numbers of the authors' block, what a token sees, and the schedule."""

import pytest
import torch

from logitkit.attention import SoftmaxAttention
from logitkit.models import ILLaMA, SoftCausalMask, linear_mask_schedule
from logitkit.models.illama import DecoderBlock, SoftCausalAttention


def wave(*shape, k=1.0):
    n = torch.Size(shape).numel()
    return torch.sin(k * torch.arange(1, n + 1, dtype=torch.float64) * 1.7).view(shape)


def mask_of(rate, n=5):
    return (rate + (1 - rate) * torch.ones(n, n, dtype=torch.float64).tril()).log()


@pytest.mark.parametrize("mode", ["post", "logit"])
def test_the_softest_mask_is_none_and_the_hardest_is_causal(mode):
    part, plain = SoftCausalAttention(8, 2, mode).double(), SoftmaxAttention(8, 2, rope=True).double()
    plain.load_state_dict(part.state_dict())
    x = wave(2, 5, 8)
    torch.testing.assert_close(part(x, attn_mask=mask_of(1.0))[0], plain(x)[0])
    out, weights = part(x, attn_mask=mask_of(0.0), need_weights=True)
    full = plain(x, need_weights=True)[1]
    assert weights.triu(1).abs().max() == 0
    if mode == "logit":
        torch.testing.assert_close(out, plain(x, is_causal=True)[0])
    else:
        torch.testing.assert_close(weights.sum(-1), full.tril().sum(-1))


def test_numbers_of_the_authors_block():
    """techmonsterwang/iLLaMA, models/illama.py, Block with a hidden width of 21 and a mask of r = 0.3, in
    float64 on sine waves. Theirs turns neighbouring features together, ours the halves."""
    block = DecoderBlock(8, 2, "post").double()
    order = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])
    order = torch.cat([order, 8 + order, torch.arange(16, 24)])
    attention, mlp = block.attention, block.mlp
    with torch.no_grad():
        block.norm1.weight.copy_(wave(8)), block.norm2.weight.copy_(wave(8, k=1.5))
        attention.in_proj.weight.copy_(wave(24, 8, k=1.1)[order])
        attention.in_proj.bias.copy_(wave(24, k=1.2)[order])
        attention.out_proj.weight.copy_(wave(8, 8, k=1.3)), attention.out_proj.bias.copy_(wave(8, k=1.4))
        mlp.both.weight.copy_(torch.cat([wave(21, 8, k=1.6), wave(21, 8, k=1.8)]))
        mlp.out.weight.copy_(wave(8, 21, k=1.7))
    x = wave(2, 5, 8, k=0.3).requires_grad_()
    out = block(x, mask_of(0.3))
    out.square().sum().backward()
    for found, expected in (
        (out[0, 2, :4], [10.7026751, 9.6057751, -4.1437588, -5.4102069]),
        (out[1, 0, -4:], [-4.7487476, 0.1684663, 9.883554, 2.2458739]),
        (x.grad[1, 3, :4], [-3.18444, 6.69296, -114.52999, 60.14692]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "mode", "sees"),
    [("first", "logit", False), ("first", "post", True), ("last", "logit", True), ("last", "post", True)],
)
def test_which_pixels_the_class_token_sees(cls, mode, sees):
    """A first one sees none, but for what the sum of the softmax tells of them before the mask."""
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    model = ILLaMA((1, 4, 4), depth=2, dim=8, heads=2, patch=1, cls=cls, mask_mode=mode).double().eval()
    (gradient,) = torch.autograd.grad(model(x)[0, 0], x)
    assert (gradient.abs() > 0).all() if sees else gradient.abs().max() == 0


def test_a_patch_changes_no_token_before_it():
    model = ILLaMA((1, 4, 4), depth=2, dim=8, heads=2, patch=2, mask_mode="logit").double().eval()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    changed = x.clone()
    changed[..., 2:, :2] += 1  # the third of four patches
    moved = (model.forward_features(changed) - model.forward_features(x)).abs().sum(-1)[0]
    assert moved[:2].max() == 0
    assert (moved[2:] > 0).all()


def test_the_mask_hardens_in_training_and_is_hard_in_evaluation():
    mask = SoftCausalMask(5)
    schedule = linear_mask_schedule(8, 5)
    torch.testing.assert_close(schedule, torch.tensor([1, 0.75, 0.5, 0.25, 0, 0, 0, 0]))
    for rate in schedule:
        hard = torch.ones(3, 3).tril()
        assert torch.equal(mask.eval()(3), hard)
        torch.testing.assert_close(mask.train()(3), rate + (1 - rate) * hard)
    mask.update(2)
    assert mask.rate() == 0.5
    other = SoftCausalMask(5)
    other.load_state_dict(mask.state_dict())
    assert other.rate() == 0.5


def test_swiglu_written_out():
    mlp = DecoderBlock(12, 2, "post").mlp
    first, second = mlp.both.weight.chunk(2)
    x = torch.randn(3, 12)
    expected = (x @ first.T * torch.sigmoid(x @ first.T) * (x @ second.T)) @ mlp.out.weight.T
    torch.testing.assert_close(mlp(x), expected)
    assert first.shape == (32, 12)


def test_bad_settings():
    for bad in ({"cls": "middle"}, {"mask_mode": "pre"}, {"depth": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            ILLaMA((1, 8, 8), **bad)
    with pytest.raises(ValueError, match="got 9 of 8"):
        linear_mask_schedule(8, 9)
