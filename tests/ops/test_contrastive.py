"""Every contrastive loss and its gradient against loops over plain pairs in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.ops import (
    decoupled_softmax,
    info_nce,
    labelled_nt_xent,
    multi_similarity,
    nt_xent,
    sigmoid_contrastive,
    supervised_contrastive,
    use,
    weighted_contrastive,
)
from logitkit.ops.contrastive import cpu
from logitkit.ops.contrastive.pairs import listed, same_label

IMPLEMENTATIONS = pytest.mark.parametrize("name", ["cpu", "reference"])


def draw(n, d=5, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_labels(n, classes, seed=1):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


# The oracle: lists of numbers (0-dim float64 tensors), one pair after the other.


def cosines(x, y):
    x, y = F.normalize(x), F.normalize(y)
    return [[(a * b).sum() for b in y] for a in x]


def lse(terms):
    return torch.logsumexp(torch.stack(terms), 0)


def mean(terms):
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


def loop_info_nce(x, y, positives, t):
    s = cosines(x, y)
    return mean([lse([v / t for v in row]) - row[p] / t for row, p in zip(s, positives, strict=True)])


def loop_labelled(x, labels, t):
    s, n, terms = cosines(x, x), len(x), []
    for i in range(n):
        negatives = [s[i][j] / t for j in range(n) if labels[j] != labels[i]]
        terms += [
            lse([s[i][p] / t, *negatives]) - s[i][p] / t
            for p in range(n)
            if p != i and labels[p] == labels[i]
        ]
    return mean(terms)


def loop_nt_xent(a, b, t):
    z, n, terms = torch.cat([a, b]), len(a), []
    s = cosines(z, z)
    for i in range(2 * n):
        rest = [s[i][j] / t for j in range(2 * n) if j != i]
        terms.append(lse(rest) - s[i][(i + n) % (2 * n)] / t)
    return mean(terms)


def loop_supervised(x, labels, t):
    s, n, terms = cosines(x, x), len(x), []
    for i in range(n):
        positives = [s[i][p] / t for p in range(n) if p != i and labels[p] == labels[i]]
        if positives:
            terms.append(lse([s[i][j] / t for j in range(n) if j != i]) - mean(positives))
    return mean(terms)


def loop_decoupled(x, y, pairs, t):
    s, terms = cosines(x, y), []
    for i, row in enumerate(s):
        own = [p for q, p in pairs if q == i]
        negatives = [row[j] / t for j in range(len(row)) if j not in own]
        if own:
            terms.append(mean([lse([row[p] / t, *negatives]) - row[p] / t for p in own]))
    return mean(terms)


def loop_sigmoid(a, b, scale, bias):
    s, total = cosines(a, b), 0.0
    for i, row in enumerate(s):
        for j, v in enumerate(row):
            z = scale * v + bias
            total = total + F.softplus(-z if i == j else z)
    return total / len(s)


def loop_weighted(views, t_pos, t_neg, attraction, repulsion):
    views = [F.normalize(v) for v in views]
    n, pulls, pushes = len(views[0]), [], []
    for u, query in enumerate(views):
        for i in range(n):
            costs = torch.stack(
                [(query[i] - views[v][i]).square().sum() for v in range(len(views)) if v != u]
            )
            pulls.append((torch.softmax(t_pos * costs, 0) * costs).sum())
            for v in range(len(views)):
                if v != u and n > 1:
                    far = torch.stack([(query[i] - views[v][j]).square().sum() for j in range(n) if j != i])
                    pushes.append(-(torch.softmax(-t_neg * far, 0) * far).sum())
    return attraction * mean(pulls) + repulsion * mean(pushes)


def loop_multi(x, labels, alpha, beta, base):
    s, n, terms = cosines(x, x), len(x), []
    zero = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        near = [-alpha * (s[i][j] - base) for j in range(n) if j != i and labels[j] == labels[i]]
        far = [beta * (s[i][j] - base) for j in range(n) if labels[j] != labels[i]]
        terms.append(lse([zero, *near]) / alpha + lse([zero, *far]) / beta)
    return mean(terms)


def labels_of(n, kind):
    return {
        "few": draw_labels(n, 3),
        "many": draw_labels(n, max(2, n // 3)),
        "equal": torch.zeros(n, dtype=torch.long),
        "distinct": torch.randperm(n, generator=torch.Generator().manual_seed(2)),
    }[kind]


def both(ours, loop, inputs, tolerance=3e-6):
    """Value and gradients of `ours` in float32, and of `loop` in float64, agree."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    value, expected = ours(*leaves), loop(*exact) + 0 * sum(x.sum() for x in exact)
    assert value.shape == ()
    assert value.dtype == torch.promote_types(inputs[0].dtype, torch.float32)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    found = torch.autograd.grad(value, leaves)
    wanted = torch.autograd.grad(expected, exact)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f.double(), w, rtol=0, atol=tolerance * max(1.0, float(w.abs().max())))


