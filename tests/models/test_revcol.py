"""Reversible columns: the backward pass against autograd, inversion, memory, the supervision of columns."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.models import ColumnDecoder, RevCol, ReversibleColumns, SupervisedColumns, compound_loss

DIMS, DEPTHS = (4, 6, 8, 5), (1, 2, 1, 1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(number, save_memory=True, drop_path=0.0):
    torch.manual_seed(0)
    net = ReversibleColumns(number, DIMS, DEPTHS, save_memory, drop_path).double()
    for seed, (name, p) in enumerate(net.named_parameters()):
        p.data += (0.05 if name.startswith("factors") else 0.3) * draw(*p.shape, seed=seed)
    return net


@pytest.mark.parametrize("at", [[2], [0], [0, 2], [1, 2]], ids=str)
def test_gradients_are_those_of_autograd_with_dropped_paths(at):
    found = []
    for save_memory in (True, False):
        net, x = columns(3, save_memory, drop_path=0.4), draw(3, 4, 8, 16).requires_grad_()
        torch.manual_seed(5)
        made = net.several(x, at)
        after = torch.rand(1)
        loss = sum((draw(*m.shape, seed=k) * m).sum() for column in made for k, m in enumerate(column))
        loss.backward()
        grads = [x.grad, *(p.grad for p in net.parameters())]
        found.append([loss.detach(), after, *grads])
    for ours, theirs in zip(*found, strict=True):
        if theirs is None:  # columns after the last that was asked for
            assert ours is None or not ours.any()
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_replaying_leaves_the_generator_alone():
    net, x = columns(2, drop_path=0.4), draw(2, 4, 8, 8).requires_grad_()
    made = net(x)[3].sum()
    before = torch.get_rng_state()
    made.backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_column_is_recovered():
    net, x = columns(5).eval(), draw(2, 4, 8, 8)
    first, last = net.several(x, [0, 4])
    for found, expected in zip(net.invert(x, last), first, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_column_is_the_equation():
    net, x = columns(2), draw(2, 4, 8, 8)
    c, d = net.several(x, [0, 1])
    levels, factors = net.columns[1], net.factors[1]
    below = x
    for i in range(4):
        down = levels[i].down(below)
        up = levels[i].up(c[i + 1]) if i < 3 else 0
        expected = levels[i].blocks(down + up) + factors[i] * c[i]
        torch.testing.assert_close(d[i], expected)
        below = d[i]


def test_one_column_is_a_plain_network():
    net, x = columns(1), draw(2, 4, 8, 8)
    y = x
    for level in net.columns[0]:
        assert level.up is None
        y = level.blocks(level.down(y))
    torch.testing.assert_close(net(x)[3], y)


def saved(number, save_memory):
    """Bytes of activations that the backward pass keeps."""
    net, kept = columns(number, save_memory), {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(draw(8, 4, 16, 16))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_memory_does_not_grow_with_columns():
    assert saved(8, True) <= 1.1 * saved(4, True)
    assert saved(8, True) <= 0.35 * saved(8, False)


def test_factors_stay_away_from_zero():
    net = columns(2)
    net.factors[1][0].data.fill_(-1e-9)
    net.factors[1][1].data.zero_()
    a = net._factors(1)
    assert (a[0] == -1e-3).all()
    assert (a[1] == 1e-3).all()
    a[0].sum().backward()
    assert (net.factors[1][0].grad == 1).all()


@pytest.mark.parametrize(
    ("shape", "map"), [((1, 8, 8), (1, 1)), ((3, 32, 32), (1, 1)), ((1, 28, 60), (1, 2)), ((1, 5, 9), (1, 1))]
)
def test_backbone(shape, map):
    model, x = RevCol(shape), torch.randn(2, *shape)
    features = model.forward_features(x)
    assert features.shape == (2, 64, *map)
    torch.testing.assert_close(model(x), model.norm(features.mean((2, 3))))


def test_compound_loss_in_plain_floats():
    scores, target = [draw(2, 3, seed=k) for k in range(3)], torch.tensor([2, 0])
    image, images = (
        torch.tensor([0.0, 0.7]).double().view(2, 1, 1, 1),
        [draw(2, 1, 1, 1, seed=k) for k in (7, 8)],
    )
    entropy = [F.cross_entropy(s, target).item() for s in scores]
    pixels = []
    for made in images:
        p = [1 / (1 + math.exp(-v)) for v in made.flatten().tolist()]
        pixels.append(
            sum(-y * math.log(q) - (1 - y) * math.log(1 - q) for q, y in zip(p, (0.01, 0.7), strict=True)) / 2
        )
    expected = entropy[2] + 4 * (pixels[0] + pixels[1] / 2) + 0.8 * (entropy[0] / 3 + 2 * entropy[1] / 3)
    assert compound_loss(images, scores, image, target).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="got 2 and 2"):
        compound_loss(images, scores[:2], image, target)


def test_decoder_of_the_official_code():
    """Decoder of megvii-research/RevCol with these weights, dim [6, 5, 4, 3]."""
    decoder, k = ColumnDecoder((3, 4, 5, 6), 3).double(), 0
    for conv, norm, _, _, block in (decoder.layers[i : i + 5] for i in (0, 5, 10)):
        for part in (conv, norm, block.conv, block.norm, block.mlp[0], block.mlp[2], block.scale):
            for p in [part] if isinstance(part, torch.Tensor) else [part.weight, part.bias]:
                k += 1
                p.data = 0.5 * (torch.arange(1, p.numel() + 1).double() * 1.7 + k).sin().view(p.shape)
    for p in decoder.pixels.parameters():
        k += 1
        p.data = 0.5 * (torch.arange(1, p.numel() + 1).double() * 1.7 + k).sin().view(p.shape)
    made = decoder((torch.arange(24).double() * 0.9).cos().view(2, 6, 2, 1))
    assert made.shape == (2, 3, 64, 32)
    found = [made.mean(), made.square().mean(), made[1, 2, 40, 17], made[0, 0, 3, 5], made[1, 1, 63, 31]]
    expected = [-0.0006114505538, 0.1551838123511, -0.5192493467998, 0.7069735606330, 0.2997230063216]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("number", "at"), [(1, (0,)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (8, (1, 3, 5, 7))], ids=str
)
def test_supervised_columns_are_those_of_the_official_code(number, at):
    backbone = RevCol((2, 9, 14), number, (4, 4, 4, 4)).double()
    model, x = SupervisedColumns(backbone, 3).double(), draw(2, 2, 9, 14)
    assert model.at == at
    images, scores = model(x)
    assert [tuple(i.shape) for i in images] == [(2, 2, 9, 14)] * (len(at) - 1)
    assert [tuple(s.shape) for s in scores] == [(2, 3)] * len(at)
    map = backbone.forward_features(x)
    torch.testing.assert_close(scores[-1], model.classifiers[-1](map.mean((2, 3))))


def test_what_supervises_a_column_reaches_it_and_those_before():
    model, x = SupervisedColumns(RevCol((1, 8, 8), 4, (4, 4, 4, 4)), 3, at=[1, 3]), torch.rand(4, 1, 8, 8)
    images, scores = model(x)
    (images[0].sum() + scores[0].sum()).backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in c.parameters()) for c in model.backbone.net.columns
    ]
    assert reached == [True, True, False, False]


@pytest.mark.parametrize("at", [[], [1, 0], [0, 0], [2], [-1]], ids=str)
def test_supervised_columns_that_are_not_there(at):
    with pytest.raises(ValueError, match="at must rise within the 2 columns"):
        SupervisedColumns(RevCol((1, 8, 8), 2), 3, at)


def test_bad_settings():
    with pytest.raises(ValueError, match="4 positive numbers"):
        ReversibleColumns(2, (4, 4), (1, 1))
    with pytest.raises(ValueError, match=r"multiples of 8, got \(8, 12\)"):
        columns(2)(draw(1, 4, 8, 12))
