"""SpaRTAN: complex products, what each path sees, the start, and the numbers of the authors' code."""

import pytest
import torch
from torch import nn

from logitkit.layers import SpartanBlock, SpatialMixer, WaveMixer, wave_product
from logitkit.layers.base import DropPath

# henry-pay/SpaRTAN, src/model/spartan.py: Block of 8 channels with expansion 2, in training, with sines for
# weights; the 8 channels of a pixel of the second image
AUTHORS = {
    False: [-0.78223, -0.58306, 2.05691, 0.70741, 0.74744, 4.23985, 0.94522, 2.09186],
    True: [-0.78223, -0.20517, 4.17647, 0.27211, 0.49079, 2.75504, 0.89178, 0.74812],
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grouped", [False, True])
def test_numbers_of_the_authors_code(grouped):
    block = SpartanBlock(8, 2, grouped).double()
    for p in block.parameters():
        p.data = torch.arange(p.numel(), dtype=torch.float64).sin().view(p.shape)
    x = torch.arange(192, dtype=torch.float64).cos().view(2, 8, 4, 3)
    expected = torch.tensor(AUTHORS[grouped], dtype=torch.float64)
    torch.testing.assert_close(block(x)[1, :, 2, 1], expected, rtol=1e-4, atol=2e-5)


def test_wave_is_a_product_of_complex_numbers():
    x, weight = draw(2, 6, 3, 4), draw(3, 2)
    z = torch.view_as_complex(x.unflatten(1, (3, 2)).movedim(2, -1).contiguous())
    product = (
        torch.view_as_real(z * torch.view_as_complex(weight)[:, None, None]).movedim(-1, 2).flatten(1, 2)
    )
    torch.testing.assert_close(wave_product(x, weight), product)
    turn = torch.stack([weight[:, 0].cos(), weight[:, 0].sin()], dim=1)
    norm = wave_product(x, turn).unflatten(1, (3, 2)).norm(dim=2)
    torch.testing.assert_close(norm, x.unflatten(1, (3, 2)).norm(dim=2))
    assert wave_product(x.bfloat16(), weight).dtype == torch.float32


@pytest.mark.parametrize(("path", "reach"), [("near", {-1, 0, 1}), ("far", {-4, -2, 0, 2, 4})])
def test_reach(path, reach):
    conv = getattr(SpatialMixer(8).double().eval(), path)[:-1]  # without the gate, which sees everything
    x = draw(1, 4, 11, 11).requires_grad_()
    conv(x)[0, :, 5, 5].sum().backward()
    seen = (x.grad[0] != 0).any(0).nonzero() - 5
    assert {tuple(v) for v in seen.tolist()} == {(i, j) for i in reach for j in reach}


def test_contrast_vanishes_on_constant_maps():
    mixer, x = SpatialMixer(8).double().eval(), draw(2, 8, 1, 1).expand(2, 8, 5, 5)
    before = mixer(x)
    nn.init.constant_(mixer.contrast, 3.0)
    torch.testing.assert_close(mixer(x), before)


def test_the_largest_channel_adds_to_all():
    mixer, x = WaveMixer(8, 2).double(), draw(2, 8, 3, 3)
    kept = {}
    mixer.conv.register_forward_pre_hook(lambda _, inputs: kept.update(wave=inputs[0]))
    mixer(x)
    p, t = mixer.amplitude(x), nn.functional.gelu(mixer.phase(x))
    weight = torch.view_as_complex(mixer.weight)
    for i, j in ((0, 0), (2, 1)):
        m = x[1, :, i, j].argmax()
        f = [a * b + p[1, m, i, j] * t[1, m, i, j] for a, b in zip(p[1, :, i, j], t[1, :, i, j], strict=True)]
        z = torch.complex(torch.stack(f[::2]), torch.stack(f[1::2])) * weight
        torch.testing.assert_close(kept["wave"][1, :, i, j], torch.view_as_real(z).flatten())


def test_a_block_starts_as_the_identity():
    torch.manual_seed(0)
    x = torch.randn(4, 16, 6, 6)
    assert (SpartanBlock(16)(x) - x).norm() <= 1e-4 * x.norm()


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(8000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (dropped.flatten(1).std(1) == 0).all()
    assert abs(dropped.mean().item() - 1) < 0.03
    assert torch.equal(DropPath(0.25).eval()(dropped), dropped)
