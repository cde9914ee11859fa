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
