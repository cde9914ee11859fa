"""Float32 matrix products on the library that is fastest here.

On a CPU, torch sends float32 products to MKL. On AMD's AVX-512 cores MKL runs at half the machine's rate
where oneDNN reaches 85 to 95 % of it, in the same precision. torch only offers oneDNN for float32 under
`torch.set_float32_matmul_precision("medium")`, and on a CPU with bfloat16 tiles (AMX) that flag means
bfloat16 arithmetic. So the flag is not trusted: the error is measured once, and oneDNN is used only where it
is float32's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_before = "highest"


@functools.cache
def onednn_keeps_float32() -> bool:
    """Whether products under "medium" are as accurate as float32 allows on this CPU; measured on the first
    call."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(128, 512, generator=generator)
    b = torch.randn(512, 128, generator=generator)
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        error = (torch.mm(a, b).double() - exact).abs().max() / exact.abs().max()
    finally:
        torch.set_float32_matmul_precision(before)
    return bool(error < 4e-6)


@contextmanager
def fast_products() -> Iterator[None]:
    """Inside, float32 products of CPU tensors run in oneDNN where that keeps float32's accuracy.

    The flag behind it belongs to the process, so a product in another thread may take the same path
    meanwhile, with the same accuracy. Blocks may nest and overlap; the last to end restores what the first
    found.
    """
    global _inside, _before
    if not onednn_keeps_float32():
        yield
        return
    with _lock:
        if _inside == 0:
            _before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_float32_matmul_precision(_before)
