"""AR2 as an algorithm: who learns when, from which candidates, and resumed."""

import copy

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.contrast import AR2Loss
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.errors import InputError
from logitkit.ops import ranker_loss
from logitkit.train.ar2 import scores_of

SOURCE = "passages:n=200,documents=40,entities=10,dim=8"
AR2 = "ar2(negatives=4,block=2,warmup=0.3,ranker_warmup=0.2)"
SMALL = {"data": SOURCE, "model": "mlp(hidden=(16,))", "head": "dual", "epochs": 10, "lr": 5e-3}
TOTAL = 20  # steps: 120 rows in 2 batches of 64, 10 epochs


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load(SOURCE), 0))


def trainer(prepared, algorithm=AR2, **settings):
    return Trainer(Recipe.of(**SMALL, algorithm=algorithm), prepared, **settings)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_who_learns_when(prepared):
    each = trainer(prepared)
    algorithm, step, moved = each.algorithm, each.algorithm.step, []

    def watched(trainer, batch):
        before = flat(trainer.network), None if algorithm.ranker is None else flat(algorithm.ranker)
        loss = step(trainer, batch)
        network = not torch.equal(flat(trainer.network), before[0])
        ranker = algorithm.ranker is not None and (
            before[1] is None or not torch.equal(flat(algorithm.ranker), before[1])
        )
        moved.append("both" if network and ranker else "network" if network else "ranker")
        return loss

    algorithm.step = watched
    each.run()
    assert moved == ["network"] * 6 + ["ranker"] * 4 + (["ranker"] * 2 + ["network"] * 2) * 2 + ["ranker"] * 2
    assert not any(name.startswith("ranker") for name in each.network.state_dict())


def test_until_the_warm_up_ends_it_is_the_ordinary_training(prepared):
    plain, ar2 = (
        Trainer(Recipe.of(**{**SMALL, "epochs": 1}, algorithm=a), prepared)
        for a in ("standard", "ar2(warmup=0.999,ranker_warmup=0,negatives=4)")
    )
    assert torch.equal(flat(plain.run()), flat(ar2.run()))


def test_candidates_are_the_nearest_and_losses_those_of_the_part(prepared):
    each = trainer(prepared)
    algorithm = each.algorithm
    each.progress.step = TOTAL - 1  # past every warm-up
    x, y = prepared.train
    ids = torch.arange(30, 60)
    batch = Batch(x[ids], y[ids], ids)
    with torch.no_grad():
        scores = each.network(x)
    scores[torch.arange(len(y)), y] = -torch.inf
    nearest = scores.topk(4, dim=1).indices[ids]
    candidates = torch.cat([y[ids][:, None], nearest], dim=1)
    found = algorithm.step(each, batch)
    assert torch.equal(algorithm.mined[ids], nearest)
    untaught = each.sibling(head="cross")
    torch.testing.assert_close(found, ranker_loss(untaught(batch.x).gather(1, candidates)).detach())
    algorithm.turns = 2
    network, ranker = copy.deepcopy(each.network), algorithm.ranker
    found = algorithm.step(each, batch)
    expected = AR2Loss(0.5, 1.0)(
        network(batch.x).gather(1, candidates), ranker(batch.x).gather(1, candidates)
    )
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(
        scores_of(each.network, batch.x, candidates), each.network(batch.x).gather(1, candidates)
    )


@pytest.mark.parametrize("stop", [4, 8, 13])
def test_resuming_changes_nothing(prepared, tmp_path, stop):
    expected = flat(trainer(prepared).run())

    class Stop(Exception):
        pass

    settings = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 1}
    first = trainer(prepared, **settings)
    step = first.algorithm.step

    def stopping(each, batch):
        if each.progress.step == stop:
            raise Stop
        return step(each, batch)

    first.algorithm.step = stopping
    with pytest.raises(Stop):
        first.run()
    assert torch.equal(flat(trainer(prepared, **settings).run()), expected)


def test_a_comparison_takes_it(tmp_path):
    result = logitkit.compare(
        **{**SMALL, "epochs": 2}, algorithm=f"standard,{AR2}", seeds=1, jobs=1, folder=tmp_path
    )
    assert {row.runs - row.diverged for row in result.ranking} == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "iris", "head": "linear"}, "trains a dual encoder .*, not LinearHead"),
        ({"head": "cross"}, "not CrossHead"),
        ({"algorithm": "ar2(negatives=40),standard"}, "of 40 documents, 40 cannot be negatives"),
        ({"algorithm": "ar2(warmup=0.9,ranker_warmup=0.2),standard"}, "leave some"),
        ({"algorithm": "ar2(lam=2),standard"}, r"lam must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "algorithm": "ar2,standard", "folder": tmp_path, **settings})
