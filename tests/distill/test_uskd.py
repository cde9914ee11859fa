"""USKD against plain floats and numbers of the authors' code, and the labels it makes."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.distill import USKDLoss, zipf_labels
from logitkit.engine import Recipe, run


def waves(n, k, step):
    return 3 * (torch.arange(n * k, dtype=torch.float64) * step).sin().view(n, k)


def part(**settings):
    loss = USKDLoss(4, 7, **settings).double()
    with torch.no_grad():
        loss.weak_head.weight.copy_(waves(7, 4, 1.3) / 3)
        loss.weak_head.bias.copy_(torch.linspace(-1, 1, 7, dtype=torch.float64))
    return loss


@pytest.mark.parametrize(
    ("settings", "value", "gradient", "of_embeddings"),
    [
        ({}, 4.915477655656161, [0.004350788773247183, 0.10904945324949455, 0.0014192381897030447,
         -0.19871330294238035, 0.024305698811435187, 0.06293677015076539, -0.0033486462322650347],
         [-0.00042794458928964793, 0.0015510789933840191, 0.0012577682169585076, -0.0008781759439487449]),
        ({"alpha": 0.1, "beta": 0.1, "mu": 0.1}, 1.3869256495705842, [-0.0005418744827425406,
         0.013204557104971475, -0.0008537912172060635, -0.019871330294238036, 0.002762140754889906,
         0.00924830771420535, -0.003948009579880095],
         [-0.008558891785792956, 0.03102157986768038, 0.025155364339170153, -0.017563518878974897]),
    ],
)  # fmt: skip
def test_the_authors_numbers(settings, value, gradient, of_embeddings):
    s, f = waves(5, 7, 1.7).requires_grad_(), waves(5, 4, 0.9).requires_grad_()
    loss = part(**settings, official_rank=True)(s, torch.tensor([3, 0, 6, 3, 1]), f)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    for found, expected in ((s.grad[0], gradient), (f.grad[0], of_embeddings)):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def softmax(row):
    return [math.exp(v) / sum(map(math.exp, row)) for v in row]


def test_loop_over_plain_floats():
    s, f, y = waves(4, 7, 1.7), waves(4, 4, 0.9), [3, 0, 6, 1]
    loss = part(alpha=0.7, beta=0.3, mu=0.2, reduction="none")
    S, W = ([softmax(r) for r in rows.tolist()] for rows in (s, loss.weak_head(f).detach()))
    mean, expected = sum(p[k] ** 2 for p, k in zip(S, y, strict=True)) / 4, []
    for p, w, k in zip(S, W, y, strict=True):
        rank = [w[i] / (1 - w[k] + 1e-6) + p[i] / (1 - p[k] + 1e-6) for i in range(7)]
        z = [0 if i == k else 1 / (1 + sum(r > rank[i] for r in rank)) for i in range(7)]
        among = [p[i] / (sum(p) - p[k]) for i in range(7)]
        l_t = -(p[k] ** 2 + 1 - mean) * math.log(p[k])
        l_non = -sum(z[i] / sum(z) * math.log(among[i]) for i in range(7) if i != k)
        l_weak = -sum((0.1 / 7 + 0.9 * (i == k)) * math.log(w[i]) for i in range(7))
        expected.append(0.7 * l_t + 0.3 * l_non + 0.2 * l_weak)
    found = loss(s, torch.tensor(y), f)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_zipf_labels_sum_to_one_and_leave_out_the_label():
    rank = torch.tensor([[0.9, 0.1, 0.5, 0.3]], dtype=torch.float64)
    expected = torch.tensor([[1, 1 / 4, 0, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(zipf_labels(rank, torch.tensor([2])), expected / expected.sum())
    many = zipf_labels(waves(20, 9, 0.7), torch.arange(20) % 9)
    torch.testing.assert_close(many.sum(1), torch.ones(20, dtype=torch.float64))


def test_both_softmaxes_are_ranked_without_their_label():
    """Each row's order is another where one of the two is not divided by 1 minus its label."""
    w = torch.tensor([[0.8, 0.15, 0.03, 0.02], [0.1, 0.5, 0.3, 0.1]], dtype=torch.float64)
    s = torch.tensor([[0.1, 0.15, 0.3, 0.45], [0.8, 0.02, 0.06, 0.12]], dtype=torch.float64)
    z = USKDLoss(2, 4).soft_labels(s.log(), w.log(), torch.tensor([0, 0]))
    assert z.argsort(dim=1, descending=True)[:, :3].tolist() == [[1, 3, 2], [3, 1, 2]]


def test_its_own_labels_have_no_gradient():
    """The label's part moves the logits by its weight times the slope of cross-entropy, and no more."""
    s, y = waves(4, 7, 1.7).requires_grad_(), torch.tensor([3, 0, 6, 1])
    part(beta=0.0, mu=0.0, reduction="sum")(s, y, waves(4, 4, 0.9)).backward()
    p = s.detach().softmax(1)
    own = p.gather(1, y[:, None]).square()
    torch.testing.assert_close(s.grad, (own + 1 - own.mean()) * (p - F.one_hot(y, 7)))


def test_ignored_rows_count_nothing():
    s, f, y = waves(4, 7, 1.7), waves(4, 4, 0.9), torch.tensor([3, -100, 6, -100])
    torch.testing.assert_close(part()(s, y, f), part()(s[::2], y[::2], f[::2]))


def test_it_trains_beside_cross_entropy():
    settings = {"data": "digits+limit=500", "model": "mlp(hidden=(32,))", "epochs": 15, "lr": 0.01}
    assert run(Recipe.of(**settings, regularize="uskd"), judge=False).val["val_accuracy"] > 0.8


def test_bad_settings():
    with pytest.raises(ValueError, match=r"alpha, beta and mu must be at least 0, got 1\.0, 0\.1 and -1\.0"):
        USKDLoss(4, 7, mu=-1.0)
    with pytest.raises(ValueError, match=r"\(batch, 7\) and \(batch, 4\), got \(3, 6\) and \(3, 4\)"):
        part()(waves(3, 6, 1.0), torch.tensor([0, 1, 2]), waves(3, 4, 1.0))
