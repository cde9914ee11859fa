"""RAVLT: the backbone against numbers of the authors' code, its size, and which attention goes where."""

import pytest
import torch

from logitkit.attention import RankAugmentedAttention
from logitkit.models import RAVLT
from logitkit.models.ravlt import GatedSoftmaxAttention, RAVLTBlock


def fill(model):
    """Sine waves in the order of the authors' modules."""
    k = 0

    def waves(*parameters):
        nonlocal k
        for p in parameters:
            k += 1
            p.data = (0.4 * (1.7 * torch.arange(1, p.numel() + 1).double() + k).sin()).view(p.shape)

    for layer in model.layers:
        if not isinstance(layer, RAVLTBlock):
            waves(*layer.parameters())
            continue
        a, m = layer.attention, layer.mlp
        for each in (
            layer.position, layer.norm1, a.in_proj, a.gate, a.lepe, a.out_proj, layer.norm2, m.fc1, m.conv,
            m.fc2,
        ):  # fmt: skip
            waves(each.weight, each.bias)
        waves(layer.scale1, layer.scale2)
        # theirs turns neighbouring features together, ours the halves
        quarter = a.head_dim // 4
        order = torch.arange(2 * a.embed_dim).view(-1, quarter, 2).mT.flatten()
        for p in (a.in_proj.weight, a.in_proj.bias):
            p.data[: 2 * a.embed_dim] = p.data[order]


def test_numbers_of_the_authors_code():
    """qhfan/RALA, classfication/RALA.py, RAVLT without its head, in float64 and evaluation mode."""
    model = RAVLT((2, 96, 128), (8, 8, 16, 16), (1, 2, 1, 1), (1, 2, 2, 4), 2, 12).double().eval()
    fill(model)
    with torch.no_grad():
        found = model((0.9 * torch.arange(2 * 2 * 96 * 128).double()).cos().view(2, 2, 96, 128))
    expected = [
        [0.1356690657, 0.1760851433, 0.4070883385, -0.1315416966, -0.0624765689, 0.3097190064,
         -0.1172066569, -0.1864767101, -0.0318359677, -0.0013730414, -0.0344657143, -0.2257355813],
        [0.1357913259, 0.1760868642, 0.4072873492, -0.1315298790, -0.0624478772, 0.3097994749,
         -0.1173026934, -0.1864619198, -0.0319548792, -0.0014755601, -0.0344859474, -0.2258182947],
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-10)


def test_the_smallest_of_the_authors_has_as_many_weights_as_theirs():
    """RAVLT_T has 14,897,768, of which a head for 1,000 classes has 1,025,000."""
    with torch.device("meta"):
        model = RAVLT((3, 224, 224), (64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8), projection=1024)
    assert sum(p.numel() for p in model.parameters()) == 14_897_768 - 1_025_000


@pytest.mark.parametrize(
    ("shape", "grids"),
    [
        ((1, 8, 8), [(8, 8), (4, 4), (4, 4), (4, 4)]),
        ((3, 32, 32), [(8, 8), (4, 4), (4, 4), (4, 4)]),
        ((2, 33, 20), [(9, 5), (5, 3), (5, 3), (5, 3)]),
        ((1, 1, 3), [(1, 3)] * 4),
    ],
    ids=str,
)
def test_the_map_is_halved_while_it_is_large(shape, grids):
    model, x = RAVLT(shape), torch.randn(2, *shape)
    blocks = [layer for layer in model.layers if isinstance(layer, RAVLTBlock)]
    assert [block.attention.grid for block in blocks] == grids
    assert model.forward_features(x).shape == (2, 128, *grids[-1])
    assert model(x).shape == (2, model.out_features)


@pytest.mark.parametrize("linear", [0, 2, 4])
def test_attention_is_linear_first_and_softmax_after(linear):
    model = RAVLT((1, 8, 8), linear=linear)
    kinds = [type(m) for m in model.modules() if isinstance(m, RankAugmentedAttention)]
    assert kinds == [RankAugmentedAttention] * linear + [GatedSoftmaxAttention] * (4 - linear)


def test_without_attention_a_block_reaches_two_pixels():
    """The depthwise convolutions before and in the feed-forward part reach one each."""
    torch.manual_seed(0)
    block = RAVLTBlock(8, 1, 16, (1, 9), False, 0.0).double()
    block.scale1.data.zero_()
    x = torch.randn(1, 8, 1, 9, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(block(x)[..., 4].sum(), x)
    assert seen[0, :, 0].abs().sum(0).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    block.scale1.data.fill_(1)
    (seen,) = torch.autograd.grad(block(x)[..., 4].sum(), x)
    assert (seen[0, :, 0].abs().sum(0) > 0).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"depths": (1,)}, "same stages"),
        ({"linear": 5}, "linear must be"),
        ({"heads": (3, 2, 3, 4)}, "multiple of num_heads"),
        ({"heads": (8, 2, 3, 4)}, "multiple of 4 features"),
    ],
    ids=str,
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        RAVLT((1, 8, 8), **settings)