SIZES = pytest.mark.parametrize("n", [1, 2, 3, 17])
KINDS = pytest.mark.parametrize("kind", ["few", "many", "equal", "distinct"])


@IMPLEMENTATIONS
@SIZES
@KINDS
def test_losses_with_labels(name, n, kind):
    x, y = draw(n), labels_of(n, kind)
    with use(name):
        both(lambda z: labelled_nt_xent(z, y, temperature=0.2), lambda z: loop_labelled(z, y, 0.2), [x])
        both(
            lambda z: supervised_contrastive(z, y, temperature=0.2), lambda z: loop_supervised(z, y, 0.2), [x]
        )
        both(lambda z: multi_similarity(z, y), lambda z: loop_multi(z, y, 2.0, 50.0, 0.5), [x], 1e-5)


@IMPLEMENTATIONS
@SIZES
def test_losses_of_two_views(name, n):
    a, b = draw(n), draw(n, seed=3)
    with use(name):
        both(lambda q, k: nt_xent(q, k), lambda q, k: loop_nt_xent(q, k, 0.5), [a, b])
        both(lambda q, k: info_nce(q, k), lambda q, k: loop_info_nce(q, k, range(n), 0.07), [a, b])
        both(
            lambda q, k: info_nce(q, k, symmetric=True),
            lambda q, k: (loop_info_nce(q, k, range(n), 0.07) + loop_info_nce(k, q, range(n), 0.07)) / 2,
            [a, b],
        )
        scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
        both(sigmoid_contrastive, loop_sigmoid, [a, b, scale, bias], 1e-5)


@IMPLEMENTATIONS
def test_info_nce_with_more_keys_than_queries_and_a_temperature_that_learns(name):
    q, k, p = draw(6), draw(11, seed=3), torch.tensor([10, 0, 3, 3, 5, 9])
    with use(name):
        both(
            lambda q, k, t: info_nce(q, k, p, temperature=t),
            lambda q, k, t: loop_info_nce(q, k, p.tolist(), t),
            [q, k, torch.tensor(0.3)],
        )


@IMPLEMENTATIONS
def test_decoupled_softmax(name):
    q, k = draw(7), draw(12, seed=3)
    # adjacent ones, all of them, none, and the first and last
    pairs = [(0, 3), (0, 4), *[(1, j) for j in range(12)], (3, 0), (3, 11), (6, 5), (5, 2), (5, 9)]
    with use(name):
        both(
            lambda q, k: decoupled_softmax(q, k, torch.tensor(pairs[::-1]).T, temperature=0.3),
            lambda q, k: loop_decoupled(q, k, pairs, 0.3),
            [q, k],
        )
        none = decoupled_softmax(q.requires_grad_(), k, torch.zeros(2, 0, dtype=torch.long))
        assert none == 0
        assert torch.autograd.grad(none, q)[0].abs().max() == 0


@IMPLEMENTATIONS
def test_a_positive_pulls_at_no_other_positive(name):
    # The query is the first axis, so the gradient of the keys' first coordinate is that of the scores.
    keys = draw(9, 3).requires_grad_()
    with use(name):
        decoupled_softmax(
            torch.eye(3)[:1], keys, torch.tensor([[0, 0], [2, 5]]), temperature=1.0, normalize=False
        ).backward()
    s = keys.detach()[:, 0].double()
    rest = [0, 1, 3, 4, 6, 7, 8]
    total = s[rest].exp().sum()
    expected = [-0.5 * total / (total + s[p].exp()) for p in (2, 5)]
    assert keys.grad[[2, 5], 0].tolist() == pytest.approx([float(e) for e in expected], rel=1e-5)


@IMPLEMENTATIONS
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("sharp", [(1.0, 1.0), (0.0, 0.0), (2.0, 30.0)])
def test_weighted_contrastive(name, views, n, sharp):
    inputs = [draw(n, seed=v) for v in range(views)]
    with use(name):
        both(
            lambda *v: weighted_contrastive(
                v, positive_sharpness=sharp[0], negative_sharpness=sharp[1], attraction=0.7, repulsion=1.3
            ),
            lambda *v: loop_weighted(v, *sharp, 0.7, 1.3),
            inputs,
            1e-5,
        )


def test_weighted_contrastive_does_not_change_under_rotation():
    x = draw(2 * 9).reshape(2, 9, 5)
    rotation = torch.linalg.qr(draw(5, seed=9)).Q
    assert float(weighted_contrastive(x @ rotation)) == pytest.approx(
        float(weighted_contrastive(x)), abs=1e-6
    )


# pytorch-metric-learning 2.9.0 on torch 2.13.0, float64, on the input below.
PML = {"nt_xent": 10.681345362233957, "supervised": 8.102743599114884, "multi": 1.5247596550040126}


