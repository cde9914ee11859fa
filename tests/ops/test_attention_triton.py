"""The GPU kernel of attention, run by Triton's interpreter on the CPU and on a GPU where there is one."""

import pytest
import torch

from logitkit.ops import KernelWarning, attention, use
from logitkit.ops.attention import Sigmoid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def compare(q_shape, kv_shape, dv, weight, tol, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(0)
    made = (torch.randn(s, generator=g) for s in (q_shape, kv_shape, (*kv_shape[:-1], dv)))
    made = [x.to(DEVICE, dtype) for x in made]
    results = []
    for implementation, t in (("reference", torch.float64), ("triton", dtype)):
        leaves = [x.to(t, copy=True).requires_grad_() for x in made]
        with use(implementation):
            out = attention(*leaves, weight=weight, enable_gqa=q_shape[1] != kv_shape[1], **options)
        cotangent = torch.sin(torch.arange(out.numel(), device=DEVICE)).view(out.shape)
        out.backward(cotangent.to(t))
        results.append([out.detach(), *(x.grad for x in leaves)])
    for exact, got in zip(*results, strict=True):
        assert got.dtype == dtype
        assert (got - exact).abs().max() < tol * exact.abs().max().clamp(min=1e-2)


# The interpreter's products of bfloat16 are wrong in some versions of triton, so half precision is float16.
@pytest.mark.parametrize("weight", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 5e-6), (torch.float16, 5e-3)])
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients(weight, dtype, tol, causal):
    compare((1, 2, 70, 16), (1, 2, 70, 16), 16, weight, tol, dtype, is_causal=causal)


@pytest.mark.parametrize("weight", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("n", "keys", "offset"), [(5, 40, 35), (70, 9, 0), (40, 5, -7), (1, 33, 32)])
def test_unequal_lengths_odd_dims_and_grouped_queries(weight, n, keys, offset):
    compare((1, 4, n, 5), (1, 2, keys, 5), 19, weight, 5e-6, is_causal=True, causal_offset=offset)


def test_a_bias_and_a_scale():
    compare((1, 1, 9, 8), (1, 1, 9, 8), 8, Sigmoid(0.4), 5e-6, scale=0.7)


def test_what_it_cannot_take_goes_to_the_reference_with_a_warning():
    q = torch.randn(1, 1, 8, 4, device=DEVICE)
    mask = torch.ones(8, 8, dtype=torch.bool, device=DEVICE)
    with use("triton"):
        with pytest.warns(KernelWarning, match="softmax and the sigmoid only"):
            attention(q, q, q, weight="power")
        with pytest.warns(KernelWarning, match="no mask"):
            attention(q, q, q, attn_mask=mask)
        with pytest.warns(KernelWarning, match="no float64"):
            attention(q.double(), q.double(), q.double())
