"""Few-shot segmentation through the engine: some classes come up in the test only."""

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit import data
from logitkit.adapt import Prototype
from logitkit.cli.predictions import write_predictions
from logitkit.engine import Batch, Prepared, Recipe, Trainer, run
from logitkit.engine import metrics as M
from logitkit.errors import InputError

SOURCE = "scenes:n=150,size=24,classes=4+task=segmentation"
SMALL = {"data": SOURCE, "model": "cnn(width=8,pools=1)", "epochs": 1}


@pytest.fixture(scope="module")
def split():
    return data.split(data.load(SOURCE), 0)


def test_training_images_show_no_class_of_the_test(split):
    seen = set(split.train.y.unique().tolist())
    assert seen == {0, 1, 2, 3}
    assert set(split.val.y.unique().tolist()) <= seen
    assert (split.test.y == 4).flatten(1).any(1).all()
    source = data.load(SOURCE)
    names = split.test.class_names
    for row, y in zip(split.index["test"][:5].tolist(), split.test.y[:5], strict=True):
        for old, new in zip(
            source.y[row].unique(), [y[source.y[row] == k][0] for k in source.y[row].unique()], strict=True
        ):
            assert source.class_names[old] == names[new]


def test_the_loss_is_cross_entropy_at_the_positions_of_the_map(split):
    prepared = Prepared.of(split)
    each = Trainer(Recipe.of(**SMALL), prepared)
    x, y = (t[:6] for t in prepared.train)
    maps = each.network.maps(x)
    assert maps.shape[2:] == (12, 12)
    scores = F.conv2d(maps, each.network.head.weight[:, :, None, None], each.network.head.bias)
    expected = F.cross_entropy(scores, y[:, ::2, ::2])
    torch.testing.assert_close(each.objective(each.network, Batch(x, y, torch.arange(6))), expected)


def test_overlap_over_union_counted_by_hand():
    """Class 2 is not known and left out; the network's map is as fine as the image."""
    y = torch.tensor([[[0, 0, 1], [1, 2, 2]]])
    guess = torch.tensor([[[0, 1, 1], [0, 0, 1]]])

    class Network:
        grid = (2, 3)

        def __call__(self, x):
            return F.one_hot(guess.flatten(), 2).float()

    # background: 1 of 3 pixels; class 1: 1 of 3
    assert M.segmentation(Network(), torch.zeros(1), y, 2) == pytest.approx(1 / 3)


def test_few_shots_on_features_that_are_the_answer():
    """Where a feature is the mask itself, any number of shots finds every pixel; where it is noise, few."""
    g = torch.Generator().manual_seed(0)
    y = torch.zeros(20, 8, 8, dtype=torch.int64)
    for k in range(20):
        y[k, k % 5 : k % 5 + 3, 2:5] = 1 + k % 2
    perfect = torch.stack([(y == k).float() for k in range(3)], 1)
    noise = torch.randn(20, 3, 8, 8, generator=g)
    segment = Prototype().segment
    assert M.few_shot(perfect, y, 1, segment, g) == {"miou@1": 1.0, "miou@5": 1.0}
    found = M.few_shot(noise, y, 1, segment, g)
    assert max(found.values()) < 0.4
    with pytest.raises(InputError, match="6 are needed"):
        M.few_shot(perfect[:9], y[:9], 1, segment, g)


def test_a_comparison_ranks_ways_to_adapt(tmp_path):
    result = logitkit.compare(
        **SMALL, seeds=1, jobs=1, folder=tmp_path, store=f"sqlite:///{tmp_path}/s.sqlite"
    )
    assert {row.label for row in result.ranking} == {"adapt=prototype", "adapt=repri"}
    found = {row.label: row.means for row in result.ranking}
    assert found["adapt=prototype"]["miou"] == found["adapt=repri"]["miou"]
    assert found["adapt=prototype"]["miou@1"] != found["adapt=repri"]["miou@1"]
    x = data.load(SOURCE).x[:3]
    assert result.best.predict(x).shape == (3, 24, 24)
    written = tmp_path / "pixels.csv"
    assert write_predictions(result.best, SOURCE, written) == 150
    assert len(written.read_text().splitlines()[1].split()) == 24 * 24


def test_every_loss_of_classification_trains_on_pixels(split):
    prepared = Prepared.of(split)
    for loss in ("focal", "ldr"):
        assert "miou@1" in run(Recipe.of(**SMALL, loss=loss), prepared).metrics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "mlp"}, "no map of features"),
        ({"data": "digits+task=segmentation"}, "needs the class of every pixel"),
        ({"data": "digits", "model": "cnn"}, "needs pixels"),
        ({"adapt": "repri,flat"}, "does no segmentation"),
    ],
)
def test_what_cannot_be_is_said(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        logitkit.compare(**{**SMALL, "adapt": "prototype,repri", "folder": tmp_path, **settings})
