"""Which implementation runs, and what is said when another was asked for."""

import sys
import warnings

import pytest
import torch

from logitkit.ops import KernelWarning, use
from logitkit.ops.dispatch import implementation
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
