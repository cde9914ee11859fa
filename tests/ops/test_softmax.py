"""Softmax, log-softmax and log-sum-exp against float64, in every implementation and every algorithm."""

import warnings

import numpy as np
import pytest
import torch

from logitkit.ops import log_softmax, logsumexp, softmax, use
from logitkit.ops.softmax import cpu

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])
SHAPES = [(1,), (7,), (1, 1), (3, 5), (2, 4096), (1, 65_537), (2, 3, 70_001)]


def sample(shape, scale=4.0, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found, exact):
    kept = exact > 2e-38  # float32's smallest normal number
    assert (found[~kept] <= 2e-38).all()
    return float(((found.double() - exact)[kept] / exact[kept]).abs().max())


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 4.0, 1e4])
def test_float64_agrees(name, shape, scale):
    x = sample(shape, scale)
    with use(name):
        assert relative(softmax(x), x.double().softmax(-1)) < (1e-6 if name == "cpu" else 1e-4)
        torch.testing.assert_close(logsumexp(x).double(), x.double().logsumexp(-1), rtol=2e-7, atol=2e-6)
        torch.testing.assert_close(
            log_softmax(x).double(), x.double().log_softmax(-1), rtol=2e-5, atol=1e-6 * max(scale, 3)
        )


@pytest.mark.parametrize("algorithm", [cpu.two_pass, cpu.online, cpu.three_pass])
def test_the_three_algorithms_agree_with_float64(algorithm):
    x = sample((2, 200_003))
    x[0, 17] = 80.0
    x[1, -1] = -torch.inf if algorithm is not cpu.two_pass else -1e5
    y = torch.empty_like(x)
    algorithm(x.numpy(), y.numpy())
    # Subtracting a maximum of 80 in float32 alone costs 5e-6; the two-pass form subtracts none.
    assert relative(y, x.double().softmax(-1)) < (1e-6 if algorithm is cpu.two_pass else 1e-5)
    assert y[1, -1] == 0


def test_exponents_that_rise_and_fall_along_a_row():
    x = torch.cat([torch.linspace(-300, 300, 90_000), torch.linspace(300, -1000, 90_000), torch.zeros(5)])[
        None
    ]
    x[0, 4096 * 3 + 5] = 290.0
    for found in (softmax_by_kernel(x), softmax_by_kernel(-x), softmax_by_kernel(100 * x)):
        torch.testing.assert_close(found[0].double(), found[1], rtol=1e-6, atol=1e-37)


def softmax_by_kernel(x):
    with use("cpu"):
        return softmax(x), x.double().softmax(-1)


def test_a_long_row_keeps_the_digits_that_torch_loses():
    x = sample((1, 1 << 22))
    exact = x.double().softmax(-1)
    assert relative(softmax(x), exact) < 1e-6
    assert relative(torch.softmax(x, -1), exact) > 1e-5  # if torch learns to, this op has done its work


@BOTH
def test_what_float32_cannot_hold_is_as_in_torch(name):
    for row in (
        [0.0, torch.nan],
        [torch.inf, 0.0],
        [-torch.inf, -torch.inf],
        [3e38, 3e38, -3e38],
        [-1e30, 0.0],
    ):
        x = torch.tensor([row])
        with use(name):
            torch.testing.assert_close(softmax(x), torch.softmax(x, -1), equal_nan=True)
            torch.testing.assert_close(logsumexp(x), torch.logsumexp(x, -1), equal_nan=True)
    masked = torch.tensor([[0.0, -torch.inf, 1.0]])
    with use(name):
        assert softmax(masked)[0, 1] == 0


@BOTH
@pytest.mark.parametrize("function", [softmax, log_softmax, logsumexp])
@pytest.mark.parametrize("shape", [(9,), (2, 70_001)])
def test_gradients_are_those_of_float64(name, function, shape):
    x = sample(shape).requires_grad_()
    exact = x.detach().double().requires_grad_()
    plain = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}
    expected = plain[function.__name__](exact, -1)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(g.double())
    with use(name):
        function(x).backward(g)
    # torch's own forms are loose on long rows
    tight = name == "cpu" and function is not log_softmax
    rtol, atol = (1e-5, 1e-6) if tight else (1e-4, 1e-4)
    scale = float(exact.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=rtol, atol=atol * scale)


def test_gradients_that_are_expanded_or_differentiated_again():
    x = sample((1, 1000)).requires_grad_()
    with use("cpu"):
        softmax(x).sum().backward()
        assert x.grad.abs().max() < 1e-6
    for function in (softmax, logsumexp):
        second = []
        for name in ("cpu", "reference"):
            with use(name):
                (g,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
                second.append(torch.autograd.grad(g.square().sum(), x)[0])
        torch.testing.assert_close(*second, rtol=1e-5, atol=1e-5)


def test_out_is_filled_and_returned():
    x = sample((1, 1 << 18))
    for function, plain in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        y = torch.empty_like(x)
        assert function(x, out=y).data_ptr() == y.data_ptr()
        torch.testing.assert_close(y.double(), plain(x.double(), -1), rtol=1e-5, atol=1e-6)
        z = torch.empty(3, 4)
        torch.testing.assert_close(function(x[:, :12].view(3, 4), 0, out=z), plain(x[:, :12].view(3, 4), 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_axes_and_layouts_are_torchs(dtype):
    x = sample((4, 6, 5)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for y in (x, x.transpose(0, 2)):
            for dim in (0, 1, -1):
                torch.testing.assert_close(softmax(y, dim), torch.softmax(y, dim))
                torch.testing.assert_close(logsumexp(y, dim, True), torch.logsumexp(y, dim, True))


def test_the_numbers_do_not_depend_on_the_threads():
    x = sample((1, 1 << 19))
    many = softmax(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with use("cpu"):
            assert torch.equal(softmax(x), many)
    finally:
        torch.set_num_threads(threads)


def test_pairs_of_shards_merge():
    x = sample((1, 300_000)).numpy()
    whole = np.log(cpu.pairs(x)[0]) + cpu.pairs(x)[1] * np.log(2)
    parts = [cpu.pairs(shard) for shard in np.array_split(x, 7, axis=1)]
    top = max(n[0] for _, n in parts)
    merged = np.log(sum(s * 2.0 ** (n - top) for s, n in parts)) + top * np.log(2)
    np.testing.assert_allclose(merged, whole, rtol=1e-7)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.arange(3), None, "got torch.int64"),
        (torch.tensor(1.0), None, "single number"),
        (torch.zeros(3), torch.zeros(4), r"got \(4,\)"),
        (torch.zeros(3, requires_grad=True), torch.zeros(3), "needs gradients"),
    ],
)
def test_bad_input_is_refused(x, out, message):
    with pytest.raises(ValueError, match=message):
        softmax(x, out=out)
