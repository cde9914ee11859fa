"""A recipe's teacher: who it is, what its students see of it, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import InputError, data
from logitkit.comparison import make_plan
from logitkit.comparison.work import search_space
from logitkit.data.base import seeded
from logitkit.distill import KDLoss
from logitkit.engine import Diverged, Prepared, Recipe, Trainer, run
from logitkit.engine.inference import forward
from logitkit.engine.tasks import TASKS

STUDENT = {"model": "mlp(hidden=(8,))", "epochs": 2, "schedule": "constant"}
TEACHER = "mlp(hidden=(32,), dropout=0.2)"


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load("digits+limit=400"), 0))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.run().parameters()])


def test_it_is_the_bare_loop(prepared):
    """The teacher is what its own recipe gives, and the student that of a loop over rows and its scores."""
    recipe = Recipe.of(**STUDENT, regularize="0.3*kd + 0.1*focal", teacher=TEACHER, optimizer="sgd", lr=0.1)
    student = Trainer(recipe, prepared)
    trained = weights(student)
    rest = {"regularize": "0.1*focal", "optimizer": "sgd", "lr": 0.1}
    alone = Trainer(Recipe.of(**{**STUDENT, "model": TEACHER}, **rest), prepared).run()
    x, y = prepared.train
    known = forward(alone, x)
    assert torch.equal(student.objective.teacher_logits, known)
    assert not known.requires_grad

    twin = Trainer(recipe, prepared)
    for epoch in range(2):
        for rows in torch.randperm(len(y), generator=seeded("order", 0, epoch)).split(64):
            z = twin.network(x[rows])
            p = F.softmax(z, 1).gather(1, y[rows, None])[:, 0]
            focal = ((1 - p) ** 2 * -p.log()).mean()
            loss = F.cross_entropy(z, y[rows]) + 0.3 * KDLoss()(z, known[rows], y[rows]) + 0.1 * focal
            grads = torch.autograd.grad(loss, list(twin.network.parameters()))
            with torch.no_grad():
                for w, g in zip(twin.network.parameters(), grads, strict=True):
                    w -= 0.1 * g
    found = torch.cat([p.detach().flatten() for p in twin.network.parameters()])
    torch.testing.assert_close(trained, found, rtol=1e-4, atol=1e-5)


def test_a_teacher_moves_no_random_number_of_its_student(prepared):
    settings = {**STUDENT, "model": "mlp(hidden=(8,), dropout=0.3)"}
    plain = weights(Trainer(Recipe.of(**settings), prepared))
    taught = weights(Trainer(Recipe.of(**settings, regularize="0*kd", teacher=TEACHER), prepared))
    assert torch.equal(plain, taught)


@pytest.mark.parametrize(("at", "steps"), [(5, 18), (13, 20)])
def test_a_run_killed_in_the_teacher_or_the_student_ends_in_the_same_bits(
    prepared, tmp_path, monkeypatch, at, steps
):
    """Of eight steps each, number 5 is the teacher's and number 13 the student's; checkpoints are every 3."""
    recipe = Recipe.of(**{**STUDENT, "model": "mlp(hidden=(8,), dropout=0.3)"}, loss="kd", teacher=TEACHER)
    settings = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 3}
    expected = weights(Trainer(recipe, prepared))
    step, count = Trainer._step, 0

    def stopping(trainer, batch):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe, prepared, **settings).run()
    torch.manual_seed(12345)  # whatever happened meanwhile
    resumed = Trainer(recipe, prepared, **settings)
    assert torch.equal(weights(resumed), expected)
    assert count == steps  # it went on, and did not start again
    assert resumed.seconds > resumed.progress.seconds > 0


def test_a_teacher_that_diverges_is_said_to():
    recipe = Recipe.of(**STUDENT, regularize="kd", teacher="mlp", optimizer="sgd", lr=1e30)
    with pytest.raises(Diverged, match="of the teacher, the"):
        Trainer(recipe, Prepared.of(data.split(data.load("iris"), 0))).run()


@pytest.mark.parametrize(
    "settings",
    [
        {"data": "digits+limit=200", "head": "cosine(margin=0.2)", "softmax": "stablemax"},
        {"data": "digits+limit=200", "model": "vit", "attention": "sigmoid", "teacher": "cnn(width=8)"},
        {"data": "digits+limit=200", "loss": "cut_cross_entropy"},
        {"data": "crowd:n=200", "votes": "dawid_skene"},
        {"data": "strings:n=60", "model": "transformer", "teacher": "transformer(depth=1)"},
    ],
    ids=lambda settings: settings["data"],
)
def test_in_other_recipes(settings):
    found = run(Recipe.of(**{"teacher": "mlp", **settings}, regularize="nkd", steps=2), judge=False)
    assert found.status == "done"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularize": "0.5*kd"}, r"^0\.5\*kd learns from a teacher: name its model, as in teacher=mlp"),
        ({"teacher": "mlp"}, "^teacher=mlp has nobody to teach: add a loss that learns from it"),
        ({"teacher": "mlp", "regularize": "uskd"}, "has nobody to teach"),
        ({"teacher": "cn", "regularize": "kd"}, "teacher=cn: there is no such part"),
        ({"teacher": "transformer", "regularize": "kd"}, "^teacher=transformer: model=transformer"),
        ({"data": "diabetes", "teacher": "mlp", "regularize": "kd"}, "regularize=kd is for classification"),
        (
            {"data": "digits+task=oneclass", "model": "linear", "teacher": "mlp", "regularize": "kd"},
            "teacher= has no effect",
        ),
    ],
)
def test_what_cannot_work_is_said_before_training(settings, message):
    with pytest.raises(InputError, match=message):
        make_plan({"data": "digits+limit=200", **settings})


def test_in_a_comparison_who_learns_from_nobody_has_no_teacher():
    plan = make_plan({"regularize": "none,kd,uskd,nkd+z_loss", "teacher": "mlp"}, seeds=1)
    assert [str(arm.teacher) for arm in plan.arms] == ["none", "mlp", "none", "mlp"]
    assert plan.arms[0].hash == Recipe.of(head="linear").hash
    both = make_plan({"regularize": "kd", "teacher": "mlp,cnn"}, seeds=1)
    assert both.labels == ("teacher=mlp", "teacher=cnn")
    assert len({run.key for run in both.runs}) == 2


def test_a_comparison_leaves_no_checkpoint(tmp_path):
    settings = {**STUDENT, "data": "iris", "regularize": "none,kd", "teacher": TEACHER, "steps": 501}
    logitkit.compare(**settings, seeds=1, jobs=1, folder=tmp_path)
    assert (tmp_path / "checkpoints").is_dir()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert logitkit.load(tmp_path / "winner").recipe.model == Recipe.of(**STUDENT).model


def test_tuning_leaves_the_teacher_as_it_is():
    space = search_space(Recipe.of(loss="kd", teacher="mlp"), TASKS["classification"])
    assert {"model.hidden", "loss.temperature"} < set(space)
    assert not any(name.startswith("teacher") for name in space)
