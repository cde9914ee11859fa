"""The ICNN score against loops over neighbours, its invariances, and numbers of the authors' code."""

import pytest
import torch

from logitkit.contrast import ICNNLoss, icnn_score


def official(apart=1.0):
    """12 embeddings of three classes."""
    y = torch.arange(12) % 3
    x = torch.sin(torch.arange(36).double() * 1.7).view(12, 3)
    return x + apart * torch.nn.functional.one_hot(y, 3), y


@pytest.mark.parametrize(
    ("apart", "k", "expected"),
    [
        (1.0, 2, 0.36168674169279363),
        (1.0, 3, 0.4054093279333071),
        (1.0, 4, 0.3731827780408997),
        (10.0, 3, 0.9649889696961935),
        (10.0, 4, 0.8178992502978942),
    ],
)
def test_values_of_the_official_code(apart, k, expected):
    """modified_score of github.com/maumruiz/FSL-Loss, with four rows of each class."""
    assert icnn_score(*official(apart), k).item() == pytest.approx(expected, abs=1e-6)


def test_score_is_a_loop_over_neighbours():
    x, _ = official()
    y = torch.tensor([0, 1, 1, 0, 2, 0, 1, 2, 0, 0, 1, 2])
    distance = ((x[:, None] - x).square().sum(-1) + 1e-6).sqrt().tolist()
    k, near, far, agree = 3, [], [], []
    for i in range(12):
        order = sorted((j for j in range(12) if j != i), key=distance[i].__getitem__)
        others = [j for j in order[: int((y == y[i]).sum())] if y[j] != y[i]]
        ratio = [distance[i][j] / distance[i][others[0]] if others else 0.0 for j in order[:k]]
        ratio = [r / max(1.0, *ratio) for r in ratio]
        own = [r for r, j in zip(ratio, order[:k], strict=True) if y[j] == y[i]]
        near += [sum(own) / len(own)] if own else []
        far.append([distance[i][j] for j in order[:k] if y[j] != y[i]])
        agree.append(len(own) / k)
    largest = max(d for row in far for d in row)
    inter = [sum(row) / len(row) / largest for row in far if row]
    score = (1 - sum(near) / len(near) + sum(inter) / len(inter)) / 4 + sum(agree) / 12 / 2
    assert icnn_score(x, y, k).item() == pytest.approx(score)
    assert ICNNLoss(k)(x, y).item() == pytest.approx(-torch.tensor(score).log().item(), abs=1e-6)


def test_collapsed_separated_classes_score_one():
    y = torch.arange(20) % 4
    assert icnn_score(10 * torch.eye(4)[y], y).item() == pytest.approx(1, abs=1e-3)


def test_true_labels_score_higher_than_random_ones():
    x, y = official(apart=2.0)
    for seed in range(20):
        random = y[torch.randperm(12, generator=torch.Generator().manual_seed(seed))]
        if not torch.equal(random, y):
            assert icnn_score(x, random) < icnn_score(x, y)


def test_unmoved_by_rotation_translation_and_scaling():
    x, y = official()
    turn = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    expected = icnn_score(x, y)
    torch.testing.assert_close(icnn_score(x @ turn + 7, y), expected)
    torch.testing.assert_close(icnn_score(30 * x, y), expected, rtol=0, atol=1e-5)


def test_gradient_and_few_rows():
    x, y = official()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: ICNNLoss()(e, y), x)
    for n in (1, 2, 3, 5):
        loss = ICNNLoss()(x[:n], y[:n])
        (slope,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()
    same = torch.zeros(6, 2, requires_grad=True)
    ICNNLoss()(same, torch.arange(6) % 2).backward()
    assert torch.isfinite(same.grad).all()


def test_bad_input():
    with pytest.raises(ValueError, match="k must be"):
        ICNNLoss(k=0)
    with pytest.raises(ValueError, match="NaN"):
        ICNNLoss()(torch.full((3, 2), torch.nan), torch.arange(3))
