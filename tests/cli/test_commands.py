"""The commands as a newcomer types them."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

import logitkit
from logitkit import catalog
from logitkit.cli.terminal import print_ranking


def command(*words: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "logitkit", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_list_names_every_part_under_its_room(tmp_path):
    out = command("list", cwd=tmp_path).stdout
    for card in catalog.cards():
        line = next(
            line for line in out.splitlines() if line.split()[:1] == [card.name] and card.title[:20] in line
        )
        if card.number is not None:
            assert f"{card.number:03d}" in line
    only = command("list", "heads", cwd=tmp_path).stdout
    assert "linear" in only
    assert "cross_entropy" not in only


def test_show_gives_card_signature_and_equation(tmp_path):
    out = command("show", "losses/ldr", cwd=tmp_path).stdout
    for piece in (
        "from logitkit.losses import LDRKL",
        "lam=10.0",
        "arXiv:2112.14869",
        "Equation:",
        "tuned: lam in",
    ):
        assert piece in out
    both = command("show", "linear", cwd=tmp_path).stdout
    assert "heads/linear" in both
    assert "models/linear" in both


def test_show_finds_the_evidence_of_a_companion_in_another_room(tmp_path):
    (tmp_path / "evidence" / "theory").mkdir(parents=True)
    found = {"room": "theory", "part": "topk_moe", "seconds": 1.0, "quick": True}
    (tmp_path / "evidence" / "theory" / "topk_moe.json").write_text(json.dumps(found))
    out = command("show", "heads/topk_moe", cwd=tmp_path).stdout
    assert "theory/topk_moe: runs" in out
    assert "No evidence" not in out


def test_version(tmp_path):
    assert command("--version", cwd=tmp_path).stdout.strip() == f"logitkit {logitkit.__version__}"


def test_compare_prints_ranking_writes_everything_and_resumes_at_once(tmp_path):
    words = [
        "compare",
        "loss=ce,focal",
        "data=iris",
        "epochs=5",
        "seeds=2",
        "--json",
        "n.json",
        "--csv",
        "r.csv",
    ]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "loss=focal" in done.stdout
    assert "no difference shown" in done.stdout
    assert str(tmp_path / "report.html") in done.stdout
    for name in ("report.html", "n.json", "r.csv", "logitkit-runs/winner/model.safetensors"):
        assert (tmp_path / name).stat().st_size > 0
    first = json.loads((tmp_path / "n.json").read_text())
    again = command(*words, cwd=tmp_path)
    assert "runs, " not in again.stdout.split("recipe")[0].replace("4/4 runs", "")
    assert json.loads((tmp_path / "n.json").read_text())["runs"] == first["runs"]


def test_a_narrow_terminal_leaves_the_seconds_out(tmp_path):
    """Nothing is cut: not in 80 columns, where they do not fit, and not in 100, where they do."""
    result = logitkit.compare(loss=["cross_entropy", "ldr"], data="iris", seeds=2, epochs=1, folder=tmp_path)
    for width, shown in ((80, False), (100, True)):
        console = Console(width=width, file=io.StringIO())
        print_ranking(console, result)
        table = console.file.getvalue()
        assert ("seconds" in table) == shown
        assert "…" not in table
        assert "loss=cross_entropy" in table
        assert "difference [95 %]" in table


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_on_a_terminal_the_ranking_is_live(tmp_path):
    """On a pseudo-terminal of 100 columns: progress is drawn, and the final table fits."""
    parent, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "logitkit", "compare", "loss=ce,focal", "data=iris", "epochs=60", "seeds=3"],
        cwd=tmp_path, stdout=child, stderr=child, env=environment,
    )  # fmt: skip
    os.close(child)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([parent], [], [], 0.2)[0]:
            try:
                piece = os.read(parent, 65536)
            except OSError:  # the child has closed its end
                break
            seen += piece
        elif process.poll() is not None:
            break
    text = seen.decode(errors="replace")
    assert process.wait(10) == 0, text
    assert "/6" in text  # the bar
    assert "no difference shown" in text.replace("\x1b[0m", "")
    assert "…" not in text.split("recipe")[-1], "the final table is cut"


def test_bench_lists_its_benchmarks_and_refuses_an_unknown_one(tmp_path):
    listed = command("bench", "--list", cwd=tmp_path).stdout
    assert "temperature" in listed
    assert "softmax" in listed
    wrong = command("bench", "softmaxx", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "there is no benchmark 'softmaxx'. Did you mean 'softmax'" in wrong.stderr
    assert not list(tmp_path.iterdir())
