"""The factored step against plain SGD on all the weights, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.losses.z_loss import z_loss
from logitkit.ops import SphericalOutput, spherical

LOSSES = pytest.mark.parametrize("loss", ["squared", "taylor_softmax", "z_loss"])
A, B = 0.3, 5.0


def dense_loss(loss, o, y):
    if loss == "squared":
        return (o - F.one_hot(y, o.shape[1])).square().sum(1).mean()
    if loss == "taylor_softmax":
        t = 1 + o + o**2 / 2
        return -(t / t.sum(1, keepdim=True)).gather(1, y[:, None]).log().mean()
    return z_loss(o, y, A, B).mean()


class Dense:
    """W and its plain SGD step."""

    def __init__(self, loss, weight):
        self.loss, self.weight = loss, weight.double().clone().requires_grad_()

    def __call__(self, h, y):
        return dense_loss(self.loss, h.double() @ self.weight.T, y)

    def step(self, lr):
        with torch.no_grad():
            self.weight -= lr * self.weight.grad
        self.weight.grad = None


def pair(loss, classes=50, d=6, dtype=torch.float64, **options):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, d, generator=g, dtype=torch.float64) * d**-0.5
    layer = SphericalOutput(d, classes, loss, a=A, b=B, weight=weight, dtype=dtype, **options)
    return layer, Dense(loss, layer.weight())


def batches(classes, d, m, n, mean=0.0, dtype=torch.float32):
    """Features around their class's centre, which is what makes training possible."""
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(classes, d, generator=g)
    for _ in range(n):
        y = torch.randint(classes, (m,), generator=g)
        yield (0.5 * (centres[y] + torch.randn(m, d, generator=g)) + mean).to(dtype), y


def error(layer, dense):
    scale = float(dense.weight.detach().abs().max())
    return float((layer.weight().double() - dense.weight.detach()).abs().max()) / scale


def count_folds(layer):
    counts = {"small or full": 0, "full": 0}

    def counted(name, fold):
        def run():
            counts[name] += 1
            fold()

        return run

    layer._fold = counted("small or full", layer._fold)
    layer._fold_all = counted("full", layer._fold_all)
    return counts


def train(layer, dense, lr, data):
    for h, y in data:
        x, x_dense = h.clone().requires_grad_(), h.double().clone().requires_grad_()
        loss, expected = layer(x, y), dense(x_dense, y)
        loss.backward()
        expected.backward()
        layer.step(lr)
        dense.step(lr)
    return loss, expected, x.grad, x_dense.grad


@LOSSES
@pytest.mark.parametrize(("classes", "d", "m"), [(50, 6, 4), (2, 3, 5), (7, 1, 1), (9, 4, 30), (3, 5, 1)])
def test_loss_gradient_and_weights_are_those_of_dense_sgd(loss, classes, d, m):
    layer, dense = pair(loss, classes, d)
    lr = 0.05 if loss == "squared" else 0.5
    found = train(layer, dense, lr, batches(classes, d, m, 20, dtype=torch.float64))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[2], found[3], rtol=1e-8, atol=1e-10)
    assert error(layer, dense) < 1e-9


