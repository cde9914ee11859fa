"""What every loss of the slot promises beyond the contract: reductions, ignored rows, extreme logits."""

import pytest
import torch

from logitkit import catalog

# losses of logits; those that work on the last layer's weight see none
CLASSIFICATION = [
    c.name for c in catalog.cards("losses") if "classification" in c.tasks and "weight" not in c.needs
]
REGRESSION = [c.name for c in catalog.cards("losses") if "regression" in c.tasks]


def build(name, **arguments):
    return catalog.create("losses", name, num_classes=5, num_samples=32, **arguments)


def batch(name, rows=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, 5, generator=g, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 5, (rows,), generator=g)
    everything = {"features": torch.randn(rows, 4, 3, generator=g), "ids": torch.arange(rows) + 3}
    return logits, target, {k: everything[k] for k in catalog.get("losses", name).needs}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_reductions_agree(name):
    logits, target, extra = batch(name)

    def loss(reduction):
        torch.manual_seed(0)
        return build(name, reduction=reduction)(logits, target, **extra)

    each = loss("none")
    assert each.shape == (6,)
    torch.testing.assert_close(loss("mean"), each.mean())
    torch.testing.assert_close(loss("sum"), each.sum())
    with pytest.raises(ValueError, match="reduction"):
        build(name, reduction="total")


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_weight_counts_rows_as_torch_does(name):
    logits, target, extra = batch(name)
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    torch.manual_seed(0)
    each = build(name, reduction="none")(logits, target, **extra)
    torch.manual_seed(0)
    mean = build(name, weight=weight)(logits, target, **extra)
    torch.testing.assert_close(mean, (weight[target] * each).sum() / weight[target].sum())


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_ignored_rows_count_nothing(name):
    logits, target, extra = batch(name)
    target[[1, 4]] = -100
    kept = target != -100
    logits.requires_grad_()
    torch.manual_seed(0)
    part = build(name)
    with_ignored = part(logits, target, **extra)
    (gradient,) = torch.autograd.grad(with_ignored, logits)
    assert (gradient[~kept] == 0).all()
    assert (gradient[kept] != 0).any()
    if name != "ensloss":  # fewer rows, other random draws
        alone = build(name)(logits[kept], target[kept], **{k: v[kept] for k, v in extra.items()})
        torch.testing.assert_close(with_ignored, alone)
    if name == "aldr":
        assert (part.lam[extra["ids"][~kept]] == part.lam0).all()
    everything = build(name)(logits, torch.full_like(target, -100), **extra)
    assert everything.item() == 0


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_row_has_the_same_loss_wherever_in_the_batch_it_stands(name):
    """To rounding: torch's vectorised functions may differ in the last bit at the end of a vector."""
    logits, target, extra = batch(name, rows=24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    each = build(name, reduction="none")(logits, target, **extra)
    torch.manual_seed(0)
    moved = build(name, reduction="none")(
        logits[order], target[order], **{k: v[order] for k, v in extra.items()}
    )
    torch.testing.assert_close(moved, each[order], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_extreme_logits_have_finite_values_and_gradients(name):
    rows = [
        [1e4, -1e4, 0, 0, 0],
        [-1e4, 1e4, 1e4, 0, 0],
        [1e4] * 5,
        [-1e4] * 5,
        [0.0] * 5,
        [1e-4, 0, 0, 0, 0],
    ]
    logits = torch.tensor(rows).requires_grad_()
    _, _, extra = batch(name)
    if name == "comp_sum":  # tau = 1; below, the loss itself exceeds float32
        assert build(name).tau == 1
    for label in (0, 1):
        loss = build(name)(logits, torch.full((6,), label), **extra)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_float32(name, dtype):
    logits, target, extra = batch(name, dtype=dtype)
    assert build(name)(logits, target, **extra).dtype == torch.float32


@pytest.mark.parametrize("name", REGRESSION)
def test_columns_and_vectors_are_the_same_regression(name):
    output, target = torch.randn(7), torch.randn(7)
    part = build(name, reduction="none")
    expected = part(output, target)
    assert expected.shape == (7,)
    assert torch.equal(part(output[:, None], target), expected)
    assert torch.equal(part(output[:, None], target[:, None]), expected)
    assert part(output.half(), target.half()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(7, 2\)"):
        part(torch.randn(7, 2), target)
    with pytest.raises(ValueError, match="NaN"):
        part(output, target * float("nan"))
    with pytest.raises(ValueError, match="int64"):
        part(output, target.long())
