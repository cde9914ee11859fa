"""Products on the fast path keep float32's accuracy, and the process's flag is left as it was."""

import threading

import torch

from logitkit.ops.gemm import fast_products, onednn_keeps_float32


def test_error_is_float32s_at_every_shape():
    g = torch.Generator().manual_seed(0)
    for n, k, m in [(1, 1, 1), (3, 700, 5), (256, 512, 300), (64, 4096, 64)]:
        a, b = torch.randn(n, k, generator=g), torch.randn(k, m, generator=g)
        with fast_products():
            product = a @ b
        exact = a.double() @ b.double()
        assert float((product - exact).abs().max()) < 4e-6 * float(exact.abs().max())  # bfloat16: 4e-3


def test_blocks_nest_and_overlap_and_restore_what_they_found():
    before = torch.get_float32_matmul_precision()
    inside = "medium" if onednn_keeps_float32() else before
    entered, leave = threading.Event(), threading.Event()

    def other():
        with fast_products():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with fast_products():
        thread.start()
        assert entered.wait(10)
        with fast_products():
            assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == inside  # the other thread is still in its block
    leave.set()
    thread.join()
    assert torch.get_float32_matmul_precision() == before


def test_an_error_inside_restores_it_too():
    before = torch.get_float32_matmul_precision()
    try:
        with fast_products():
            raise KeyError
    except KeyError:
        pass
    assert torch.get_float32_matmul_precision() == before
