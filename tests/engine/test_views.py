"""Losses of several views in training: what they see, that a seed repeats them, and what is refused."""

import pytest
import torch

from logitkit import data
from logitkit.engine import Prepared, Recipe, Trainer, run
from logitkit.errors import InputError
from logitkit.ops import random_views


def trained(**settings):
    recipe = Recipe.of(**{"data": "moons:n=100", "epochs": 2, "batch_size": 16, **settings})
    return Trainer(recipe, Prepared.of(data.split(data.load(recipe.data), 0)))


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.run().parameters()])


def test_views_of_rows_are_scaled_and_noisy():
    x = torch.ones(4000, 3)
    views = random_views(x, 2, torch.Generator().manual_seed(0))
    assert views.shape == (2, 4000, 3)
    gain = views.mean(-1)
    assert float(gain.mean()) == pytest.approx(1, abs=0.01)
    assert float((views - gain[..., None]).std()) == pytest.approx(0.15 * (2 / 3) ** 0.5, abs=0.01)
    assert not torch.equal(views[0], views[1])


def test_every_view_is_of_the_example_in_its_place():
    x = 100.0 * torch.arange(1, 9)[:, None].expand(8, 400)
    gain = random_views(x, 3, torch.Generator().manual_seed(0)).mean(-1) / x[:, 0]
    assert gain.min() > 0.69
    assert gain.max() < 1.31


def test_views_of_images_are_moved():
    """One bright pixel in the middle of 16 x 16 is found within 2 pixels of it, and everywhere there."""
    x = torch.zeros(600, 1, 16, 16)
    x[:, 0, 8, 5] = 10
    place = random_views(x, 1, torch.Generator().manual_seed(0))[0, :, 0].flatten(1).argmax(1)
    row, column = place // 16 - 8, place % 16 - 5
    assert sorted(set(row.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set(column.tolist())) == [-2, -1, 0, 1, 2]
    assert float(row.double().mean()) == pytest.approx(0, abs=0.2)


def test_what_comes_in_repeats_the_edge():
    x = torch.arange(8.0).expand(1, 1, 8, 8).repeat(200, 1, 1, 1) + 100
    views = random_views(x, 1, torch.Generator().manual_seed(0))[0]
    assert float(views.amin()) > 0.7 * 100 - 2
    with pytest.raises(ValueError, match="int64"):
        random_views(torch.ones(3, 4, dtype=torch.int64), 2)


def test_the_loss_gets_embeddings_of_as_many_views_as_it_wants():
    trainer = trained(loss="mse", data="friedman:n=60", regularize="0.5*cacr(views=3)+siglip")
    seen = []
    for loss in trainer.objective.losses[1:]:
        loss.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    weights(trainer)
    width = trainer.network.backbone.out_features
    assert seen[0] == (3, 16, width)
    assert seen[1] == (2, 16, width)


def test_a_seed_repeats_and_another_differs():
    first = weights(trained(regularize="0.1*simclr"))
    assert torch.equal(first, weights(trained(regularize="0.1*simclr")))
    assert not torch.equal(first, weights(trained()))


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    expected = weights(trained(regularize="0.1*cacr"))

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    settings = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 1}
    recipe = Recipe.of(data="moons:n=100", epochs=2, batch_size=16, regularize="0.1*cacr")
    prepared = Prepared.of(data.split(data.load(recipe.data), 0))
    with pytest.raises(Stop):
        Trainer(recipe, prepared, on_epoch=stop, **settings).run()
    assert torch.equal(weights(Trainer(recipe, prepared, **settings)), expected)


def test_learned_numbers_of_a_loss_of_views_are_trained():
    trainer = trained(regularize="siglip")
    before = [p.detach().clone() for p in trainer.objective.parameters()]
    trainer.run()
    assert before
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.objective.parameters(), strict=True))


def test_without_labels_it_finds_what_belongs_together():
    settings = {"data": "glyphs:n=300,classes=10,size=12+task=retrieval", "model": "cnn(width=8)"}
    found, untrained = (run(Recipe.of(**settings, epochs=5, loss="cacr", lr=lr)) for lr in (3e-3, 1e-9))
    assert found.metrics["map"] > untrained.metrics["map"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": "modular:p=7", "model": "transformer"}, "on tokens"),
        ({"data": "scenes:n=60,size=16+task=segmentation", "model": "cnn"}, "on pixels"),
    ],
)
def test_views_of_tokens_and_pixels_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        trained(**settings, regularize="cacr")


def test_a_loss_that_trains_no_last_layer_is_refused():
    for loss in ("cacr", "supcon"):
        with pytest.raises(InputError, match=f"loss={loss} trains embeddings and no last layer"):
            trained(loss=loss)
