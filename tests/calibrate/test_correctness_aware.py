"""Correctness-aware calibration: its objective by hand, a search over temperatures, and the engine."""

import pytest
import torch
from torch.nn import functional as F

import logitkit
from logitkit.calibrate import CorrectnessAware, ca_loss, image_views
from logitkit.calibrate.correctness_aware import view_features
from logitkit.data import load, split
from logitkit.engine import Prepared, Recipe, run
from logitkit.errors import InputError


def sample(n=400, classes=5, seed=0):
    """Overconfident logits, and views that move away from them where they are wrong."""
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.multinomial((logits / 4).softmax(1), 1, generator=g)[:, 0]
    shaky = (logits.argmax(1) != y).double()[:, None]
    views = logits * (1 - 0.8 * shaky) + torch.randn(3, n, classes, generator=g, dtype=torch.float64)
    return logits, y, views


def test_loss_by_hand():
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    correct = torch.tensor([True, True, True, False])
    squares = [0.01, 0.16, 0.04, 0.49]
    balanced = (0.25 * sum(squares[:3]) + 0.75 * squares[3]) / 1.5
    assert ca_loss(confidence, correct).item() == pytest.approx(balanced)
    assert ca_loss(confidence, correct, balance=False).item() == pytest.approx(sum(squares) / 4)
    alike = torch.ones(4, dtype=torch.bool)
    assert ca_loss(confidence, alike).item() == pytest.approx((0.01 + 0.16 + 0.04 + 0.09) / 4)
    assert ca_loss(confidence, ~alike).item() == pytest.approx((0.81 + 0.36 + 0.64 + 0.49) / 4)


