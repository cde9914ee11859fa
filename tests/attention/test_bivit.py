"""BiViT's attention: the binarisation against brute force and closed values, the module against a loop over
plain numbers and against numbers that the authors' code printed."""

import math

import pytest
import torch

from logitkit.attention import BiViTAttention, SoftmaxAttention, SoftmaxAwareBinarize, softmax_aware_attention
from logitkit.layers import BinaryLinear
from logitkit.ops import use


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_which_weights_stay():
    weights = torch.tensor([[0.4, 0.1, 0.0999, 0.2, 0.2001], [0.2] * 5, [0.0] * 5])
    expected = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0], [1.0] * 5, [0.0] * 5])
    assert torch.equal(SoftmaxAwareBinarize()(weights), expected)
    assert torch.equal(SoftmaxAwareBinarize(0.5)(weights)[0], torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert torch.equal(SoftmaxAwareBinarize(1.0)(weights)[0], torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))


def test_the_largest_weight_always_stays():
    weights = (4 * draw(200, 17)).softmax(-1)
    for ratio in (0.01, 0.25, 1.0):
        mask = SoftmaxAwareBinarize(ratio)(weights)
        assert mask.gather(-1, weights.argmax(-1, keepdim=True)).min() == 1


def test_the_scale_is_the_best_one():
    """Against a grid of scales, and 1 / n for uniform weights."""
    weights = (2 * draw(6, 16)).softmax(-1)
    found = SoftmaxAwareBinarize(scale="optimal")(weights)
    mask = SoftmaxAwareBinarize()(weights)
    grid = torch.linspace(0, 1, 2001, dtype=weights.dtype)
    errors = (weights[:, None] - grid[:, None] * mask[:, None]).square().sum(-1)
    assert (found.amax(-1) - grid[errors.argmin(-1)]).abs().max() <= grid[1] / 2
    uniform = torch.full((1, 8), 1 / 8, dtype=weights.dtype)
    torch.testing.assert_close(SoftmaxAwareBinarize(scale="optimal")(uniform), uniform)


@pytest.mark.parametrize(("t", "ours", "mean"), [(1, 0.32, 0.38), (2, 0.17, 0.57), (3, 0.10, 0.55)])
def test_the_error_of_long_tails(t, ours, mean):
    """The squared error over the squares of all weights, for scores N(0, t^2) of 64 keys, beside that of a
    threshold at the row's mean with the best scale of its own."""
    weights = (t * draw(20_000, 64)).softmax(-1)

    def error(approximation):
        return ((weights - approximation).square().sum() / weights.square().sum()).item()

    assert error(SoftmaxAwareBinarize(scale="optimal")(weights)) == pytest.approx(ours, abs=0.015)
    above = (weights >= weights.mean(-1, keepdim=True)).double()
    best = (weights * above).sum(-1, keepdim=True) / above.sum(-1, keepdim=True)
    assert error(best * above) == pytest.approx(mean, abs=0.015)


@pytest.mark.parametrize("scale", ["none", "optimal"])
def test_the_gradient_goes_straight_to_the_weights(scale):
    weights = draw(3, 5).softmax(-1).requires_grad_()
    into = draw(3, 5, seed=1)
    (grad,) = torch.autograd.grad((SoftmaxAwareBinarize(scale=scale)(weights) * into).sum(), weights)
    assert torch.equal(grad, into)


def test_the_gradient_of_the_whole_is_that_of_softmax():
    """But for the values, which the mask mixes."""
    q, k, v = draw(1, 2, 5, 4), draw(1, 2, 5, 4, seed=1), draw(1, 2, 5, 3, seed=2)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    up = draw(1, 2, 5, 3, seed=3)
    found = torch.autograd.grad((softmax_aware_attention(q, k, v) * up).sum(), (q, k, v))
    soft = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    expected = torch.autograd.grad((soft * up).sum(), (q, k))
    torch.testing.assert_close(found[:2], expected)
    mask = softmax_aware_attention(q, k, torch.eye(5, dtype=q.dtype).expand(1, 2, 5, 5))
    torch.testing.assert_close(found[2], mask.mT @ up)


