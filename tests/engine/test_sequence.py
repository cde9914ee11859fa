"""Sequence tasks through the engine: tokens as rows, ignored positions, language models without logits."""

import math

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.data.base import IGNORE
from logitkit.engine import Batch, Prepared, Recipe, Trainer, metrics, run
from logitkit.errors import InputError

RECALL = "recall:n=300,vocab=16,pairs=3,length=12"
SMALL = {"model": "transformer(dim=32)", "batch_size": 16, "lr": 3e-3}


def trainer(**settings):
    recipe = Recipe.of(**{"data": RECALL, "epochs": 1, **SMALL, **settings})
    return Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))


def batch_of(each, rows=8):
    x, y = each.data.train
    return Batch(x[:rows], y[:rows], torch.arange(rows))


def test_the_loss_is_the_mean_over_the_tokens_that_count():
    each = trainer()
    batch = batch_of(each)
    scores = each.network(batch.x)
    assert scores.shape == (8 * 12, 16)
    expected = F.cross_entropy(scores, batch.y.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(each.objective(each.network, batch), expected)


def test_a_language_model_learns_the_same_without_its_logits():
    plain, cut = trainer(), trainer(loss="cut_cross_entropy(filter_eps=None)")
    losses = [each.objective(each.network, batch_of(each)) for each in (plain, cut)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    pairs = zip(plain.network.parameters(), cut.network.parameters(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_examples_are_tokens_to_a_loss_that_knows_them():
    each = trainer(loss="aldr")
    loss = each.objective.losses[0]
    assert len(loss.lam) == len(each.data.train[1]) * 12
    before = loss.lam.clone()
    batch = batch_of(each)
    each.objective(each.network, batch)
    changed = (loss.lam != before).nonzero()[:, 0]
    kept = (batch.y.flatten() != IGNORE).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(kept.tolist())
    assert len(changed) > 0


def test_losses_of_whole_sequences_see_whole_sequences():
    each = trainer(loss="eisl(noise=False)", regularize="0.5*cross_entropy")
    batch = batch_of(each)
    scores = each.network(batch.x)
    eisl, ce = each.objective.losses
    expected = eisl(scores.view(8, 12, -1), batch.y) + 0.5 * ce(scores, batch.y.flatten())
    torch.testing.assert_close(each.objective(each.network, batch), expected)


def test_metrics_against_torch(monkeypatch):
    monkeypatch.setattr(metrics, "SEQUENCES", 3)
    g = torch.Generator().manual_seed(0)
    table = torch.randn(9, 9, generator=g)
    x = torch.randint(9, (10, 5), generator=g)
    y = torch.randint(9, (10, 5), generator=g).masked_fill(torch.rand(10, 5, generator=g) < 0.4, IGNORE)
    found = metrics.tokens(lambda x: table[x].flatten(0, 1), x, y)
    scores = table[x].flatten(0, 1)
    nats = F.cross_entropy(scores.double(), y.flatten(), ignore_index=IGNORE).item()
    kept = y.flatten() != IGNORE
    right = (scores.argmax(1) == y.flatten())[kept].double().mean().item()
    assert found["bits"] == pytest.approx(nats / math.log(2))
    assert found["perplexity"] == pytest.approx(math.exp(nats))
    assert found["accuracy"] == pytest.approx(right)
    p = table.double().softmax(1)
    each = [
        [p[a, b].item() for a, b in zip(*row, strict=True) if b >= 0]
        for row in zip(x.tolist(), y.tolist(), strict=True)
    ]
    assert found["exact"] == pytest.approx(sum(math.prod(row) for row in each) / 10)
    best = [
        all(b in (IGNORE, table[a].argmax()) for a, b in zip(*row, strict=True))
        for row in zip(x.tolist(), y.tolist(), strict=True)
    ]
    assert found["map_exact"] == sum(best) / 10
    everywhere = metrics.tokens(lambda x: table[x].flatten(0, 1), x, x)
    assert set(everywhere) == {"bits", "accuracy", "perplexity"}  # a row of running text is no answer
    with pytest.raises(InputError, match="'exact' is of prompts and answers; data=text:stdlib"):
        logitkit.compare(data="text:stdlib+limit=100", model="transformer", loss="ce,focal", metric="exact")


def test_a_language_model_learns_and_is_saved(tmp_path):
    recipe = Recipe.of(data="text:stdlib+limit=600+length=32", epochs=2, **SMALL)
    result = run(recipe)
    assert result.metrics["bits"] < 5.0  # 8 at the start; letters' frequencies alone give 4.7
    assert result.metrics["perplexity"] == pytest.approx(2 ** result.metrics["bits"])
    assert "noise_bits" not in result.metrics
    result.predictor.save(tmp_path)
    again = logitkit.load(tmp_path)
    rows = data.load(recipe.data).take(torch.arange(3))
    found = again.predict(rows)
    assert found.shape == (3, 32)
    assert torch.equal(found, result.predictor.predict(rows))


def test_tokens_are_classified_by_their_last_position():
    result = run(Recipe.of(data="modular:p=7", epochs=3, **SMALL))
    assert result.predictor.probabilities(torch.tensor([[1, 2, 7]])).shape == (1, 7)


def test_comparisons_of_losses_heads_and_normalisers(tmp_path):
    small = {"data": RECALL, "epochs": 1, "seeds": 2, "jobs": 1, **SMALL}
    result = logitkit.compare(loss="ce,ldr,cut_cross_entropy,eisl", folder=tmp_path / "a", **small)
    result.report(tmp_path / "report.html")
    assert "bits per token" in (tmp_path / "report.html").read_text()
    logitkit.compare(softmax="softmax,stablemax", head="linear,cosine", folder=tmp_path / "b", **small)


def test_what_does_not_fit_is_said():
    for settings, message in (
        ({"model": "mlp"}, "cannot read tokens; use model=transformer"),
        ({"calibrate": "utility_probability"}, "needs rows of a prompt and then one answer"),
        ({"calibrate": "correctness_aware"}, "needs images"),
        ({"calibrate": "dbnorm"}, "is for retrieval"),
        ({"loss": "mse"}, "sequence task"),
        ({"loss": "multitask"}, "which comparisons do not have"),
    ):
        with pytest.raises(InputError, match=message):
            run(Recipe.of(**{"data": RECALL, "epochs": 1, **SMALL, **settings}))
    with pytest.raises(InputError, match="reads tokens, and the data hold none"):
        run(Recipe.of(data="digits", model="transformer", epochs=1))
