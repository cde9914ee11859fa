"""The rational function against powers summed one by one in float64, and autograd of them, in both
implementations."""

import pytest
import torch

from logitkit.ops import group_rational, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_powers(x, a, b):
    """The equation along the last axis."""
    x, a, b = x.double(), a.double(), b.double()
    above = sum(c * x**k for k, c in enumerate(a))
    of_channel = b.repeat_interleave(x.shape[-1] // len(b), 0)
    below = sum(of_channel[:, k] * x ** (k + 1) for k in range(b.shape[1]))
    return above / (1 + below.abs())


def close(found, exact, dtype):
    """To rounding of the largest entry."""
    assert found.dtype == dtype
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert float(error) < {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 5e-3}[dtype]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "m1", "groups", "n"),
    [
        ((1, 1), 6, 1, 4),
        ((7, 6), 6, 2, 4),
        ((3, 5, 15), 4, 5, 3),
        ((9000, 8), 6, 8, 4),
        ((70, 1300), 1, 2, 1),
        ((24,), 6, 3, 4),
    ],
)
def test_values_and_gradients(name, dtype, shape, m1, groups, n):
    x, g = draw(*shape, dtype=dtype), draw(*shape, seed=3, dtype=dtype)
    a, b = draw(m1, seed=1, dtype=dtype), draw(groups, n, seed=2, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    with use(name):
        y = group_rational(*leaves)
        found = torch.autograd.grad(y, leaves, g)
    exact = [t.double().requires_grad_() for t in (x, a, b)]
    expected = by_powers(*exact)
    close(y.detach(), expected.detach(), dtype)
    for each, right in zip(found, torch.autograd.grad(expected, exact, g.double()), strict=True):
        close(each, right, dtype)


@BOTH
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_error_of_each_value(name, scale):
    x, a, b = draw(2000, 12).float() * scale, draw(6, seed=1).float(), draw(3, 4, seed=2).float()
    with use(name):
        y = group_rational(x, a, b)
    exact, size, one = by_powers(x, a, b), x.double().abs(), torch.ones(1)
    terms = sum(c.abs() * size**k for k, c in enumerate(a.double()))
    inner = sum(b.double().abs().repeat_interleave(4, 0)[:, k] * size ** (k + 1) for k in range(4))
    allowed = 1e-6 * (terms + exact.abs() * inner) * by_powers(x, one, b)
    assert ((y - exact).abs() <= allowed).all()


@BOTH
def test_any_axis_and_layout(name):
    x, a, b = draw(2, 5, 4, 6).permute(0, 3, 1, 2), draw(6, seed=1), draw(3, 4, seed=2)
    g = draw(2, 6, 4, 5, seed=3).mT
    leaf, exact = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = by_powers(exact.movedim(1, -1), a, b).movedim(-1, 1)
    expected.backward(g)
    with use(name):
        y = group_rational(leaf, a, b, axis=1)
        y.backward(g)
        some = group_rational(x[:, :, ::2, 1:], a, b, axis=-3)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous()
    torch.testing.assert_close(leaf.grad, exact.grad)
    torch.testing.assert_close(some, expected[:, :, ::2, 1:])


@BOTH
def test_only_the_gradients_that_are_asked_for(name):
    x, a, b = draw(5, 4), draw(3, seed=1).requires_grad_(), draw(2, 2, seed=2)
    with use(name):
        (found,) = torch.autograd.grad(group_rational(x, a, b).sum(), a)
    torch.testing.assert_close(found, torch.autograd.grad(by_powers(x, a, b).sum(), a)[0])


@BOTH
def test_the_absolute_value_has_slope_1_at_0(name):
    x, a, b = draw(4, 6), draw(6, seed=1), torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    with use(name):
        group_rational(x, a, b).sum().backward()
    p = sum(c * x**k for k, c in enumerate(a))
    expected = [-(p * x**k).view(4, 2, 3).sum((0, 2)) for k in range(1, 5)]
    torch.testing.assert_close(b.grad, torch.stack(expected, dim=1))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_values(name, dtype):
    x = torch.tensor([[0.0, -0.0, 1e-7, -6e4, 6e4, 2.0, torch.nan, torch.inf]], dtype=dtype)
    a, b = torch.tensor([0.5, 1, 0, 0, 0, 2]).to(dtype), torch.tensor([[0.0, 0, 0, -3]]).to(dtype)
    leaf = x.clone().requires_grad_()
    with use(name):
        y = group_rational(leaf, a, b)
        y.sum().backward()
    torch.testing.assert_close(y[:, :6].double(), by_powers(x[:, :6], a, b), rtol=1e-3, atol=1e-6)
    assert y[0, 6:].isnan().all()  # infinity over infinity
    exact = x[:, :6].double().requires_grad_()
    by_powers(exact, a, b).sum().backward()
    torch.testing.assert_close(leaf.grad[:, :6].double(), exact.grad, rtol=1e-3, atol=1e-6)


@BOTH
@pytest.mark.parametrize("shape", [(0, 6), (3, 0, 6)])
def test_nothing_gives_nothing(name, shape):
    x, a, b = draw(*shape).requires_grad_(), draw(6, seed=1).requires_grad_(), draw(2, 4).requires_grad_()
    with use(name):
        y = group_rational(x, a, b)
        y.sum().backward()
    assert y.shape == shape
    assert (x.grad.shape, a.grad.abs().sum(), b.grad.abs().sum()) == (shape, 0, 0)


@BOTH
def test_second_derivatives(name):
    leaves = [
        draw(3, 4).requires_grad_(),
        draw(4, seed=1).requires_grad_(),
        draw(2, 3, seed=2).requires_grad_(),
    ]
    with use(name):
        assert torch.autograd.gradcheck(group_rational, leaves)
        assert torch.autograd.gradgradcheck(group_rational, leaves)


def test_results_do_not_depend_on_threads():
    x, a, b = draw(9000, 16, dtype=torch.float32), draw(6, seed=1).float(), draw(4, 4, seed=2).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, a, b)]
            with use("cpu"):
                y = group_rational(*leaves)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@BOTH
@pytest.mark.parametrize(
    ("x", "a", "b", "axis", "match"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), torch.ones(2), torch.ones(1, 1), -1, "x must be floating"),
        (torch.zeros(2, 4), torch.ones(2, dtype=torch.int64), torch.ones(1, 1), -1, "a must be floating"),
        (torch.zeros(2, 4), torch.ones(2), torch.ones(1, 1), 2, "got 2"),
        (torch.zeros(2, 4), torch.ones(0), torch.ones(1, 1), -1, r"got \(0,\) and \(1, 1\)"),
        (torch.zeros(2, 4), torch.ones(2), torch.ones(1), -1, r"got \(2,\) and \(1,\)"),
        (torch.zeros(2, 4), torch.ones(2), torch.ones(3, 1), -1, "got 3 groups of 4 channels"),
    ],
)
def test_bad_input_is_refused(name, x, a, b, axis, match):
    with use(name), pytest.raises(ValueError, match=match):
        group_rational(x, a, b, axis)