def pml_input():
    i = torch.arange(24 * 6, dtype=torch.float64).reshape(24, 6)
    return torch.sin(0.37 * i * i + 0.2 * i), torch.arange(24) * 7 % 5


@IMPLEMENTATIONS
def test_numbers_of_pytorch_metric_learning(name):
    x, y = pml_input()
    x = x.float()
    with use(name):
        assert float(labelled_nt_xent(x, y)) == pytest.approx(PML["nt_xent"], rel=3e-6)
        assert float(supervised_contrastive(x, y)) == pytest.approx(PML["supervised"], rel=3e-6)
        assert float(multi_similarity(x, y)) == pytest.approx(PML["multi"], rel=3e-6)


def every_loss(z, y):
    a, b = z[::2], z[1::2]
    pairs = torch.stack([torch.arange(len(a)), torch.arange(len(a)).flip(0)])
    return {
        "info_nce": lambda: info_nce(a, b, symmetric=True),
        "nt_xent": lambda: nt_xent(a, b),
        "labelled_nt_xent": lambda: labelled_nt_xent(z, y),
        "supervised_contrastive": lambda: supervised_contrastive(z, y),
        "decoupled_softmax": lambda: decoupled_softmax(a, b, pairs),
        "sigmoid_contrastive": lambda: sigmoid_contrastive(a, b),
        "weighted_contrastive": lambda: weighted_contrastive([a, b]),
        "multi_similarity": lambda: multi_similarity(z, y),
    }


LOSSES = pytest.mark.parametrize("loss", list(every_loss(draw(2), labels_of(2, "few"))))


def run(loss, x, y, name="cpu"):
    leaf = x.clone().requires_grad_()
    with use(name):
        value = every_loss(leaf, y)[loss]()
        value.backward()
    return value.detach(), leaf.grad


@LOSSES
def test_several_strips_with_a_ragged_end(loss, monkeypatch):
    monkeypatch.setattr(cpu, "STRIP", 1)
    monkeypatch.setattr(cpu, "LEAST", 48)
    x, y = draw(302, 33), draw_labels(302, 40)
    value, grad = run(loss, x, y)
    expected, wanted = run(loss, x.double(), y, "reference")
    assert float(value) == pytest.approx(float(expected), rel=3e-6)
    torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=5e-6 * float(wanted.abs().max()))


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_at_least_float32(loss, dtype):
    x, y = draw(40, 16).to(dtype), draw_labels(40, 8)
    value, grad = run(loss, x, y, None)
    expected, wanted = run(loss, x.double(), y, "reference")
    precise = dtype == torch.float64
    assert value.dtype == (torch.float64 if precise else torch.float32)
    assert grad.dtype == dtype
    assert float(value) == pytest.approx(float(expected), rel=1e-12 if precise else 3e-6)
    error = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 1e-12)
    torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=error * float(wanted.abs().max()))


