"""The Poincare ball: the laws of its geometry, its Euclidean limit, and numbers of the authors' code."""

import math

import pytest
import torch

from logitkit.ops.poincare import conformal, dist, expmap, hyperplane_logits, mobius_add, project

X = torch.tensor([[0.5, -0.3, 1.0], [0.2, 0.8, -0.4]], dtype=torch.float64)
Y = torch.tensor([[-1.0, 0.4, 0.6], [0.1, 0.1, 2.0]], dtype=torch.float64)


def points(n=50, d=4, c=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    length = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 0.95 / math.sqrt(c)
    return x / x.norm(dim=1, keepdim=True) * length


def test_values_of_the_official_code():
    """hyptorch of github.com/Kartik-3004/hyp-oc at c = 0.1, which adds 1e-5 to denominators."""

    def same(found, expected, rtol=1e-4):
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=rtol, atol=1e-5)

    same(mobius_add(X, Y, 0.1), [[-0.2872946876063826, 0.001967771832920431, 1.6407281542890542],
                                 [0.38488304702062487, 1.2320732888927675, 1.4849325000167828]])  # fmt: skip
    same(dist(X, Y, 0.1), [3.7506176567995344, 5.877647168272428])
    same(expmap(X, Y, 0.1), [[-0.3438765646315669, 0.02242080484568305, 1.703013611869209],
                             [0.36974837828489926, 1.1896548195908794, 1.382320329454131]])  # fmt: skip
    same(project(3 * Y, 0.1), [[-2.5623809343326722, 1.024952373733069, 1.5374285605996032],
                               [0.15756235439465882, 0.15756235439465882, 3.151247087893176]])  # fmt: skip
    a = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.4, -0.7]], dtype=torch.float64)
    p = expmap(torch.zeros(2, 3).double(), torch.tensor([[0.1, 0.2, -0.3], [-0.4, 0.5, 0.1]]).double(), 0.1)
    a = a * (1 - 0.1 * p.square().sum(1, keepdim=True))
    same(hyperplane_logits(X, a, p, 0.1), [[3.625660037739855, 0.03933139157711019],
                                           [-0.5854825704727771, 4.505989208397606]])  # fmt: skip


@pytest.mark.parametrize("c", [0.1, 0.7, 2.0])
def test_laws_of_addition_and_distance(c):
    x, y, z = (points(c=c, seed=seed) for seed in range(3))
    zero = torch.zeros_like(x)
    torch.testing.assert_close(mobius_add(x, zero, c), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(mobius_add(-x, x, c), zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(mobius_add(-x, mobius_add(x, y, c), c), y, rtol=0, atol=1e-8)
    torch.testing.assert_close(dist(x, y, c), dist(y, x, c), rtol=0, atol=1e-8)
    assert (dist(x, z, c) <= dist(x, y, c) + dist(y, z, c) + 1e-8).all()
    moved = dist(mobius_add(z, x, c), mobius_add(z, y, c), c)
    torch.testing.assert_close(moved, dist(x, y, c), rtol=0, atol=1e-8)
    assert dist(x, x, c).amax() < 1e-12


@pytest.mark.parametrize("c", [0.1, 0.7])
def test_the_exponential_map_goes_as_far_as_its_velocity_is_long(c):
    x, u = points(c=c), 0.5 * points(c=c, seed=1)
    end = expmap(x, u, c)
    torch.testing.assert_close(dist(x, end, c), (conformal(x, c) * u.norm(dim=1, keepdim=True))[:, 0])
    torch.testing.assert_close(expmap(x, 0 * u, c), x)
    halves = dist(x, expmap(x, u / 2, c), c), dist(expmap(x, u / 2, c), end, c)
    torch.testing.assert_close(halves[0], halves[1])  # on a geodesic


def test_curvature_zero_is_the_limit():
    x, y, a = (points(6, 3, seed=seed) for seed in range(3))
    p = y[:4]
    for c in (1e-10, 0.0):
        torch.testing.assert_close(dist(x, y, c), 2 * (x - y).norm(dim=1), rtol=1e-6, atol=1e-6)
        expected = 4 * (a[:4] * (x[:, None] - p)).sum(-1)
        torch.testing.assert_close(hyperplane_logits(x, a[:4], p, c), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(expmap(x, y, c), x + y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mobius_add(x, y, c), x + y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(project(x, c), x)


def test_projection_keeps_the_inside_and_bounds_the_rest():
    inside, outside = points(c=0.1), 100 * points(c=0.1) + 10
    torch.testing.assert_close(project(inside, 0.1), inside)
    torch.testing.assert_close(
        project(outside, 0.1).norm(dim=1), torch.full((50,), 0.999 / math.sqrt(0.1)).double()
    )


def test_gradients_also_where_norms_are_zero():
    x, y = points(3, 2), points(3, 2, seed=1)
    a, p = points(2, 2, seed=2), points(2, 2, seed=3)
    inputs = [t.requires_grad_() for t in (x, y, a, p)]
    assert torch.autograd.gradcheck(
        lambda x, y, a, p: (dist(x, y, 0.7), expmap(x, y, 0.7), hyperplane_logits(x, a, p, 0.7)), inputs
    )
    u = torch.zeros(2, 3, requires_grad=True)
    (expmap(torch.zeros(2, 3), u, 0.5).sum() + dist(u, u, 0.5).sum()).backward()
    torch.testing.assert_close(u.grad, torch.ones(2, 3))