@pytest.mark.parametrize("scale", ["none", "optimal"])
@pytest.mark.parametrize("training", [False, True])
def test_a_loop_over_plain_numbers(scale, training):
    torch.manual_seed(0)
    part = BiViTAttention(6, 2, scale=scale).double().train(training)
    x = draw(1, 5, 6)
    with torch.no_grad():
        signs = torch.where(part.in_proj(x)[0] < 0, -1.0, 1.0).double().tolist()
    mixed = [[0.0] * 6 for _ in range(5)]
    for head in range(2):
        q, k, v = ([row[3 * (2 * what + head) :][:3] for row in signs] for what in range(3))
        for i in range(5):
            s = [sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(3) for j in range(5)]
            a = [math.exp(x) / sum(map(math.exp, s)) for x in s]
            kept = [j for j in range(5) if a[j] >= max(a) / 4]
            alpha = 1.0 if scale == "none" else sum(a[j] for j in kept) / len(kept)
            for c in range(3):
                mixed[i][3 * head + c] = alpha * sum(v[j][c] for j in kept)
    expected = part.out_proj(torch.tensor(mixed, dtype=torch.float64))
    torch.testing.assert_close(part(x)[0][0], expected)


def test_bits_and_floats_give_the_same_numbers():
    """From 512 keys on the mask meets packed signs where no gradient is needed."""
    torch.manual_seed(0)
    part, x = BiViTAttention(16, 2).eval(), draw(1, 600, 16, dtype=torch.float32)
    expected = part(x)[0].detach()
    with torch.no_grad():
        for name in ("cpu", "reference"):
            with use(name):
                assert torch.equal(part(x)[0], expected)
                weights = part(x, need_weights=True)[1]
    assert set(weights.unique().tolist()) <= {0.0, 0.5, 1.0}


def test_full_precision_is_softmax_attention():
    part, plain = BiViTAttention(8, 2).double(), SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict())
    part.binary = False
    x = draw(2, 5, 8)
    torch.testing.assert_close(part(x)[0], plain(x)[0])


def wave(count, step, size):
    return (size * torch.sin(step * torch.arange(1, count + 1).double())).float()


def test_the_authors_attention():
    """`BiAttention_SAB(8, 2, qkv_bias=True)` in float32, its sign of 0 made 1."""
    part = BiViTAttention(8, 2)
    part.in_proj, part.out_proj = one, two = BinaryLinear.of(part.in_proj), BinaryLinear.of(part.out_proj)
    for k, p in enumerate((one.weight, one.bias, two.weight, two.bias)):
        p.data.copy_(wave(p.numel(), 0.8 + 0.1 * k, 0.5).view_as(p))
    one.reset_scale()
    two.reset_scale()
    x = wave(80, 1.3, 1.5).view(2, 5, 8).requires_grad_()
    out = part(x)[0]
    first = [
        0.44560367,
        1.61466539,
        -0.07887284,
        -1.65813160,
        0.34695119,
        1.29805577,
        -0.17454147,
        -0.35294968,
    ]
    torch.testing.assert_close(out.flatten()[:8], torch.tensor(first))
    loss = out.square().sum()
    assert loss.item() == pytest.approx(40.09270477, rel=1e-6)
    loss.backward()
    sizes = {
        x: 20.90153122, one.weight: 50.21146011, one.bias: 48.88626099, one.scale: 22.66890335,
        two.weight: 89.02963257, two.bias: 73.75726318, two.scale: 184.41702271,
    }  # fmt: skip
    for tensor, size in sizes.items():
        assert tensor.grad.abs().sum().item() == pytest.approx(size, rel=1e-5)


def test_keys_of_other_tokens_pass_binary_projections_too():
    part = BiViTAttention(8, 2).double()
    part.in_proj = BinaryLinear.of(part.in_proj)
    x = draw(2, 5, 8)
    torch.testing.assert_close(part(x, x.clone(), x.clone())[0], part(x)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ratio": 0.0}, "ratio must lie in"), ({"ratio": 1.5}, "got 1.5"), ({"scale": "best"}, "got 'best'")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BiViTAttention(8, 2, **settings)


def test_shapes_that_do_not_fit():
    q = draw(1, 4, 3, 8)
    for k, v, gqa in ((q[..., :7], q, True), (q, q[:, :, :2], True), (q[:, :2], q[:, :2], False)):
        with pytest.raises(ValueError, match="do not fit"):
            softmax_aware_attention(q, k, v, enable_gqa=gqa)
