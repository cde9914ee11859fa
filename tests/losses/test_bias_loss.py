import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import BiasLoss, feature_diversity

LOGITS = torch.tensor([[1.5, -0.5, 0.25, 2.0], [-1.0, 0.75, 3.0, -2.5], [0.1, 0.2, -0.3, 0.4]])
TARGET = torch.tensor([3, 1, 2])
FEATURES = torch.tensor([[1.0, 2, 4, 8], [0, 1, 0, 1], [3, 3, 3, 4]])
CE = F.cross_entropy(LOGITS, TARGET, reduction="none")


@pytest.mark.parametrize(("form", "low", "high"), [("code", 0.3, math.exp(0.3) - 0.7),
                                                   ("paper", 0.7, math.exp(0.3) - 0.3)])  # fmt: skip
def test_weights_by_hand(form, low, high):
    """Variances 115/12, 1/3, 1/4: v = 1, 1/112, 0."""
    middle = {"code": math.exp(0.3 / 112) - 0.7, "paper": math.exp(0.3 / 112) - 0.3}[form]
    loss = BiasLoss(form=form, reduction="none")(LOGITS, TARGET, FEATURES)
    torch.testing.assert_close(loss, torch.tensor([high, middle, low]) * CE)


def test_values_of_the_official_code():
    """BiasLoss of github.com/lusinlu/biasloss_skipnet on these batches in turn, global and local."""
    shifted = 2 * FEATURES
    shifted[1, 0] += 5
    shifted[2, 0] += 1
    part = BiasLoss(norm="global")
    values = [part(LOGITS, TARGET, x).item() for x in (FEATURES, shifted, 3 * FEATURES)]
    assert values == pytest.approx([0.5555684566, 0.5839452147, 0.5675951838], abs=1e-6)
    local = [BiasLoss()(LOGITS, TARGET, x).item() for x in (FEATURES, shifted)]
    assert local == pytest.approx([0.5555684566, 0.5748499632], abs=1e-6)


def test_equal_features_weigh_all_examples_alike():
    features = FEATURES[:1].expand(3, -1)
    torch.testing.assert_close(BiasLoss(reduction="none")(LOGITS, TARGET, features), 0.3 * CE)


def test_unmoved_by_affine_features_and_rising_with_variance():
    part = BiasLoss()
    v = part.normalize(feature_diversity(FEATURES))
    torch.testing.assert_close(part.normalize(feature_diversity(-3 * FEATURES + 7)), v)
    order = feature_diversity(FEATURES).argsort()
    assert (part.example_weight(v)[order].diff() > 0).all()


def test_the_weight_passes_no_gradient():
    features = FEATURES.clone().requires_grad_()
    logits = LOGITS.clone().requires_grad_()
    BiasLoss(reduction="sum")(logits, TARGET, features).backward()
    assert features.grad is None
    weight = BiasLoss(reduction="none")(LOGITS, TARGET, FEATURES) / CE
    (constant,) = torch.autograd.grad(
        (weight * F.cross_entropy(logits, TARGET, reduction="none")).sum(), logits
    )
    torch.testing.assert_close(logits.grad, constant)


def test_evaluation_leaves_the_global_minimum():
    part = BiasLoss(norm="global")
    part(LOGITS, TARGET, FEATURES)
    part.eval()(LOGITS, TARGET, 0.1 * FEATURES)
    assert part.minimum.item() == pytest.approx(0.25)


def test_refuses_bad_features_and_forms():
    with pytest.raises(ValueError, match=r"shape \(3, ...\)"):
        BiasLoss()(LOGITS, TARGET, FEATURES[:2])
    with pytest.raises(ValueError, match="NaN"):
        BiasLoss()(LOGITS, TARGET, FEATURES * float("nan"))
    with pytest.raises(ValueError, match="'written'"):
        BiasLoss(form="written")
    with pytest.raises(ValueError, match="alpha and beta"):
        BiasLoss(alpha=-1)
