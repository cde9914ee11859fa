"""The soft top-k against a root found by SciPy and its gradient by autograd, in both implementations."""

import pytest
import torch
from scipy import optimize, special

from logitkit.ops import soft_topk, soft_topk_threshold, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def sample(rows=4, n=50, scale=3.0, dtype=torch.float64, seed=0):
    return scale * torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_root(s, k, alpha):
    rows = []
    for row in s.double().numpy():

        def excess(t, row=row):
            return special.expit(alpha * (row + t)).sum() - k

        low, high = -row.max() - 50 / alpha, -row[row > -1e300].min() + 50 / alpha
        t = optimize.brentq(excess, low, high, xtol=1e-13)
        rows.append(torch.from_numpy(special.expit(alpha * (row + t))))
    return torch.stack(rows)


@BOTH
@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 0.01), (50, 3), (50, 49.9), (1000, 500), (9000, 7)])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_sigmoids_at_the_root(name, n, k, alpha, dtype):
    s = sample(3, n, dtype=dtype)
    with use(name):
        y = soft_topk(s, k, alpha)
    exact = by_root(s, k, alpha)
    assert float((y.double() - exact).abs().max()) < (1e-6 if dtype == torch.float32 else 1e-9)
    assert float((y.double().sum(1) - k).abs().max()) < max(3e-6 * k, 1e-9)


@BOTH
def test_it_tends_to_the_indicator_of_the_k_largest(name):
    s = sample(5, 40)
    with use(name):
        y = soft_topk(s, 4, 1e6)
    hard = torch.zeros_like(s).scatter(1, s.topk(4).indices, 1.0)
    torch.testing.assert_close(y, hard, atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_equal_and_extreme_scores(name, scale):
    s = sample(2, 300, scale, torch.float32) + 1000
    with use(name):
        y = soft_topk(s, 30)
    assert float((y.double().sum(1) - 30).abs().max()) < 3e-4 * max(scale, 1)
    if scale == 0:
        torch.testing.assert_close(y, torch.full_like(y, 0.1))


@BOTH
def test_masked_scores_get_nothing_and_k_may_differ_by_row(name):
    s = sample(3, 20)
    s[:, 15:] = -torch.inf
    k = torch.tensor([1.0, 2.5, 14.0])
    with use(name):
        y = soft_topk(s, k)
    assert (y[:, 15:] == 0).all()
    torch.testing.assert_close(y.sum(1), k.double())


@BOTH
def test_gradients_are_those_of_finite_differences(name):
    s, g = sample(2, 12), sample(2, 12, seed=1)
    x = s.clone().requires_grad_()
    with use(name):
        soft_topk(x, 3, 0.7).backward(g)
        (dt,) = torch.autograd.grad(soft_topk_threshold(x, 3, 0.7)[0], x)
        step = torch.eye(24, dtype=torch.float64).view(24, 2, 12) * 1e-5
        difference = torch.stack(
            [((soft_topk(s + d, 3, 0.7) - soft_topk(s - d, 3, 0.7)) * g).sum() / 2e-5 for d in step]
        )
        moved = torch.stack(
            [
                (soft_topk_threshold(s + d, 3, 0.7) - soft_topk_threshold(s - d, 3, 0.7))[0] / 2e-5
                for d in step
            ]
        )
    torch.testing.assert_close(x.grad.reshape(-1), difference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dt.reshape(-1), moved, rtol=1e-5, atol=1e-7)


def test_the_reference_has_second_derivatives_and_the_kernel_says_it_has_none():
    s = sample(2, 6).requires_grad_()
    with use("reference"):
        assert torch.autograd.gradgradcheck(lambda s: soft_topk(s, 2, 1.5), (s,))
    with use("cpu"):
        y = soft_topk(s, 2)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(y.square().sum(), s, create_graph=True)


@BOTH
def test_threshold_and_weights_agree_in_any_layout_and_dtype(name):
    s = sample(6, 40).view(2, 3, 40).transpose(0, 1)
    with use(name):
        t = soft_topk_threshold(s, 5, 2.0)
        torch.testing.assert_close(torch.sigmoid(2.0 * (s + t[..., None])), soft_topk(s, 5, 2.0))
        for dtype in (torch.float16, torch.bfloat16):
            y = soft_topk(s.to(dtype), 5, 2.0)
            assert y.dtype == torch.float32
            torch.testing.assert_close(y, soft_topk(s.to(dtype).double(), 5, 2.0).float(), atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize(
    ("s", "k", "alpha", "message"),
    [
        (torch.zeros(2, 3), 3, 1.0, "got 3"),
        (torch.zeros(2, 3), 0, 1.0, "got 0"),
        (torch.zeros(2, 3), torch.ones(3), 1.0, r"got \(3,\)"),
        (torch.zeros(2, 3), 1, 0.0, "alpha must be positive"),
        (torch.zeros(2, 0), 1, 1.0, r"got \(2, 0\)"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, 1.0, "got torch.int64"),
        (torch.tensor([[0.0, torch.nan, 1.0]]), 1, 1.0, "NaN"),
        (torch.tensor([[0.0, torch.inf, 1.0]]), 1, 1.0, "inf"),
        (torch.tensor([[0.0, -torch.inf, 1.0]]), 2, 1.0, "got k = 2 and 2 in row 0"),
    ],
)
def test_bad_input_is_refused(name, s, k, alpha, message):
    with use(name), pytest.raises(ValueError, match=message):
        soft_topk(s, k, alpha)