@LOSSES
def test_autocast_changes_nothing(loss):
    x, y = draw(40, 16), draw_labels(40, 8)
    plain, plain_grad = run(loss, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad = run(loss, x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain, rtol=0, atol=0)
    torch.testing.assert_close(grad, plain_grad, rtol=0, atol=0)


@LOSSES
def test_layout_does_not_matter(loss):
    x, y = draw(40, 16), draw_labels(40, 8)
    value, grad = run(loss, x, y)
    other, other_grad = run(loss, torch.stack([x.T, x.T], 2)[:, :, 0].T, torch.stack([y, y], 1)[:, 0])
    assert float(other) == pytest.approx(float(value), rel=1e-6)
    torch.testing.assert_close(other_grad, grad, rtol=0, atol=2e-6 * float(grad.abs().max()))


@LOSSES
def test_the_number_of_threads_does_not_matter(loss):
    x, y = draw(600, 24), draw_labels(600, 90)
    value, grad = run(loss, x, y)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, alone_grad = run(loss, x, y)
    finally:
        torch.set_num_threads(threads)
    assert float(alone) == pytest.approx(float(value), rel=1e-6)
    torch.testing.assert_close(alone_grad, grad, rtol=0, atol=2e-6 * float(grad.abs().max()))


@IMPLEMENTATIONS
def test_a_tiny_temperature_stays_finite_and_right(name):
    # Axes: cosines are exactly 0, 1 or -1, and logits up to 1000 in size.
    a = torch.cat([torch.eye(4), -torch.eye(4)])
    with use(name):
        both(
            lambda q, k: info_nce(q, k, temperature=1e-3),
            lambda q, k: loop_info_nce(q, k, range(8), 1e-3),
            [a, a.roll(3, 0)],
        )
        y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        both(
            lambda z: supervised_contrastive(z, y, temperature=1e-3),
            lambda z: loop_supervised(z, y, 1e-3),
            [a],
        )
        both(lambda z: labelled_nt_xent(z, y, temperature=1e-3), lambda z: loop_labelled(z, y, 1e-3), [a])


@LOSSES
def test_duplicates_and_zero_vectors_give_finite_gradients(loss):
    x, y = draw(20, 6), draw_labels(20, 4)
    x[3:9] = x[2]
    x[11] = 0
    value, grad = run(loss, x, y)
    expected, wanted = run(loss, x.double(), y, "reference")
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@LOSSES
def test_nan_comes_through(loss):
    x, y = draw(20, 6), draw_labels(20, 4)
    x[5, 2] = torch.nan
    assert run(loss, x, y)[0].isnan()


@LOSSES
def test_scaled_gradients_no_gradients_and_second_derivatives(loss):
    x, y = draw(20, 6), draw_labels(20, 4)
    value, grad = run(loss, x, y)
    leaf = x.clone().requires_grad_()
    (3 * every_loss(leaf, y)[loss]()).backward()
    torch.testing.assert_close(leaf.grad, 3 * grad)
    with torch.no_grad():
        assert every_loss(leaf, y)[loss]() == value
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(every_loss(leaf, y)[loss](), leaf, create_graph=True)
    with use("reference"):
        (first,) = torch.autograd.grad(every_loss(leaf, y)[loss](), leaf, create_graph=True)
        first.square().sum().backward()
    assert leaf.grad.isfinite().all()


def test_only_the_gradients_asked_for_are_made():
    q, k = draw(8), draw(8, seed=3).requires_grad_()
    info_nce(q, k).backward()
    assert k.grad.abs().max() > 0
    assert q.grad is None


def test_compiled():
    x, y = draw(32, 8), draw_labels(32, 6)
    compiled = torch.compile(supervised_contrastive, backend="eager")
    assert float(compiled(x, y)) == pytest.approx(float(supervised_contrastive(x, y)), rel=1e-6)


def test_runs_and_their_mask_agree():
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    runs, order = same_label(labels[2:5], labels, 2)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, order] = runs.mask(6)
    expected = labels[2:5, None] == labels
    expected[[0, 1, 2], [2, 3, 4]] = False
    assert mask.equal(expected)
    assert runs.counts().equal(expected.sum(1))
    sparse = torch.tensor([[0, 0, 2], [1, 2, 0]])
    assert listed(sparse, 4).mask(3).nonzero().T.equal(sparse)
    assert listed(sparse, 4).counts().tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: supervised_contrastive(x[0], y), r"embeddings must have shape \(batch, features\)"),
        (lambda x, y: supervised_contrastive(x[:0], y[:0]), "embeddings hold an empty batch"),
        (lambda x, y: supervised_contrastive(x, y[1:]), r"labels must have shape \(6,\)"),
        (lambda x, y: supervised_contrastive(x, y.float()), "labels must be integers"),
        (lambda x, y: supervised_contrastive(x, y, temperature=0), "temperature must be positive, got 0"),
        (lambda x, y: labelled_nt_xent(x.long(), y), "embeddings must be floating point"),
        (lambda x, y: nt_xent(x, x[1:]), "views must have the same shape"),
        (lambda x, y: info_nce(x, x[1:]), "every query needs its key, got 6 queries and 5 keys"),
        (lambda x, y: info_nce(x, x[:, 1:]), "queries and keys must have the same width"),
        (lambda x, y: info_nce(x, x, y + 5), r"positives must lie in \[0, 6\), got 5 to"),
        (lambda x, y: info_nce(x, x, y, symmetric=True), "got positives as well"),
        (lambda x, y: info_nce(x[1:], x, symmetric=True), "as many keys as queries, got 6 and 5"),
        (lambda x, y: decoupled_softmax(x, x, y), r"positives must have shape \(2, pairs\)"),
        (lambda x, y: decoupled_softmax(x, x, torch.tensor([[0, 0], [1, 1]])), "once, got 1 repeats"),
        (lambda x, y: decoupled_softmax(x, x, torch.tensor([[6], [1]])), r"positives\[0\] must lie in"),
        (lambda x, y: weighted_contrastive([x]), "at least two views, got 1"),
        (lambda x, y: weighted_contrastive([x, x], positive_sharpness=-1), "must not be negative, got -1"),
        (lambda x, y: multi_similarity(x, y, alpha=0), "alpha must be positive"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(6), draw_labels(6, 3))


def test_losses_of_a_large_batch_are_those_of_theory():
    # All cosines equal: the softmax over n - 1 columns is uniform.
    x, y = torch.ones(3000, 4), torch.arange(3000) // 2
    assert float(supervised_contrastive(x, y)) == pytest.approx(math.log(2999), rel=1e-6)
    assert float(labelled_nt_xent(x, y)) == pytest.approx(math.log(2999), rel=1e-6)
