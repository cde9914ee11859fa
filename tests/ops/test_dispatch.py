"""Which implementation runs, and what is said when another was asked for."""

import subprocess
import sys
import warnings

import pytest
import torch

from logitkit.ops import KernelWarning, use
from logitkit.ops.dispatch import implementation, no_second_derivatives, untraced
from logitkit.ops.temperature import reference


def name(**offers):
    return implementation(reference, torch.zeros(1), **offers).__name__.rsplit(".", 1)[1]


def test_the_kernel_that_pays_is_chosen_and_silence_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name(cpu=True) == "cpu"
        assert name(cpu=False) == "reference"
        assert name(cpu="it needs float32") == "reference"
        assert name(triton=True) == "reference"


def test_forcing_runs_a_kernel_even_where_it_does_not_pay():
    with use("cpu"):
        assert name(cpu=False) == "cpu"
    with use("reference"):
        assert name(cpu=True) == "reference"
    assert name(cpu=True) == "cpu"


@pytest.mark.parametrize(
    ("forced", "offers", "why"),
    [
        ("cpu", {"cpu": "it needs float32"}, "it needs float32"),
        ("triton", {"triton": True}, "the tensors are on cpu"),
        ("triton", {}, "it has none"),
    ],
)
def test_a_forced_kernel_that_cannot_run_warns(forced, offers, why, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use(forced), pytest.warns(KernelWarning, match=why):
        assert name(**offers) == "reference"


def test_a_kernel_that_does_not_import_warns(monkeypatch):
    monkeypatch.setitem(sys.modules, "logitkit.ops.temperature.cpu", None)
    with pytest.warns(KernelWarning, match="halted"):
        assert name(cpu=True) == "reference"


def test_use_takes_only_known_names():
    with pytest.raises(ValueError, match="got 'fast'"):
        use("fast")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("parent_used_it", [False, True])
def test_a_forked_child_neither_hangs_nor_dies(threads, parent_used_it):
    code = f"""
import os, torch
from logitkit.ops import soft_topk
torch.randn(1000, 1000).exp().sum()  # torch's own threads
x = torch.randn(40, 50)
here = soft_topk(x, 5) if {parent_used_it} else None
child = os.fork()
if child == 0:
    torch.set_num_threads({threads})
    y = soft_topk(x, 5)
    os._exit(0 if here is None or torch.allclose(y, here, atol=1e-6) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_code_that_is_kept_from_the_compiler_runs_as_it_is():
    traced = []

    @untraced
    def sum_of(x):
        traced.append(torch.compiler.is_compiling())
        return torch.from_numpy(x.numpy().sum(keepdims=True))

    compiled = torch.compile(lambda x: sum_of(x * 2) + 1, backend="eager")
    assert compiled(torch.ones(3)) == 7
    assert traced == [False]


def test_second_derivatives_are_refused_only_where_they_are_asked_for():
    with torch.no_grad():
        no_second_derivatives("an op")
    with torch.enable_grad(), pytest.raises(RuntimeError, match="the kernel of an op has no second"):
        no_second_derivatives("an op")


def test_importing_ops_loads_neither_numba_nor_triton_nor_the_compiler():
    heavy = ("numba", "triton", "torch._dynamo")
    code = f"import sys, logitkit.ops; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
