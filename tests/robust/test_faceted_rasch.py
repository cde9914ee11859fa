"""Labels from votes on ordered levels, against the measurement of whole tables, search over a grid, and
workers of known severity."""

import math

import numpy as np
import pytest
import torch

import logitkit
from logitkit import data
from logitkit.data.generators import generate
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.errors import InputError
from logitkit.robust import Majority, RaschVotes
from logitkit.theory import FacetedRasch


def simulated(n=300, workers=12, share=0.5, levels=4, seed=0):
    """Votes by the model itself, and what they were drawn from."""
    generator = np.random.default_rng(seed)
    theta, alpha = generator.normal(0, 1.5, n), generator.normal(0, 1, workers)
    tau = np.array([-1.0, 0.0, 1.0])
    votes = np.full((n, workers), -1)
    for j in range(n):
        for i in range(workers):
            weights = np.exp(np.cumsum([0, *(theta[j] - alpha[i] - tau)]))
            if generator.random() < share:
                votes[j, i] = generator.choice(levels, p=weights / weights.sum())
    return torch.from_numpy(votes), theta, alpha - alpha.mean()


def test_measures_are_those_of_the_whole_table():
    votes, *_ = simulated()
    part = RaschVotes(4, prior_variance=3.0).fit(votes)
    table = [(j, 0, i, int(v)) for j, row in enumerate(votes) for i, v in enumerate(row) if v >= 0]
    whole = FacetedRasch(4, prior_variance=3.0).fit(torch.tensor(table))
    torch.testing.assert_close(part.alpha, whole.alpha)
    rated = ~whole.theta.isnan()
    torch.testing.assert_close(
        part.measure(votes[: len(rated)])[rated], whole.theta[rated], rtol=0, atol=1e-4
    )
    p = part.transform(votes)[:1].double()
    steps = (p[0, 1:] / p[0, :-1]).log()
    torch.testing.assert_close(steps, part.measure(votes[:1]) - whole.tau[0], rtol=0, atol=1e-4)


def test_new_rows_lie_where_the_posterior_is_highest():
    votes, *_ = simulated()
    part = RaschVotes(4, prior_variance=2.0).fit(votes)
    row = torch.tensor([[3, -1, 0, 2] + [-1] * 8])
    grid = np.linspace(-6, 6, 24001)
    log_posterior = -(grid**2) / (2 * 2.0)
    for worker, vote in ((0, 3), (2, 0), (3, 2)):
        rises = grid[:, None] - part.alpha[worker].item() - part.tau.numpy()
        ladder = np.concatenate([np.zeros((len(grid), 1)), rises.cumsum(1)], axis=1)
        log_posterior += ladder[:, vote] - np.log(np.exp(ladder).sum(1))
    assert part.measure(row).item() == pytest.approx(grid[log_posterior.argmax()], abs=1e-3)


def test_severity_is_found_and_taken_out():
    votes, theta, alpha = simulated()
    part = RaschVotes(4).fit(votes)
    assert np.corrcoef(part.alpha, alpha)[0, 1] > 0.95
    assert part.alpha.mean().item() == pytest.approx(0, abs=1e-9)
    mean = [row[row >= 0].double().mean().item() if (row >= 0).any() else np.nan for row in votes]
    kept = ~np.isnan(mean)
    measured = part.measure(votes).numpy()
    found, raw = (np.corrcoef(each[kept], theta[kept])[0, 1] for each in (measured, np.array(mean)))
    assert found > raw + 0.02


def test_the_label_is_the_median_level_and_a_strict_workers_vote_weighs_more():
    votes, *_ = simulated()
    part = RaschVotes(4).fit(votes)
    p = part.transform(votes)
    for row, label in zip(p.tolist(), part.predict(votes).tolist(), strict=True):
        assert sum(row[:label]) < 0.5 <= sum(row[: label + 1]) + 1e-6
    lone = torch.full((12, 12), -1)
    lone.fill_diagonal_(1)
    theta = part.measure(lone)
    assert torch.equal(theta.argsort(), part.alpha.argsort())
    nobody = torch.full((1, 12), -1)
    assert part.measure(nobody).item() == pytest.approx(0, abs=1e-9)


def test_workers_who_guess_and_workers_who_never_voted_are_left_out():
    votes, *_ = simulated()
    votes[:, 3] = torch.randint(4, (len(votes),))
    votes[:, -1] = -1
    part = RaschVotes(4, infit_bounds=(0.5, 1.5)).fit(votes)
    assert part.alpha.isnan().nonzero().flatten().tolist() == [3, 11]
    other = votes.clone()
    other[:, 3], other[:, 11] = 0, 3
    assert torch.equal(part.transform(other), part.transform(votes))
    assert not RaschVotes(4).fit(votes).alpha[:-1].isnan().any()


def test_votes_of_the_ratings_data_are_its_judges_and_their_labels_beat_counting():
    source = generate("ratings", "n=1500,judges=20,each=6,severity=1.5,spammers=0")
    votes, judge = source.extras["votes"], source.extras["judge"]
    assert votes.shape == (1500, 20)
    assert torch.equal((votes >= 0).sum(1), torch.full((1500,), 6))
    assert torch.equal((votes >= 0).nonzero()[:, 1], judge.sort(dim=1).values.flatten())
    away = {
        type(part).__name__: (part.fit(votes).predict(votes) - source.y).abs().double().mean().item()
        for part in (RaschVotes(5), Majority(5))
    }
    assert away["RaschVotes"] < 0.8 * away["Majority"]


def test_through_the_engine(tmp_path):
    spec = "ratings:n=300,judges=10,each=5+task=crowd"
    recipe = Recipe.of(data=spec, votes="faceted_rasch(prior_variance=4)", epochs=2)
    split = data.split(data.load(spec), 0)
    trainer = Trainer(recipe, Prepared.of(split))
    part = RaschVotes(5, prior_variance=4).fit(split.train.y)
    assert torch.equal(trainer.data.train[1], part.predict(split.train.y))
    assert torch.equal(trainer.data.val[1], part.predict(split.val.y))
    assert torch.equal(trainer.data.test[1], split.test.y)
    result = logitkit.compare(
        data=spec, votes="majority,faceted_rasch", epochs=2, seeds=1, jobs=1, folder=tmp_path
    )
    assert {r["recipe"]["votes"] for r in result.records.values()} == {"majority", "faceted_rasch"}


@pytest.mark.parametrize(
    "bad",
    [{"num_classes": 1}, {"prior_variance": 0}, {"prior_variance": math.inf}, {"infit_bounds": (1.1, 2)}],
    ids=str,
)
def test_bad_hyperparameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RaschVotes(**{"num_classes": 3, **bad})


def test_votes_that_cannot_be_measured():
    with pytest.raises(ValueError, match="no votes in 3 items"):
        RaschVotes(3).fit(torch.full((3, 2), -1))
    with pytest.raises(ValueError, match="2 groups that no rating links"):
        RaschVotes(3).fit(torch.tensor([[0, 1, -1, -1], [-1, -1, 2, 1]]))
    with pytest.raises(ValueError, match="must be fitted"):
        RaschVotes(3).transform(torch.zeros(2, 2).long())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("iris+task=crowd", r"\+task=crowd needs the votes of workers, and iris has none"),
        ("ratings+task=crowd+noise=0.1", r"\+task=crowd knows votes alone"),
        ("ratings+task=crowd+bags=4", r"\+task=crowd knows votes alone"),
    ],
)
def test_data_without_votes_or_with_labels_to_change(spec, says):
    with pytest.raises(InputError, match=says):
        data.load(spec)
