"""Cut cross-entropy against torch's, what its filter leaves out, and training through the engine."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from logitkit.engine import Recipe, run
from logitkit.errors import InputError
from logitkit.losses import CutCrossEntropy
from logitkit.losses.cut_cross_entropy import filter_of


def draw(tokens=37, width=16, classes=530, sharp=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=g)
    weight = sharp * torch.randn(classes, width, generator=g)
    return x, torch.randint(classes, (tokens,), generator=g), weight, torch.randn(classes, generator=g)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def test_every_option_equals_torch_without_the_filter():
    for use_bias, softcap, ignored in itertools.product((True, False), (None, 3.0), (True, False)):
        x, y, w, b = (t.requires_grad_() if t.is_floating_point() else t for t in draw())
        if ignored:
            y[::3] = -100
        bias = b if use_bias else None
        z = F.linear(x, w, bias)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        expected = F.cross_entropy(z, y)
        loss = CutCrossEntropy(filter_eps=None, softcap=softcap)(x, y, w, bias)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        for got, exact in zip(gradients(loss, x, w), gradients(expected, x, w), strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("softcap", "value", "each", "of_features", "of_weight", "of_bias"),
    [
        (
            None, 3.109377384185791, [0.3204139, 1.3965098, 0.0, 10.4242296, 0.2963558],
            [-0.0039789, -0.0036514, 0.0027376, -0.0073435, -0.0173683, 0.0014394, 0.0, 0.0, 0.0,
             0.7589082, 0.5383205, -0.5759146, 0.0037556, 0.0010769, -0.0033895],
            [0.5011834, 0.2392001, -0.6799326, -0.0345952, -0.2425272, 0.2166715],
            [-0.1190863, 0.0685604, -0.1859010, 0.3666314, -0.0678648, -0.0623397],
        ),
        (
            3.0, 2.097515344619751, [0.6679253, 0.8664062, 0.0, 6.1649294, 0.6908001],
            [-0.0096199, 0.0040739, 0.0110048, -0.0538951, -0.0442471, 0.0388540, 0.0, 0.0, 0.0,
             0.1065949, 0.1286001, -0.0628793, -0.0171188, 0.0050161, 0.0188240],
            [0.0799572, 0.0426607, -0.1826347, -0.0076031, -0.0539008, 0.0122564],
            [-0.0135154, 0.0192155, -0.0400968, 0.0201648, 0.0016109, 0.0078809],
        ),
    ],
)  # fmt: skip
def test_values_and_gradients_of_the_official_code(softcap, value, each, of_features, of_weight, of_bias):
    """torch_compile_linear_cross_entropy of cut_cross_entropy/torch_compile.py in
    github.com/apple/ml-cross-entropy, uncompiled, which takes logits in float32; one label is ignored."""
    x = torch.arange(15).double().mul(0.9).sin().mul(2).view(5, 3).requires_grad_()
    weight = torch.arange(18).double().mul(1.4).cos().mul(2).view(6, 3).requires_grad_()
    bias = torch.arange(6).double().sub(2).div(3).requires_grad_()
    y = torch.tensor([4, 0, -100, 2, 5])
    loss = CutCrossEntropy(softcap=softcap)(x, y, weight, bias)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    rows = CutCrossEntropy(softcap=softcap, reduction="none")(x, y, weight, bias)
    assert rows.tolist() == pytest.approx(each, abs=1e-6)
    found = gradients(loss, x, weight, bias)
    assert found[0].flatten().tolist() == pytest.approx(of_features, abs=2e-7)
    assert found[1].sum(1).tolist() == pytest.approx(of_weight, abs=2e-7)
    assert found[2].tolist() == pytest.approx(of_bias, abs=2e-7)


def test_the_filter_leaves_out_no_more_than_the_mass_that_it_skips():
    x, y, w, b = draw(tokens=256, classes=20_000, sharp=3.0)
    y = F.linear(x, w, b).argmax(1)
    x.requires_grad_()
    (exact,) = gradients(CutCrossEntropy(filter_eps=None, reduction="sum")(x, y, w, b), x)
    (filtered,) = gradients(CutCrossEntropy(2**-12, reduction="sum")(x, y, w, b), x)
    with torch.no_grad():
        p = F.linear(x, w, b).softmax(1)
    skipped = torch.where(p < 2**-12, p, 0.0).sum(1)  # at most, since whole blocks are skipped
    error = (filtered - exact).norm(dim=1)
    assert bool((error <= skipped * w.norm(dim=1).max() + 1e-5).all())
    assert float(error.max()) > 0
    assert float(skipped.mean()) < 0.2


def test_the_filter_follows_the_dtype():
    x = torch.zeros(1, 2)
    assert filter_of(x) == 2**-28
    assert filter_of(x.bfloat16()) == 2**-12
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert filter_of(x) == 2**-12
        assert filter_of(x.double()) == 2**-57


def test_a_batch_of_ignored_labels_is_zero_with_zero_gradients():
    x, y, w, b = draw()
    x.requires_grad_()
    loss = CutCrossEntropy()(x, torch.full_like(y, -100), w, b)
    assert float(loss.detach()) == 0
    assert float(gradients(loss, x)[0].abs().max()) == 0


def test_training_through_the_engine_equals_cross_entropy():
    common = {"data": "digits", "epochs": 2, "seed": 1, "regularize": ()}
    cut = run(Recipe.of(loss="cut_cross_entropy(filter_eps=None)", **common))
    plain = run(Recipe.of(loss="cross_entropy", **common))
    assert cut.curve[-1]["loss"] == pytest.approx(plain.curve[-1]["loss"], rel=1e-3)
    assert cut.metrics["accuracy"] == pytest.approx(plain.metrics["accuracy"], abs=0.01)
    for wrong in ({"head": "cosine"}, {"softmax": "stablemax"}):
        with pytest.raises(InputError, match="needs head=linear"):
            run(Recipe.of(loss="cut_cross_entropy", **common, **wrong))
