"""RaftMLP: token mixing against loops over single numbers, what sees what, and the numbers of the authors."""

import pytest
import torch
from torch import nn

from logitkit.layers import MultiScaleEmbed, RaftBlock, RaftTokenMixer
from logitkit.layers.raft_mlp import merge_rafts, rafts


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module):
    """The module with weights that anybody can write down: sines."""
    module = module.double()
    for p in module.parameters():
        p.data = torch.arange(p.numel(), dtype=torch.float64).sin().view(p.shape)
    return module


@pytest.mark.parametrize("raft", [1, 2, 6])
def test_mixing_number_by_number(raft):
    (h, w), c = (2, 3), 6
    mixer, x = filled(RaftTokenMixer(c, (h, w), raft)), draw(2, h * w, c)
    co = c // raft
    for network, norm, columns in (
        (mixer.vertical, mixer.norm_v, True),
        (mixer.horizontal, mixer.norm_h, False),
    ):
        z, y = norm(x), x.clone()
        for line in range(w if columns else h):
            tokens = [i * w + line if columns else line * w + i for i in range(h if columns else w)]
            for k in range(co):
                places = [(t, j * co + k) for j in range(raft) for t in tokens]
                mixed = network(torch.stack([z[:, t, f] for t, f in places], dim=1))
                for n, (t, f) in enumerate(places):
                    y[:, t, f] += mixed[:, n]
        x = y
    start = draw(2, h * w, c)
    torch.testing.assert_close(start + mixer(start), x)


def test_rafts_are_a_permutation():
    lines = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    assert torch.equal(merge_rafts(rafts(lines, 2), 2), lines)
    assert rafts(lines, 2)[0, 0, 1].tolist() == [1, 7, 13, 19, 4, 10, 16, 22]  # channels 1 and 4 of 4 tokens


def test_what_a_vertical_mixer_sees():
    mixer, x = filled(RaftTokenMixer(4, (3, 2), 2)), draw(1, 6, 4)
    mixer.norm_v = nn.Identity()
    nn.init.zeros_(mixer.horizontal[3].weight), nn.init.zeros_(mixer.horizontal[3].bias)
    seen = torch.autograd.functional.jacobian(mixer, x)[0, :, :, 0] != 0  # token, channel, token, channel
    column = torch.arange(6) % 2
    group = torch.arange(4) % 2
    expected = (column[:, None] == column)[:, None, :, None] & (group[:, None] == group)[None, :, None]
    assert torch.equal(seen, expected)


def test_weights():
    mixer = RaftTokenMixer(8, (3, 5), raft=2, expansion=4)
    for network, side in ((mixer.vertical, 3), (mixer.horizontal, 5)):
        width = 2 * side
        expected = 2 * 4 * width**2 + 4 * width + width
        assert sum(p.numel() for p in network.parameters()) == expected


def test_numbers_of_the_authors_code():
    """okojoalg/raft-mlp, libs/modules.py: SerialPermutedLevel with kernels 2 and 4, one block, on the same
    weights (whose layer norms order channels raft by raft); two tokens of the map."""
    embed, block = filled(MultiScaleEmbed(2, 4, (2, 4))), filled(RaftBlock(4, (3, 3)))
    x = torch.arange(72, dtype=torch.float64).cos().view(1, 2, 6, 6)
    found = block(embed(x))[0]
    torch.testing.assert_close(found[[0, 5]], torch.tensor(AUTHORS, dtype=torch.float64), rtol=1e-6, atol=0)
    x = torch.arange(128, dtype=torch.float64).cos().view(1, 2, 8, 8)  # mixed at 3x3
    found = block(embed(x), (4, 4))[0]
    torch.testing.assert_close(found[[0, 5]], torch.tensor(LARGER, dtype=torch.float64), rtol=1e-6, atol=0)


AUTHORS = [
    [13.04155802, 5.43425735, 8.4877336, -6.54130786],
    [9.80892874, 4.72026991, 1.71193353, -20.11830937],
]
LARGER = [
    [13.192493, 6.36244499, 10.40163475, -10.04854483],
    [15.24878573, 3.92683106, 4.95726172, -12.65362751],
]


def test_embedding_is_a_strided_convolution():
    embed, x = MultiScaleEmbed(2, 5, (2, 6)).double(), draw(3, 2, 8, 4)
    small, large = embed.fc.weight.split([2 * 4, 2 * 36], dim=1)
    expected = nn.functional.conv2d(x, small.unflatten(1, (2, 2, 2)), embed.fc.bias, stride=2)
    expected = expected + nn.functional.conv2d(x, large.unflatten(1, (2, 6, 6)), stride=2, padding=2)
    torch.testing.assert_close(embed(x), expected.flatten(2).mT)
