"""Every benchmark builds, its goals speak of arms it has, and the command writes what it measured."""

import io
import json
import subprocess
import sys
import types

import pytest
import torch
from rich.console import Console

from logitkit import bench
from logitkit.bench.base import Arms, Case, Goal
from logitkit.bench.measure import Times, interleave
from logitkit.bench.run import _judge
from logitkit.cli.terminal import print_benchmark_case
from logitkit.errors import InputError


@pytest.mark.parametrize("name", bench.names())
def test_every_arm_runs_on_a_tiny_problem_and_goals_name_what_is_measured(name):
    module = bench.find(name)
    assert module.__doc__
    assert module.NOTE
    for case in module.cases():
        arms = case.build(True)
        for arm in arms.run.values():
            arm()
        values = arms.values() if arms.values else {}
        assert set(case.memory) <= set(arms.run)
        for goal in case.goals:
            assert goal.arm in (
                values if goal.unit == "value" else case.memory if goal.unit == "MiB" else arms.run
            )


def test_ratios_are_taken_within_rounds():
    times = Times({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 8.0]}, others=0.0)
    assert times.ratio("a", "b") == 0.5
    assert times.median("a") == 2.0


def test_every_arm_runs_once_a_round_after_a_warm_up():
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(s) for s in times.seconds.values()] == [3, 3]


def test_goals_without_their_peer_are_left_out():
    times = Times({"ours": [1.0]}, others=0.0)
    assert _judge(Goal("ours", 0.5, "absent"), times, {}, {}) is None
    assert _judge(Goal("ours", 64, unit="MiB"), times, {"ours": 80.0}, {})["met"] is False
    assert _judge(Goal("ours", 64, unit="MiB"), times, {"ours": None}, {})["met"] is False
    assert _judge(Goal("error", 1e-6, unit="value"), times, {}, {"error": 1e-7})["met"] is True


def test_an_unknown_benchmark_is_named():
    with pytest.raises(InputError, match=r"temperature"):
        bench.find("temperatur")


def stub(small):
    x = torch.ones(10 if small else 100)
    return Arms({"ours": x.sum, "peer": x.double}, values=lambda: {"error": 1e-7})


def test_a_run_gives_every_number_and_its_goals(monkeypatch, tmp_path):
    goals = [Goal("ours", 1e9, "peer"), Goal("error", 1e-8, unit="value"), Goal("ours", 1.0, "absent")]
    module = types.SimpleNamespace(
        __doc__="A title\n",
        PEERS=("torch", "no-such-package"),
        cases=lambda: [Case("tiny", stub, goals, rounds=3)],
    )
    monkeypatch.setattr(sys.modules["logitkit.bench.run"], "find", lambda name: module)
    seen = []
    result = bench.run("stub", watch=seen.append)
    (case,) = result["cases"]
    assert seen == [case]
    assert result["title"] == "A title"
    assert result["absent"] == ["no-such-package"]
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert {name: len(s) for name, s in case["seconds"].items()} == {"ours": 3, "peer": 3}
    met = {g["goal"]: g["met"] for g in case["goals"]}
    assert met == {"ours <= 1e+09x peer": True, "error <= 1e-08": False}
    assert json.loads(bench.save(result, tmp_path / "new").read_text()) == result
    console = Console(width=120, record=True, file=io.StringIO())
    print_benchmark_case(console, "stub", case)
    text = console.export_text()
    assert "not met: error <= 1e-08; measured 1e-07" in text
    assert "peer" in text


def test_extra_memory_is_what_an_arm_needs_beyond_inputs_and_gradients():
    code = """
import torch
from logitkit.bench.base import Arms, Case
from logitkit.bench.measure import _measure_memory

def build(small, leaves):
    x = torch.ones((1 if small else 50) * 2**18, requires_grad=True)  # 50 MiB
    y = x.detach()
    arms = {"nothing": lambda: None, "two copies": lambda: (y.clone(), y.clone())}
    return Arms(arms, [x] if leaves else [])

for leaves in (False, True):
    for arm in ("nothing", "two copies"):
        print(_measure_memory(Case("stub", lambda small: build(small, leaves)), arm))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    expected = [0, 100, 0, 50]  # MiB; one copy fits where a gradient had been
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, abs=4)
