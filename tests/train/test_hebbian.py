"""Hebb's rule against class means, the Hopfield network of the paper, and a resumed run."""

import pytest
import torch

from logitkit import InputError, data
from logitkit.data import Dataset
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.theory import MultitaskingHopfield, diluted_patterns, noisy_examples


def trained(source, **settings):
    prepared = Prepared.of(data.split(source, 0))
    trainer = Trainer(Recipe.of(algorithm="hebbian", **{"model": "linear", **settings}), prepared)
    trainer.run()
    return trainer, prepared


def test_the_weights_are_the_couplings_of_the_hopfield_network():
    """Classes xi and -xi with mirrored examples: features are +-1 already, with mean 0 and deviation 1."""
    g = torch.Generator().manual_seed(0)
    pattern = diluted_patterns(1, 40, 0.0, g)
    examples = noisy_examples(pattern, 30, 0.5, g)[0]
    both = torch.stack([examples, -examples])
    rows = torch.arange(60)
    source = Dataset(
        "spins", both.flatten(0, 1), torch.arange(2).repeat_interleave(30), "classification", "vector",
        ("up", "down"), fixed_split={"train": rows, "val": rows, "test": rows},
    )  # fmt: skip
    trainer, _ = trained(source, epochs=1)
    network = MultitaskingHopfield().fit(both)
    v = both.mean(1).square().mean()
    torch.testing.assert_close(40 * v * trainer.network.head.weight.detach(), both.mean(1))
    w = trainer.network.head.weight.detach()
    torch.testing.assert_close(40 * v * w.T @ w, network.factors.T @ network.factors)
    assert trainer.progress.curve[-1]["val_accuracy"] == 1.0


def test_one_pass_is_enough_and_learns_digits():
    one, prepared = trained(data.load("digits"), epochs=1)
    three, _ = trained(data.load("digits"), epochs=3)
    torch.testing.assert_close(one.network.head.weight, three.network.head.weight)
    x, y = prepared.train
    z = (x.flatten(1) - x.flatten(1).mean(0)) / x.flatten(1).std(0, correction=0).clamp(min=1e-6)
    e = torch.stack([z.sign()[y == k].mean(0) for k in range(10)])
    expected = (z @ e.T).argmax(1)
    torch.testing.assert_close(one.network(x).argmax(1), expected)
    assert one.progress.curve[-1]["val_accuracy"] > 0.75  # chance is 0.1


def test_a_resumed_run_has_counted_the_same(tmp_path):
    prepared = Prepared.of(data.split(data.load("digits+limit=300"), 0))
    recipe = Recipe.of(algorithm="hebbian", model="mlp(hidden=(32,))", epochs=1)
    whole = Trainer(recipe, prepared).run()
    file = tmp_path / "state"
    first = Trainer(recipe, prepared, checkpoint=file, checkpoint_every=2)
    first._total = 2
    first.run()
    resumed = Trainer(recipe, prepared, checkpoint=file).run()
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_another_head_is_refused():
    prepared = Prepared.of(data.split(data.load("digits+limit=300"), 0))
    with pytest.raises(InputError, match="linear head with a bias, got CosineHead"):
        Trainer(Recipe.of(algorithm="hebbian", head="cosine"), prepared)
