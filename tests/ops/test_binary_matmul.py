"""Products of signs against float64 products of the signs themselves, in both implementations."""

import numpy as np
import pytest
import torch

from logitkit.ops import binary_matmul, pack_signs, use

BOTH = pytest.mark.parametrize("name", ["cpu", "reference"])


def sample(*shape, seed=0, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype)


def signs(x):
    return np.where(x.double().numpy() < 0, -1.0, 1.0)


@BOTH
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (1, 1, 1),
        (5, 7, 3),
        (4, 32, 64),
        (9, 65, 130),
        (70, 33, 63),
        (3, 2, 1000),
        (0, 2, 5),
        (2, 0, 5),
        (2, 3, 0),
    ],
)
def test_the_product_is_that_of_the_signs(name, m, n, k):
    a, b = sample(m, k), sample(n, k, seed=1)
    with use(name):
        out = binary_matmul(a, b)
        packed = binary_matmul(pack_signs(a), pack_signs(b))
    assert out.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), signs(a) @ signs(b).T)
    assert torch.equal(packed, out)


@BOTH
def test_words_hold_a_bit_for_each_negative_number(name):
    x = torch.tensor([0.0, -0.0, -1e-45, 1e-45, torch.inf, -torch.inf, torch.nan, -3.0])
    with use(name):
        packed = pack_signs(x)
        long = pack_signs(sample(2, 3, 200))
        empty = pack_signs(torch.zeros(4, 0))
    assert packed.length == 8
    assert packed.words.tolist() == [0b10100100]
    assert empty.words.shape == (4, 0)
    bits = np.unpackbits(long.words.numpy().view(np.uint8), axis=-1, bitorder="little")
    np.testing.assert_array_equal(bits[..., :200], signs(sample(2, 3, 200)) < 0)
    assert (bits[..., 200:] == 0).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_and_layout(name, dtype):
    a, b = sample(130, 9, dtype=dtype).T, sample(6, 260, seed=1, dtype=dtype)[:, ::2]
    with use(name):
        np.testing.assert_array_equal(binary_matmul(a, b).numpy(), signs(a) @ signs(b).T)


@BOTH
def test_batches_share_a_weight_or_have_their_own(name):
    a, b, weight = sample(2, 3, 5, 70), sample(2, 3, 4, 70, seed=1), sample(4, 70, seed=2)
    with use(name):
        np.testing.assert_array_equal(binary_matmul(a, weight).numpy(), signs(a) @ signs(weight).T)
        own = binary_matmul(a, b)
    np.testing.assert_array_equal(own.numpy(), signs(a) @ signs(b).swapaxes(-1, -2))


@BOTH
def test_a_mask_sums_the_signs_under_it(name):
    mask = sample(2, 5, 70) > 0.5
    b, weight = sample(2, 4, 70, seed=1), sample(4, 70, seed=2)
    with use(name):
        one, many = binary_matmul(mask, weight), binary_matmul(mask, b)
        none = binary_matmul(torch.zeros_like(mask), b)
    np.testing.assert_array_equal(one.numpy(), mask.double().numpy() @ signs(weight).T)
    np.testing.assert_array_equal(many.numpy(), mask.double().numpy() @ signs(b).swapaxes(-1, -2))
    assert (none == 0).all()


@BOTH
def test_scales_multiply_rows_and_columns(name):
    a, b = sample(2, 5, 70), sample(4, 70, seed=1)
    alpha, beta = sample(2, 5, seed=2), b.abs().mean(1)
    with use(name):
        out = binary_matmul(a, b, a_scale=alpha, b_scale=beta)
    exact = alpha.double().numpy()[..., None] * (signs(a) @ signs(b).T) * beta.double().numpy()
    np.testing.assert_allclose(out.numpy(), exact, rtol=3e-7)


@BOTH
def test_it_is_exact_under_autocast_and_has_no_gradient(name):
    a, b = sample(3, 1001).requires_grad_(), sample(2, 1001, seed=1)
    with use(name), torch.autocast("cpu", dtype=torch.bfloat16):
        out = binary_matmul(a, b)
    assert not out.requires_grad
    np.testing.assert_array_equal(out.numpy(), signs(a.detach()) @ signs(b).T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4)), r"got \(2, 3\) and \(2, 4\)"),
        ((torch.zeros(3), torch.zeros(2, 3)), r"got \(3,\) and \(2, 3\)"),
        ((torch.zeros(2, 2, 3), torch.zeros(3, 2, 3)), r"batch dimensions \(2,\), got \(3,\)"),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3)), "got torch.int64"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)), "got torch.bool"),
        ((torch.tensor(1.0), torch.zeros(2, 3)), "single number"),
        ((torch.zeros(1, 1).expand(1, 2**24), torch.zeros(1, 1).expand(1, 2**24)), "got 16777216"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        binary_matmul(*arguments)


@pytest.mark.parametrize("wrong", [{"a_scale": torch.ones(4)}, {"b_scale": torch.ones(2, 3, 4)}])
def test_scales_of_another_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must have shape"):
        binary_matmul(torch.zeros(2, 3, 5), torch.zeros(6, 5), **wrong)
