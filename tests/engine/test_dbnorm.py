"""Dual bank normalisation through the engine: similarities are normalised before they are ranked."""

import pytest
import torch

import logitkit
from logitkit import data
from logitkit.engine import Prepared, Recipe, metrics, run
from logitkit.errors import InputError

SOURCE = "glyphs:n=400,classes=20,size=8+task=retrieval"
SMALL = {"data": SOURCE, "model": "mlp(hidden=(16,))", "epochs": 3, "lr": 3e-3}


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(data.split(data.load(SOURCE), 0))


@pytest.fixture(scope="module")
def results(prepared):
    return {c: run(Recipe.of(**SMALL, calibrate=c), prepared) for c in ("none", "dbnorm(beta1=9,beta2=4)")}


def cosines(a, b):
    return torch.cosine_similarity(a[:, None], b[None], dim=2).double()


def test_rows_are_ranked_by_the_formula_on_the_embeddings(prepared, results, monkeypatch):
    plain, found = results.values()
    network = found.predictor.network
    with torch.no_grad():
        test, val = network.embed(prepared.test[0]), network.embed(prepared.val[0])
    s, bank = cosines(test, test), cosines(val, test)
    sums = (9 * bank).exp().sum(0), (4 * bank).exp().sum(0)
    expected = (9 * s).exp() / sums[0] * (4 * s).exp() / sums[1]
    torch.testing.assert_close(
        found.predictor.similarities(prepared.test[0], prepared.test[0]).double().exp(), expected,
        rtol=1e-3, atol=0,
    )  # fmt: skip
    y = prepared.test[1]
    first, average = [], []
    for i in range(len(y)):
        order = [j for j in expected[i].argsort(descending=True).tolist() if j != i]
        right = [int(y[j] == y[i]) for j in order]
        first.append(right[0])
        average.append(sum(sum(right[: k + 1]) / (k + 1) for k, r in enumerate(right) if r) / sum(right))
    assert found.metrics["map"] == pytest.approx(sum(average) / len(y), abs=1e-4)
    assert found.metrics["r@1"] == pytest.approx(sum(first) / len(y))
    assert found.metrics["map"] != plain.metrics["map"]
    assert plain.metrics["map"] == metrics.retrieval(test, y)["map"]  # training is the same
    monkeypatch.setattr(metrics, "QUERIES", 17)
    assert found.predictor.evaluate(prepared.test[0], y)[0]["map"] == pytest.approx(found.metrics["map"])


def test_a_row_of_the_bank_is_left_out_where_it_is_the_gallery_row(prepared, results):
    """Searching among the validation rows themselves, each leaves itself out of its sums."""
    predictor = results["dbnorm(beta1=9,beta2=4)"].predictor
    x = prepared.val[0]
    assert torch.equal(predictor.bank, predictor.embeddings(x))
    bank = cosines(predictor.bank, predictor.bank)
    off = bank.masked_fill(bank > 1 - 1e-6, -torch.inf)
    assert (off.diagonal() == -torch.inf).all()
    expected = 13 * bank - (9 * off).logsumexp(0) - (4 * off).logsumexp(0)
    torch.testing.assert_close(predictor.similarities(x, x).double(), expected, rtol=1e-4, atol=1e-4)
    flat = torch.ones(3, predictor.bank.shape[1])
    predictor.bank, kept = flat, predictor.bank  # a network that maps all to one point
    assert predictor.normaliser(flat)(torch.ones(2, 3)).isfinite().all()
    predictor.bank = kept


def test_a_saved_model_keeps_its_bank(prepared, results, tmp_path):
    predictor = results["dbnorm(beta1=9,beta2=4)"].predictor
    predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    x, y = prepared.test
    assert torch.equal(again.similarities(x[:5], x), predictor.similarities(x[:5], x))
    assert again.evaluate(x, y)[0]["map"] == predictor.metrics["map"]
    assert torch.equal(again.predict(data.load(SOURCE)), predictor.predict(data.load(SOURCE)))
    results["none"].predictor.save(tmp_path / "plain")
    plain = logitkit.load(tmp_path / "plain")
    torch.testing.assert_close(
        plain.similarities(x[:5], x).double(), cosines(*map(plain.embeddings, (x[:5], x)))
    )


def test_a_comparison_ranks_normalisers(tmp_path):
    result = logitkit.compare(**SMALL, calibrate="none,dbnorm", seeds=2, jobs=1, folder=tmp_path)
    assert {row.label for row in result.ranking} == {"calibrate=none", "calibrate=dbnorm"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibrate": "temperature,dbnorm"}, "temperature is for .*; this is a retrieval task"),
        ({"calibrate": "none,dbnorm+dbnorm"}, "dbnorm . dbnorm normalises similarities more than once"),
        ({"data": "digits", "calibrate": "none,dbnorm"}, "dbnorm is for retrieval; this is a classification"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "folder": tmp_path, **settings})
