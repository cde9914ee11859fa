"""Attention as a support vector machine: optimality conditions, brute force, and autograd."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from logitkit.theory import (
    AttentionSVM,
    attention_descent,
    attention_gradient,
    attention_output,
    attention_svm,
    direction_gap,
    token_margins,
)


def problem(n=4, tokens=5, dim=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, tokens, dim, generator=g, dtype=torch.float64)
    z, v = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, dim), (dim,)))
    y = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -1.0).double()
    return F.normalize(x, dim=-1), F.normalize(z, dim=-1), F.normalize(v, dim=-1), y


def rows_of(x, z, chosen):
    """x_chosen - x_t times z^T, flattened, of all t that are not chosen."""
    found = []
    for i in range(len(x)):
        for t in range(x.shape[1]):
            if t != chosen[i]:
                found.append(torch.outer(x[i, chosen[i]] - x[i, t], z[i]).flatten())
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(5))
def test_the_frobenius_solution_is_optimal(seed):
    """Feasible with margin 1, and a non-negative combination of the active constraints alone."""
    x, z, _, _ = problem(seed=seed)
    chosen = torch.randint(5, (4,), generator=torch.Generator().manual_seed(seed))
    w = attention_svm(x, z, chosen)
    rows = rows_of(x, z, chosen)
    margins = rows @ w.flatten()
    assert margins.min().item() == pytest.approx(1, abs=1e-8)
    active = rows[margins < 1 + 1e-7]
    weights = np.linalg.lstsq(active.T.numpy(), w.flatten().numpy(), rcond=None)[0]
    assert (weights > -1e-8).all()
    torch.testing.assert_close(active.T @ torch.from_numpy(weights), w.flatten())
    kept = token_margins(x, z, chosen, w)
    others = torch.ones_like(kept, dtype=torch.bool).scatter(1, chosen[:, None], False)
    torch.testing.assert_close(kept[others], margins)


def test_it_is_the_best_of_all_active_sets():
    x, z, _, _ = problem(2, 3, 2, seed=3)
    chosen = torch.tensor([1, 0])
    rows = rows_of(x, z, chosen).numpy()
    best = np.inf
    for k in range(1, 5):
        for active in itertools.combinations(range(4), k):
            w = np.linalg.pinv(rows[list(active)]) @ np.ones(k)
            if (rows @ w >= 1 - 1e-9).all():
                best = min(best, np.linalg.norm(w))
    assert attention_svm(x, z, chosen).norm().item() == pytest.approx(best)


def test_the_nuclear_solution_is_no_larger_and_keeps_its_margins():
    """And no feasible matrix around the other solution is smaller."""
    for seed in range(3):
        x, z, _, _ = problem(dim=6, tokens=4, seed=seed)
        chosen = torch.zeros(4, dtype=torch.long)
        frobenius, nuclear = (attention_svm(x, z, chosen, norm) for norm in ("fro", "nuc"))
        rows = rows_of(x, z, chosen)
        assert (rows @ nuclear.flatten()).min() >= 1 - 1e-9
        size = torch.linalg.matrix_norm(nuclear, "nuc")
        assert size <= torch.linalg.matrix_norm(frobenius, "nuc") + 1e-9
        assert nuclear.norm() >= frobenius.norm() - 1e-9
        g = torch.Generator().manual_seed(seed)
        for _ in range(50):
            other = frobenius + 0.3 * torch.randn(6, 6, generator=g, dtype=torch.float64)
            margin = (rows @ other.flatten()).min()
            if margin > 0:
                assert torch.linalg.matrix_norm(other / margin, "nuc") >= size - 1e-3


def test_what_cannot_be_separated_is_said():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)  # the middle one
    with pytest.raises(ValueError, match="no weights separate"):
        attention_svm(x, torch.ones(1, 2, dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(ValueError, match="norm must be"):
        attention_svm(x, torch.ones(1, 2, dtype=torch.float64), torch.tensor([1]), "l1")


def test_the_gradient_is_that_of_autograd():
    batch = [problem(seed=s) for s in range(3)]
    x, z, v, y = (torch.stack(parts) for parts in zip(*batch, strict=True))
    w = torch.randn(3, 10, 10, dtype=torch.float64, requires_grad=True)
    loss = F.softplus(-y * attention_output(x, z, v, w)).mean(-1).sum()
    torch.testing.assert_close(attention_gradient(x, z, v, y, w), torch.autograd.grad(loss, w)[0])
    i = 1
    s = torch.softmax(x[i, 2] @ w[i] @ z[i, 2], 0)
    torch.testing.assert_close(attention_output(x, z, v, w)[i, 2], v[i] @ x[i, 2].T @ s)


def test_a_step_is_as_long_as_said_and_goes_down():
    x, z, v, y = problem()
    one = attention_descent(x, z, v, y, lr=0.3, steps=1)
    start = attention_gradient(x, z, v, y, torch.zeros(10, 10, dtype=torch.float64))
    torch.testing.assert_close(one.weight, -0.3 * start / start.norm())
    factored = attention_descent(x, z, v, y, factored=True, steps=40, kept=4)
    assert factored.directions.shape == (4, 10, 10)
    torch.testing.assert_close(factored.directions[-1], factored.weight / factored.weight.norm())


def test_descent_goes_to_the_support_vectors_of_its_tokens():
    """With one input of two tokens the direction is known: (x_opt - x_other) z^T."""
    x, z, v, y = problem(1, 2, 5, seed=1)
    better = int((y[0] * (x[0] @ v)).argmax())
    expected = torch.outer(x[0, better] - x[0, 1 - better], z[0])
    found = attention_descent(x, z, v, y, steps=50).weight
    assert direction_gap(found, expected).item() < 1e-9
    svm = attention_svm(x, z, torch.tensor([better]))
    assert direction_gap(svm, expected).item() < 1e-9


def test_the_part_trains_and_says_what_it_attends_to():
    x, z, v, y = problem(3, 4, 12, seed=2)
    rows = torch.cat([z[:, None], x], 1)
    fitted = AttentionSVM().fit(rows, y, v)
    assert torch.equal(fitted.optimal, (y[:, None] * (x @ v)).argmax(1))
    scores = torch.einsum("ntd,de,ne->nt", x, fitted.weight, z)
    assert torch.equal(fitted.selected, scores.argmax(1))
    torch.testing.assert_close(fitted.predict(rows), attention_output(x, z, v, fitted.weight))
    assert torch.equal(fitted.selected, fitted.optimal)
    assert direction_gap(fitted.weight, attention_svm(x, z, fitted.optimal)).item() < 0.002
    with pytest.raises(ValueError, match="-1 and 1"):
        fitted.fit(rows, y * 2)
