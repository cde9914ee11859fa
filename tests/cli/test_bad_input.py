"""Each mistake gets one clear sentence and exit code 2: no traceback, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from logitkit import InputError
from logitkit.cli import main
from logitkit.engine import Predictor, checkpoint
from logitkit.engine.checkpoint import load_state, save_state

QUICK = ["model=linear", "epochs=1", "seeds=1", "--jobs", "1"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder; returns exit code and what it said on standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, "argv", ["logitkit", *words])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return code, capsys.readouterr().err

    return call


def write_table(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


GOOD = "a,b,label\n" + "".join(f"{i},{i % 3},{'xy'[i % 2]}\n" for i in range(30))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lss=ce"], "no slot or setting 'lss'. Did you mean 'loss'"),
        (["folder=x"], "folder is an option: write --folder x."),
        (["jobs=2"], "jobs is an option: write --jobs 2."),
        (["loss=crossentropy"], "Did you mean 'cross_entropy'"),
        (["head=ce"], "write loss=ce"),
        (["loss=linear"], "write head=linear"),
        (["loss=ldr(lam=-1)"], "lam must be positive, got -1"),
        (["optimizer=sgd(momentum=-1)"], "momentum"),
        (["data=digit"], "Did you mean 'digits'"),
        (["data=digits+nose=0.1"], "noise"),
        (["data=digits+noise=1.5"], "noise"),
        (["metric=acuracy"], "Did you mean 'accuracy'"),
        (["metric=accuracy", "data=diabetes"], "not a metric of regression"),
        (["loss=mse", "data=digits"], "is for regression; the data is a classification task"),
        (["loss=ce", "data=diabetes"], "is for classification"),
        (["head=hl_gauss"], "cannot do classification"),
        (["head=hl_gauss", "loss=mse", "data=diabetes"], "brings its own loss"),
        (["seeds=0"], "seeds=0 is not possible"),
        (["seeds=x"], "seeds=x is not possible"),
        (["tune=-1"], "tune=-1 is not possible"),
        (["lr=-1"], "lr=-1 is not valid"),
        (["loss"], "write slot=value"),
        (["loss=ce", "loss=ldr"], "given twice"),
        (["loss=ce,cross_entropy"], "are the same"),
        (["seed=3"], "seed= cannot be set"),
        (["data=nowhere.csv:label"], "nowhere.csv"),
        (["model=vit", "data=iris"], "vit"),
        (["data=recall"], "cannot read tokens; use model=transformer"),
        (["--jobs", "0"], "jobs=0 is not possible"),
        (["--report", "no/such/folder/report.html"], "there is no folder"),
        (["--report", "."], "it is a folder"),
        (["--store", "mysql://x/y"], "expected a file"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_compare_mistakes(run, words, says, tmp_path):
    code, error = run("compare", *words)
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1, f"more than one sentence: {error}"
    assert re.search(says, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "label", "says"),
    [
        ("empty.csv", "", "label", "empty"),
        ("header.csv", "a,label\n", "label", "row"),
        ("t.csv", GOOD, "lable", "Did you mean 'label'"),
        ("one.csv", "a,label\n" + "1,x\n" * 20, "label", "class"),
        ("nan.csv", GOOD + "1,2,\n" * 3, "label", "3"),
        ("few.csv", "a,label\n1,x\n2,y\n3,z\n", "label", "row"),
        ("model.pkl", "\x80\x04", "label", "pickle"),
    ],
)
def test_bad_tables(run, tmp_path, file, content, label, says):
    (tmp_path / file).write_text(content)
    code, error = run("compare", f"data={file}:{label}", *QUICK)
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(says, error), error


def test_bad_arrays(run, tmp_path):
    np.savez(tmp_path / "nan.npz", x=np.full((30, 4), np.nan, dtype=np.float32), y=np.arange(30) % 2)
    np.savez(tmp_path / "objects.npz", x=np.array([{}] * 4, dtype=object), y=np.arange(4))
    (tmp_path / "x.npy").write_bytes(pickle.dumps([1, 2]))
    np.save(tmp_path / "y.npy", np.arange(2))
    for source, says in (("nan.npz", "NaN"), ("objects.npz", "pickle"), ("x.npy:y.npy", "pickle")):
        code, error = run("compare", f"data={source}", *QUICK)
        assert (code, error.count("\n")) == (2, 1), error
        assert says in error


@pytest.fixture
def model(run, tmp_path):
    """A saved winner."""
    assert run("compare", "data=iris", "loss=ce,focal", *QUICK)[0] == 0
    return tmp_path / "logitkit-runs" / "winner"


def test_model_folders(run, model, tmp_path):
    rows = write_table(tmp_path / "rows.csv", GOOD)
    assert run("predict", "nowhere", "iris")[0] == 2
    code, error = run("predict", str(model), "iris", "-o", "out.txt")
    assert (code, "ending in .parquet or .csv" in error) == (2, True)
    code, error = run("predict", str(model), rows)
    assert code == 2, error
    about = json.loads((model / "about.json").read_text())

    (model / "about.json").write_text(json.dumps({**about, "format": 99, "logitkit": "9.0.0"}))
    code, error = run("predict", str(model), "iris")
    assert (code, "written by logitkit 9.0.0 in format 99" in error) == (2, True)

    (model / "about.json").write_text(json.dumps(about))
    tensors = (model / "model.safetensors").read_bytes()
    torch.save({"network": torch.zeros(1)}, model / "model.safetensors")
    code, error = run("predict", str(model), "iris")
    assert (code, "a pickle, which is never loaded" in error) == (2, True)
    (model / "model.safetensors").write_bytes(tensors[:100])
    code, error = run("predict", str(model), "iris")
    assert (code, "damaged" in error) == (2, True)
    (model / "about.json").write_text("{")
    code, error = run("predict", str(model), "iris")
    assert (code, "damaged model" in error) == (2, True)
    assert not list(tmp_path.glob("predictions*"))


def test_a_model_that_needs_foreign_code_asks_first(run, model):
    recipe = (model / "recipe.yaml").read_text()
    (model / "recipe.yaml").write_text(recipe.replace("model: linear", "model: antigravity:fly"))
    code, error = run("predict", str(model), "iris")
    assert (code, "--trust-code" in error) == (2, True)


def test_stores(run, tmp_path):
    write_table(tmp_path / "notes.sqlite", "not a database, only a note\n" * 100)
    code, error = run("compare", *QUICK, "--store", "notes.sqlite")
    assert (code, "is not a database or is damaged" in error) == (2, True)
    code, error = run("compare", *QUICK, "--store", "postgresql://x:hidden@127.0.0.1:1/none")
    assert (code, "cannot be reached" in error, "hidden" in error) == (2, True, False)
    (tmp_path / "plain").write_text("")
    code, error = run("compare", *QUICK, "--store", "plain/store.sqlite")
    assert code == 2, error
    assert error.count("\n") == 1


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    """Writing to a file system with no space left: one sentence, the old file whole, no temporary left."""
    path = tmp_path / "c.safetensors"
    save_state(path, {"step": 1, "w": torch.ones(3)})
    real_open = open

    def full(file, *args, **kwargs):
        # the kernel's own ENOSPC: /dev/full accepts an open and refuses every write
        return real_open("/dev/full" if str(file).endswith(".tmp") else file, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "open", full, raising=False)
    with pytest.raises(InputError, match="the disk is full"):
        save_state(path, {"step": 2, "w": torch.zeros(1000)})
    monkeypatch.undo()
    assert load_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_file_where_a_folder_must_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_state(tmp_path / "file" / "c.safetensors", {"step": 1})


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_stops_cleanly_and_says_how_to_go_on(tmp_path, jobs, stop):
    words = ["data=digits", "loss=ce,ldr", "epochs=3000", "--jobs", str(jobs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "logitkit", "compare", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("logitkit-runs/checkpoints/*.safetensors")):
        assert time.monotonic() < deadline, "no run began"
        time.sleep(0.1)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # what Ctrl-C does: the whole foreground group
    else:
        process.send_signal(stop)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "Stopped. Finished runs are kept; the same command goes on from here."
    with pytest.raises(ProcessLookupError):  # and no worker stays behind
        os.killpg(process.pid, 0)
    assert not (tmp_path / "report.html").exists()


def test_verify_and_show_mistakes(run):
    for words, says in (
        (["verify"], "--all"),
        (["verify", "cross_entropy"], "no claim"),
        (["verify", "ldrr"], "Did you mean 'ldr'"),
        (["show", "ldrr"], "Did you mean 'ldr'"),
        (["list", "loses"], "Did you mean 'losses'"),
    ):
        code, error = run(*words)
        assert (code, error.count("\n")) == (2, 1), error
        assert says in error


def test_predictor_refuses_what_it_cannot_do(run, model):
    predictor: Predictor = __import__("logitkit").load(model)
    assert len(predictor.predict("iris")) == 150
    predictor.shape = predictor.shape.__class__(**{**vars(predictor.shape), "task": "regression"})
    with pytest.raises(InputError, match="no class probabilities"):
        predictor.predict_proba("iris")
