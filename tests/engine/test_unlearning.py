"""Unlearning through the engine: facts that training saw, of which some are forgotten before the model is
judged."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.adapt import GradientAscent, Unlearner
from logitkit.cli.predictions import write_predictions
from logitkit.data.base import IGNORE, following, seeded
from logitkit.engine import Prepared, Recipe, Trainer, run
from logitkit.engine import metrics as M
from logitkit.engine.tasks import TASKS
from logitkit.engine.unlearning import unlearned
from logitkit.errors import InputError

SOURCE = "facts:n=30,forget=6,unknown=4,names=8,words=6"
SMALL = {"data": SOURCE, "model": "transformer(dim=32,depth=1)", "lr": 0.01, "epochs": 60, "batch_size": 34}


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load(SOURCE), 0))


@pytest.fixture(scope="module")
def trained(prepared):
    return Trainer(Recipe.of(**SMALL), prepared).run()


@pytest.fixture
def facts(prepared):
    return *prepared.train, prepared.train_set.extras["instead"]


def test_the_generator_says_what_it_draws():
    source = data.load("facts")
    assert source.x.shape == source.y.shape == (220, 4)
    assert len({tuple(row[:2].tolist()) for row in source.x}) == 220
    assert source.x[:, :2].max() < 30 <= source.y[:200, 1:].min()
    assert source.y[:200, 1:].max() < 50
    assert (source.y[200:, 1:] == torch.tensor([50, 51, 52])).all()
    assert torch.equal(source.x[:, 2:], source.y[:, 1:3])
    assert (source.y[:, 0] == IGNORE).all()
    marked = (source.extras["instead"] != IGNORE).any(1)
    assert marked.nonzero().flatten().tolist() == list(range(20))
    assert (source.extras["instead"][:20, 1:] == torch.tensor([50, 51, 52])).all()


def test_every_fact_is_trained_on_and_every_fact_is_asked():
    source = data.load(SOURCE)
    for seed in (0, 1):
        split = data.split(source, seed)
        assert torch.equal(split.train.x, source.x)
        assert torch.equal(split.val.y, source.y)
        assert torch.equal(split.index["test"], torch.arange(30))  # not the names that no fact is known of
        assert torch.equal(split.test.y[:, 0], source.y[:30])
        assert torch.equal(split.test.y[:, 1], source.extras["instead"][:30])


def test_shares_against_answers_said_token_by_token(prepared, trained):
    x, y = prepared.test
    halfway = copy.deepcopy(trained)
    with torch.no_grad():
        for p in halfway.parameters():
            p += 0.7 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * p.std()
    said = []
    for row in x:
        tokens = row[:2].tolist()
        for _ in range(3):
            pad = torch.tensor(tokens + [0] * (4 - len(tokens)))[None, :4]
            tokens.append(int(halfway(pad)[min(len(tokens), 4) - 1].argmax()))
        said.append(tokens[2:])
    answers = [a == b for a, b in zip(said, y[:, 0, 1:].tolist(), strict=True)]
    template = [a == y[0, 1, 1:].tolist() for a in said[:6]]
    found = M.unlearning(halfway, x, y)
    assert 0 < found["retained"] < 1
    assert found["known"] == pytest.approx(sum(answers[:6]) / 6)
    assert found["retained"] == pytest.approx(sum(answers[6:]) / 24)
    assert found["template"] == pytest.approx(sum(template) / 6)
    assert found["selectivity"] == found["retained"] - found["known"]


def test_a_step_is_adamw_on_what_is_to_be_forgotten_and_leaves_the_trained_network(trained, facts):
    x, y, _ = facts
    trained = copy.deepcopy(trained).double()
    before = copy.deepcopy(trained.state_dict())
    found = unlearned(trained, GradientAscent(lr=0.01, steps=1, stop=None), (), *facts, seeded(0))
    expected = copy.deepcopy(trained)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01)
    (-F.cross_entropy(expected(x[:6]), y[:6].flatten(), ignore_index=IGNORE)).backward()
    optimizer.step()
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for key, value in trained.state_dict().items():
        assert torch.equal(value, before[key])


class Watching(Unlearner):
    """Keeps what it sees, and moves every parameter."""

    def forward(self, forget_logits, forget_labels, **needs):
        self.seen = {"forget_logits": forget_logits, "forget_labels": forget_labels, **needs}
        return forget_logits.sum()


def test_an_unlearner_sees_what_it_needs(trained, facts):
    x, y, instead = facts
    everything = (
        "template_logits", "template_labels", "retain_logits", "retain_labels", "forget_reference",
        "template_reference",
    )  # fmt: skip
    part = Watching(steps=2, stop=None)
    found = unlearned(trained, part, everything, *facts, seeded(0))
    seen = part.seen
    asked = x[:6].clone()
    other = asked.clone()
    other[:, 2:] = instead[:6, 1:3]
    assert torch.equal(seen["forget_labels"], y[:6])
    assert torch.equal(seen["template_labels"], instead[:6])
    torch.testing.assert_close(seen["forget_reference"], trained(asked).view(6, 4, -1).detach())
    torch.testing.assert_close(seen["template_reference"], trained(other).view(6, 4, -1).detach())
    assert not torch.equal(seen["forget_logits"], seen["forget_reference"])  # the second step
    assert seen["template_logits"].requires_grad
    assert not seen["template_reference"].requires_grad
    kept = {tuple(row) for row in y[6:].tolist()}
    assert {tuple(row) for row in seen["retain_labels"].tolist()} <= kept
    assert len(seen["retain_logits"]) == 6
    assert not torch.equal(next(found.parameters()), next(trained.parameters()))
    only = Watching(steps=1, stop=None)
    unlearned(trained, only, (), *facts, seeded(0))
    assert only.seen.keys() == {"forget_logits", "forget_labels"}


def test_it_stops_when_enough_is_forgotten(trained, facts):
    found = unlearned(trained, Watching(stop=1.0), (), *facts, seeded(0))
    for a, b in zip(found.parameters(), trained.parameters(), strict=True):
        assert torch.equal(a, b)


def test_following_is_what_a_model_has_read():
    x, y = torch.tensor([[1, 2, 7, 7, 7]]), torch.tensor([[IGNORE, 3, 4, IGNORE, IGNORE]])
    assert following(x, y).tolist() == [[1, 2, 3, 4, 7]]


def test_a_comparison_ranks_unlearners_and_keeps_a_model_that_has_forgotten(tmp_path):
    settings = {**SMALL, "seeds": 1, "adapt": "none,flat,grad_diff"}
    result = logitkit.compare(**settings, jobs=1, folder=tmp_path / "a")
    found = {row.label: row.means for row in result.ranking}
    assert found["adapt=none"]["retained"] == found["adapt=none"]["known"] == 1.0
    assert result.ranking[-1].label == "adapt=none"
    for name in ("adapt=flat", "adapt=grad_diff"):
        assert found[name]["known"] <= 0.05
        assert found[name]["selectivity"] > 0
    x, y = data.load(SOURCE).x, data.load(SOURCE).y
    again = logitkit.load(tmp_path / "a" / "winner")
    said = again.predict(x)
    assert torch.equal(said, result.best.predict(x))
    right = (said == y)[:, 1:].all(1)
    assert right[:6].sum() == 0
    assert right[6:30].double().mean().item() == pytest.approx(result.ranking[0].means["retained"])
    written = tmp_path / "said.csv"
    assert write_predictions(again, SOURCE, written) == 34
    page = result.report(tmp_path / "report.html").read_text()
    assert "3 ways to adapt were compared" in page
    assert "share of the facts to forget that are answered exactly" in page
    twice = logitkit.compare(**{**settings, "adapt": "flat,grad_diff"}, jobs=2, folder=tmp_path / "b")
    for row in twice.ranking:
        assert row.means["retained"] == found[row.label]["retained"]


def test_unlearning_that_blows_up_is_a_run_that_diverged(prepared):
    recipe = Recipe.of(**{**SMALL, "epochs": 1}, adapt="gradient_ascent(lr=1e30,stop=None)")
    found = run(recipe, prepared)
    assert found.status.startswith("diverged")
    assert "of unlearning" in found.status
    assert found.metrics == {}


def test_losses_of_sequences_train_facts_and_tuning_leaves_unlearning_alone(prepared):
    from logitkit.comparison.work import search_space

    for loss in ("eisl(noise=False)", "focal"):
        found = run(Recipe.of(**{**SMALL, "epochs": 1}, loss=loss, adapt="flat"), prepared)
        assert math.isfinite(found.metrics["selectivity"])
    assert not any(
        key.startswith("adapt") for key in search_space(Recipe.of(adapt="flat"), TASKS["unlearning"])
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapt": "repri,flat"}, "adapt=repri does no unlearning. Use one of dpo, flat"),
        ({"adapt": "flat,npo", "data": "strings:n=50"}, "facts to forget"),
        ({"adapt": "none,flat", "data": "strings:n=50"}, "facts to forget"),
        ({"adapt": "flat(steps=0),none"}, "steps must be at least 1"),
        ({"data": "facts:n=5,forget=5"}, "forget=5 below n=5"),
        ({"data": f"{SOURCE}+noise=0.2"}, "noise is for classification"),
        ({"metric": "bits"}, "not a metric of unlearning"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "folder": tmp_path, **settings})


def test_facts_that_cannot_be_used_are_said():
    source = data.load(SOURCE)
    with pytest.raises(InputError, match=r"without extras\['instead'\]"):
        data.split(replace(source, extras={}), 0)
    nothing = {"instead": torch.full_like(source.y, IGNORE)}
    with pytest.raises(InputError, match="marks 0 of 34 rows"):
        data.split(replace(source, extras=nothing), 0)
    with pytest.raises(InputError, match="each token of which is the next input"):
        data.split(replace(source, x=source.x.flip(1)), 0)
