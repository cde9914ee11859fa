"""Claims are exclusive, dead workers' claims are taken over, and no kill loses or repeats a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from logitkit import InputError
from logitkit.comparison import store as store_module
from logitkit.comparison.store import Store, database_url

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    """A fresh store: a SQLite file, or a database of its own on a real PostgreSQL server."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite")
    import psycopg

    server = request.getfixturevalue("postgres")
    name = f"t{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.rsplit("/", 1)[0] + f"/{name}"


def test_a_claim_is_exclusive_until_released(url):
    a, b = Store(url), Store(url)
    assert a.claim(["x"]) == "x"
    assert b.claim(["x"]) is None
    a.release("x")
    assert b.claim(["x"]) == "x"
    b.finish("x", 0.5, {"metrics": {"accuracy": 0.5}})
    assert a.claim(["x"]) is None
    assert a.results(["x", "y"]) == {"x": {"metrics": {"accuracy": 0.5}}}


def _claim_everything(url: str, keys: list[str], queue) -> None:
    store = Store(url)
    while (key := store.claim(keys)) is not None:
        queue.put((os.getpid(), key))
        store.finish(key, 1.0, {"by": os.getpid()})


def test_many_processes_at_once_run_each_key_once(url):
    """Four processes open an empty database at the same moment and race for the same keys."""
    keys = [f"k{i}" for i in range(24)]
    queue = FORK.Queue()
    workers = [FORK.Process(target=_claim_everything, args=(url, keys, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    done = [queue.get(timeout=60) for _ in keys]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(key for _, key in done) == sorted(keys)
    assert queue.empty()
    assert len(Store(url)._trials()) == len(keys)


def _claim_and_die(url: str) -> None:
    Store(url).claim(["x"])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_workers_claim_is_taken_over_at_once(url):
    dead = FORK.Process(target=_claim_and_die, args=(url,))
    dead.start()
    dead.join(30)
    assert Store(url).claim(["x"]) == "x"


def test_a_silent_worker_elsewhere_is_dead_after_the_grace_period(url, monkeypatch):
    there = Store(url)
    there.owner = "elsewhere:boot:pid/1/2/abc"
    assert there.claim(["x"]) == "x"
    here = Store(url)
    assert here.claim(["x"]) is None
    monkeypatch.setattr(store_module, "GRACE", -1.0)
    assert here.claim(["x"]) == "x"
    there.finish("x", 0.1, {"late": True})  # it was only slow: what it found is dropped
    assert here.results(["x"]) == {}
    here.finish("x", 0.2, {"late": False})
    assert there.results(["x"]) == {"x": {"late": False}}


def test_a_run_without_a_value_is_finished_too(url):
    store = Store(url)
    assert store.claim(["x"]) == "x"
    store.finish("x", None, {"status": "diverged"})
    assert store.finished() == {"x"}


def _command(url: str, folder: Path) -> list[str]:
    code = f"""
import json, logitkit
from logitkit.comparison import Store
r = logitkit.compare(loss=["ce", "focal"], head=["linear", "cosine"], data="digits+limit=600", epochs=8,
                     seeds=2, tune=2, jobs=2, store={url!r}, folder={str(folder)!r})
found = {{r.plan.labels[run.arm] + str(run.seed): r.records[run.key]["metrics"] for run in r.plan.runs}}
print(json.dumps([found, r.best.metrics, len(Store({url!r})._trials())]))
"""
    return [sys.executable, "-c", code]


def _finish(url: str, folder: Path) -> list:
    done = subprocess.run(_command(url, folder), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_kill_at_random_moments_then_resume_equals_uninterrupted(url, tmp_path):
    """SIGKILL to the whole process group, several times; then the same command finishes and the metrics,
    the winner and the number of recorded runs are those of a study that was never touched."""
    expected = _finish(str(tmp_path / "whole.sqlite"), tmp_path / "whole")
    moments = random.Random(url[:6])
    recorded = 0
    for _ in range(3):
        victim = subprocess.Popen(
            _command(url, tmp_path / "killed"), stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(2.0, 5.5))
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        now = len(Store(url)._trials())
        assert now >= recorded, "a finished run was lost"
        recorded = now
    resumed = _finish(url, tmp_path / "killed")
    assert resumed[0] == expected[0]
    assert resumed[1] == expected[1]
    assert resumed[2] == 8, "a run was recorded twice"
    assert not list((tmp_path / "killed" / "checkpoints").glob("*.safetensors"))


def test_two_commands_share_one_study(url, tmp_path):
    both = [
        subprocess.Popen(_command(url, tmp_path / name), stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    found = [json.loads(p.communicate(timeout=120)[0]) for p in both]
    assert found[0][:2] == found[1][:2]
    assert found[0][2] == found[1][2] == 8


def test_store_mistakes_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("this is not a database, and has never been one\n" * 50)
    with pytest.raises(InputError, match="is not a database or is damaged"):
        Store(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="expected a file, sqlite:///FILE or postgresql://"):
        database_url("mysql://somewhere/db")
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.2)
    Store(tmp_path / "busy.sqlite")
    holder = sqlite3.connect(tmp_path / "busy.sqlite", isolation_level=None)
    holder.execute("begin exclusive")
    with pytest.raises(InputError, match="is locked by another process"):
        Store(tmp_path / "busy.sqlite")
    holder.close()


def test_an_unreachable_server_is_one_sentence_without_the_password():
    with pytest.raises(InputError, match="cannot be reached") as caught:
        Store("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
