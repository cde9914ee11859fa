"""Every benchmark builds, its goals speak of arms it has, and the command writes what it measured."""

import pytest

from logitkit import bench
from logitkit.bench.base import Goal
from logitkit.bench.measure import Times, interleave
from logitkit.bench.run import _judge
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