@LOSSES
def test_what_is_kept_beside_the_rows_is_that_of_the_weights(loss):
    layer, dense = pair(loss)
    train(layer, dense, 0.1, batches(50, 6, 8, 200, 0.5, torch.float64))
    weight = dense.weight.detach()
    torch.testing.assert_close(layer._gram, weight.T @ weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(layer._sums, weight.sum(0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(layer._factor @ layer._inverse, torch.eye(6, dtype=torch.float64))


# Rates at which plain training works; the factor must be folded often at the larger ones, seldom else.
SETTINGS = [
    ("squared", 0.01, 0.0),
    ("squared", 0.4, 0.0),
    ("squared", 0.05, 1.0),
    ("taylor_softmax", 10.0, 1.0),
    ("z_loss", 1.0, 0.0),
    ("z_loss", 10.0, 1.0),
]


@pytest.mark.parametrize(("loss", "lr", "mean"), SETTINGS)
def test_float32_weights_stay_within_1e_5_of_float64(loss, lr, mean):
    layer, dense = pair(loss, 500, 16, torch.float32)
    counts = count_folds(layer)
    train(layer, dense, lr, batches(500, 16, 32, 300, mean))
    assert error(layer, dense) < 1e-5
    if lr == 0.4:
        assert counts["full"] > 10
        assert counts["small or full"] > 2 * counts["full"]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "lr", "mean"), SETTINGS)
def test_float32_weights_stay_within_1e_5_of_float64_after_10_000_steps(loss, lr, mean):
    layer, dense = pair(loss, 500, 16, torch.float32)
    train(layer, dense, lr, batches(500, 16, 32, 10_000, mean))
    assert error(layer, dense) < 1e-5


@LOSSES
def test_making_the_gram_matrix_anew_changes_nothing(loss, monkeypatch):
    monkeypatch.setattr(spherical, "REFRESH", 3)
    monkeypatch.setattr(spherical, "GROWTH", 1.2)
    layer, dense = pair(loss)
    counts = count_folds(layer)
    train(layer, dense, 0.1 if loss == "squared" else 1.0, batches(50, 6, 8, 60, 0.5, torch.float64))
    assert counts["full"] >= 20
    assert error(layer, dense) < 1e-9


def test_a_step_that_leaves_nothing_of_a_direction_is_exact():
    """With 2 lr |h|^2 = 1 the factor is singular, and dense SGD fits the example at once."""
    layer, dense = pair("squared", 20, 4)
    h = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    for y in (3, 3, 5):
        train(layer, dense, 0.125, [(h, torch.tensor([y]))])
        assert error(layer, dense) < 1e-12
    torch.testing.assert_close(layer(h, torch.tensor([5])).detach(), torch.zeros((), dtype=torch.float64))


def test_a_factor_that_shrinks_in_all_directions_alike_stays_in_range():
    layer, dense = pair("squared", 5, 1, torch.float32)
    train(layer, dense, 0.3, batches(5, 1, 4, 600))
    assert error(layer, dense) < 1e-5


@LOSSES
def test_all_targets_may_be_the_same(loss):
    layer, dense = pair(loss)
    train(layer, dense, 0.1, [(h, torch.full_like(y, 7)) for h, y in batches(50, 6, 9, 5)])
    assert error(layer, dense) < 1e-9


def test_gradients_follow_autograd():
    """A scaled loss, several losses before a step, and a loss without a backward call."""
    layer, dense = pair("z_loss")
    (h1, y1), (h2, y2), (h3, y3) = batches(50, 6, 5, 3, dtype=torch.float64)
    for model in (layer, dense):
        (0.3 * model(h1, y1)).backward()
        (model(h2, y2) + model(h3[:2], y3[:2])).backward()
        model(h3, y3)
        model.step(0.7)
    assert error(layer, dense) < 1e-9


def test_a_network_below_trains_as_over_the_dense_layer():
    layer, dense = pair("squared")
    torch.manual_seed(0)
    below = nn.Linear(6, 6).double()
    copied = copy.deepcopy(below)
    for model, net in ((layer, below), (dense, copied)):
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        for h, y in batches(50, 6, 5, 20, dtype=torch.float64):
            optimizer.zero_grad()
            model(net(h), y).backward()
            model.step(0.02)
            optimizer.step()
    torch.testing.assert_close(below.weight, copied.weight, rtol=1e-9, atol=1e-12)
    assert error(layer, dense) < 1e-9


def test_a_rate_of_zero_changes_nothing():
    layer, _ = pair("squared")
    before = layer.weight()
    h, y = next(batches(50, 6, 5, 1))
    layer(h, y).backward()
    layer.step(0.0)
    assert torch.equal(layer.weight(), before)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_may_come_in_half_precision_and_strided(loss, dtype):
    layer, dense = pair(loss)
    h, y = next(batches(50, 12, 5, 1))
    x = h.to(dtype).requires_grad_()
    value = layer(x[:, ::2], y)
    expected = dense(x[:, ::2].detach(), y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected.float())
    value.backward()
    expected.backward()
    assert x.grad.dtype == dtype
    layer.step(0.1)
    dense.step(0.1)
    assert error(layer, dense) < 1e-9


def test_autocast_changes_nothing():
    layer, dense = pair("z_loss", 500, 16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        train(layer, dense, 10.0, batches(500, 16, 8, 30, 1.0))
        h, _ = next(batches(500, 16, 8, 1))
        best = layer.predict(h, 3)[0]
    assert error(layer, dense) < 1e-5
    torch.testing.assert_close(best.double(), (h.double() @ dense.weight.T).topk(3)[0], rtol=1e-4, atol=1e-5)


@LOSSES
def test_predictions_are_the_best_of_all_classes(loss, monkeypatch):
    monkeypatch.setattr(spherical, "CHUNK", 16)
    layer, dense = pair(loss)
    train(layer, dense, 0.05, batches(50, 6, 5, 10))
    h, _ = next(batches(50, 6, 9, 1, dtype=torch.float64))
    o = h @ dense.weight.detach().T
    torch.testing.assert_close(layer.logits(h), o)
    score = 1 + o + o**2 / 2 if loss == "taylor_softmax" else o
    for k in (1, 20, 50):
        values, classes = layer.predict(h, k)
        torch.testing.assert_close(values, score.topk(k, 1)[0])
        torch.testing.assert_close(score.gather(1, classes), values)


def test_logits_can_be_differentiated():
    layer, _ = pair("squared")
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    layer.logits(h).sum().backward()
    torch.testing.assert_close(h.grad, layer.weight().sum(0).expand(3, 6))


def test_state_copies_and_dtypes():
    layer, dense = pair("z_loss")
    train(layer, dense, 0.5, batches(50, 6, 5, 10))
    twin = copy.deepcopy(layer)
    plain = nn.Linear(6, 50, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain.weight.detach(), dense.weight.detach())
    loaded = nn.Sequential(SphericalOutput(6, 50, "z_loss", a=A, b=B, dtype=torch.float64))
    loaded.load_state_dict(nn.Sequential(layer).state_dict())
    for h, y in batches(50, 6, 5, 5):
        for model in (layer, twin, loaded[0], dense):
            model(h, y).backward()
            model.step(0.5)
    for model in (layer, twin, loaded[0]):
        assert error(model, dense) < 1e-9
    assert layer.half().weight().dtype == torch.float64
    assert layer.float().weight().dtype == torch.float32
    train(layer, dense, 0.5, batches(50, 6, 5, 5))
    assert error(layer, dense) < 1e-5
    with pytest.raises(RuntimeError, match="shape"):
        layer.load_state_dict({"weight": torch.zeros(3, 6)})
    with pytest.raises(RuntimeError, match="Missing"):
        layer.load_state_dict({})


def test_an_old_loss_has_no_gradient_any_more():
    layer, _ = pair("squared")
    h, y = next(batches(50, 6, 5, 1))
    first, second = layer(h, y), layer(h, y)
    first.backward()
    layer.step(0.1)
    with pytest.raises(RuntimeError, match="after the step"):
        second.backward()
    with pytest.raises(RuntimeError, match="call backward"):
        layer.step(0.1)


def test_double_backward_is_refused():
    layer, _ = pair("squared")
    h, y = next(batches(50, 6, 5, 1))
    h.requires_grad_()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(layer(h, y), h, create_graph=True)


def test_an_update_that_is_not_finite_leaves_the_weights():
    layer, _ = pair("squared")
    before = layer.weight()
    h, y = next(batches(50, 6, 5, 1, dtype=torch.float64))
    layer(1e200 * h, y).backward()
    with pytest.raises(RuntimeError, match="not finite"):
        layer.step(1e10)
    assert torch.equal(layer.weight(), before)


def test_mistakes_are_named():
    layer, _ = pair("squared")
    h, y = next(batches(50, 6, 5, 1))
    for features, target, message in [
        (h[:0], y[:0], "empty batch"),
        (h[:, :3], y, r"\(batch, 6\)"),
        (h, y + 50, "labels in"),
        (h, y - 50, "labels in"),
        (h, y.float(), "integer"),
        (h.where(h > -9, h) * torch.nan, y, "not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(features, target)
    for lr in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="lr"):
            layer.step(lr)
    for arguments, message in [
        ({"num_classes": 1}, "2 classes"),
        ({"loss": "softmax"}, "one of"),
        ({"a": 0.0}, "positive"),
        ({"b": float("inf")}, "finite"),
        ({"dtype": torch.bfloat16}, "float32 or float64"),
        ({"weight": torch.zeros(3, 3)}, "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            SphericalOutput(**{"in_features": 4, "num_classes": 5, **arguments})
    with pytest.raises(ValueError, match="k must be"):
        layer.predict(h, 51)