def test_gradient_of_the_loss():
    confidence = torch.rand(6, dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([True, False, True, True, False, True])
    assert torch.autograd.gradcheck(lambda c: ca_loss(c, correct), confidence)


def test_a_narrow_miss_is_softened_where_cross_entropy_sharpens_it():
    z = torch.tensor([[0.45, 0.40, 0.15]], dtype=torch.float64).log()
    t = torch.ones((), dtype=torch.float64, requires_grad=True)
    (ca,) = torch.autograd.grad(ca_loss((z / t).softmax(1).amax(1), torch.tensor([False])), t)
    (ce,) = torch.autograd.grad(F.cross_entropy(z / t, torch.tensor([1])), t)
    assert ca < 0  # a descent step raises T
    assert ce.item() == pytest.approx(0.094, abs=1e-3)  # a descent step lowers it


@pytest.mark.parametrize("balance", [True, False])
def test_with_constant_views_it_is_the_best_single_temperature(balance):
    logits, y, _ = sample()
    top = logits.argsort(dim=1, descending=True)
    constant = torch.linspace(2, 0, 5, dtype=torch.float64).expand_as(top)
    views = torch.zeros(2, *logits.shape, dtype=torch.float64).scatter(
        2, top.expand(2, -1, -1), constant.expand(2, -1, -1)
    )
    part = CorrectnessAware(balance=balance).fit(logits, y, views=views)
    t = part.temperature(logits, views)
    torch.testing.assert_close(t, t[:1].expand_as(t))
    correct = logits.argmax(1) == y
    grid = torch.linspace(0.1, 10, 2000, dtype=torch.float64)
    losses = torch.stack([ca_loss((logits / g).softmax(1).amax(1), correct, balance) for g in grid])
    assert t[0].item() == pytest.approx(grid[losses.argmin()].item(), rel=0.01)


def test_features_are_the_views_probabilities_of_the_top_classes():
    logits, _, views = sample(7)
    found = view_features(logits, views, topk=2)
    for i in range(7):
        top = logits[i].argsort(descending=True)[:2]
        expected = torch.cat([view[i].softmax(0)[top] for view in views])
        torch.testing.assert_close(found[i], expected)
    assert view_features(logits, views, topk=9).shape == (7, 15)


def test_temperature_loss_and_gradients_of_the_official_code():
    """Temperature_adaptive of src/cal_metrics/temperature_scaling_CA.py in
    github.com/liuyvchi/Correctness-aware-calibration on what src/run_cal.py gives it, three other views at
    the four likeliest classes: temperatures, and the loss of its first step with its gradients."""
    z = torch.arange(40).double().mul(1.3).sin().mul(4).view(8, 5)
    views = torch.arange(120).double().mul(0.37).cos().mul(3).view(3, 8, 5)
    y = torch.tensor([1, 3, 1, 4, 1, 0, 3, 0])
    values = {
        "hidden_weight": torch.arange(60).double().mul(0.9).sin().view(5, 12),
        "hidden_bias": torch.linspace(-0.2, 0.6, 5).double(),
        "weight": torch.linspace(-0.8, 1.2, 5).double(),
        "bias": torch.ones((), dtype=torch.float64),
    }
    part = CorrectnessAware()
    for name, value in values.items():
        setattr(part, name, value.requires_grad_())
    t = part.temperature(z, views)
    expected = [2.108698368, 2.548094244, 2.406955757, 1.694086439, 2.124798662, 2.475803390, 2.620162653,
                2.067007296]  # fmt: skip
    torch.testing.assert_close(t, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    loss = ca_loss(part.transform(z, views).amax(1), z.argmax(1) == y)
    assert loss.item() == pytest.approx(0.2686361677750059, rel=1e-6)
    loss.backward()
    assert values["hidden_bias"].grad.tolist() == pytest.approx(
        [0.011801323703, 0.012539947072, -0.000454684817, 0.011742914992, -0.030029077446], rel=1e-5
    )
    assert values["weight"].grad.tolist() == pytest.approx(
        [-0.014241046119, -0.043234352573, -0.009650534776, -0.000465332281, -0.040961719085], rel=1e-5
    )
    assert values["bias"].grad.item() == pytest.approx(-0.025024230210, rel=1e-5)
    assert values["hidden_weight"].grad.sum(1).tolist() == pytest.approx(
        [0.030168562535, 0.030806590300, -0.001497345277, 0.026037131339, -0.078591280178], rel=1e-5
    )


def test_predictions_stay_and_wrong_ones_lose_confidence():
    logits, y, views = sample()
    part = CorrectnessAware().fit(logits, y, views=views)
    fresh, y, views = sample(seed=1)
    probabilities = part.transform(fresh, views=views)
    assert torch.equal(probabilities.argmax(1), fresh.argmax(1))
    torch.testing.assert_close(probabilities, (fresh / part.temperature(fresh, views)[:, None]).softmax(1))
    confidence, correct = probabilities.amax(1), fresh.argmax(1) == y
    before = fresh.softmax(1).amax(1)
    gap = confidence[correct].mean() - confidence[~correct].mean()
    assert gap > before[correct].mean() - before[~correct].mean() + 0.1


def test_image_views():
    images = torch.zeros(2, 3, 9, 9)
    images[:, :, 4, :] = 1.0  # a level line
    views = image_views(images)
    assert views.shape == (5, 2, 3, 9, 9)
    assert torch.equal(views[0], images)
    torch.testing.assert_close(views[1], views[2].flip(-1))
    assert not torch.allclose(views[1], images)
    torch.testing.assert_close(views[3], images / 2 + images.mean(dim=(2, 3), keepdim=True) / 2)
    assert views[4, 0, 0, 3, 3] == pytest.approx(1 / 3)
    scale = torch.tensor([0.5, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(image_views(scale * images - 1), scale * views - 1)
    with pytest.raises(ValueError, match=r"got torch\.float32 of shape \(2, 9\)"):
        image_views(torch.zeros(2, 9))


def test_in_the_engine_it_is_fitted_used_and_saved(tmp_path):
    prepared = Prepared.of(split(load("shapes:n=300,size=12"), 0))
    recipe = Recipe.of(model="cnn(width=8)", epochs=2, calibrate="correctness_aware(steps=50)")
    predictor = run(recipe, prepared).predictor
    x, y = prepared.val
    views = torch.stack([predictor.scores(view) for view in image_views(x)])
    alone = CorrectnessAware(steps=50).fit(predictor.scores(x), y, views=views)
    expected = alone.transform(predictor.scores(x), views=views)
    torch.testing.assert_close(predictor.probabilities(x), expected)
    predictor.save(tmp_path)
    assert torch.equal(logitkit.load(tmp_path).probabilities(x), predictor.probabilities(x))
    with pytest.raises(InputError, match="needs images"):
        run(Recipe.of(data="mixture:n=100", epochs=1, calibrate="correctness_aware"))
    with pytest.raises(InputError, match="is for retrieval"):
        run(Recipe.of(data="mixture:n=100", epochs=1, calibrate="dbnorm"))


def test_bad_settings_and_order_of_calls():
    logits, y, views = sample(10)
    with pytest.raises(ValueError, match="topk"):
        CorrectnessAware(topk=0)
    with pytest.raises(ValueError, match="fitted"):
        CorrectnessAware().transform(logits, views=views)
    with pytest.raises(ValueError, match=r"\(views, 10, 5\)"):
        CorrectnessAware().fit(logits, y, views=views[0])
