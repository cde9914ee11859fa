"""Quasi-LSTM attention: the numbers of the authors' code, decoding, and what no token sees."""

import pytest
import torch

from logitkit.attention import QLSTM


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("reversed", "printed"),
    [
        (True, [-0.163883856, 0.609971043, -0.027118043, -0.021737567, -0.01671552, -0.012376403,
                0.003508573, 0.038232967, -0.01279698, 0.226790641]),
        (False, [-0.163883856, 0.609971043, -0.024308503, -0.016379451, -0.006885175, -0.041501449,
                 0.004207697, 0.018622468, -0.068300646, 0.193097177]),
    ],
)  # fmt: skip
def test_qlstm_of_the_official_code(reversed, printed):
    """qLSTM of zoology/mixers/lstm.py, the same repository, its scan run as a loop, on these weights."""
    part = QLSTM(2, 1, reversed=reversed, expansion=1, kernel_size=3).double()
    with torch.no_grad():
        layers = part.in_proj.weight, part.conv.weight, part.conv.bias, part.gates.weight, part.gates.bias
        for k, p in enumerate((*layers, part.out_proj.weight), 1):
            p.copy_((torch.arange(p.numel()).double() * 0.9 + k).sin().view(p.shape))
        if reversed:
            part.a.fill_(0.8)
    found = part(torch.arange(10).double().mul(0.61).cos().view(1, 5, 2))[0]
    torch.testing.assert_close(found.flatten(), torch.tensor(printed, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3])
def test_qlstm_step_by_step(chunk):
    torch.manual_seed(0)
    part, x = QLSTM(8, 2).double(), draw(2, 10, 8)
    state, found = None, []
    for piece in x.split(chunk, 1):
        out, state = part.step(piece, state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), part(x, is_causal=True)[0])


def test_qlstm_sees_no_later_token():
    torch.manual_seed(0)
    part, x = QLSTM(8, 2).double(), draw(1, 9, 8).requires_grad_()
    out = part(x)[0]
    reach = torch.stack(
        [torch.autograd.grad(row.sum(), x, retain_graph=True)[0].abs().sum(-1)[0] for row in out[0]]
    )
    assert reach.triu(1).max() == 0
    assert (reach[-1] > 0).all()
    with pytest.raises(ValueError, match="QLSTM cannot do"):
        part(x, need_weights=True)
    with pytest.raises(ValueError, match="dropout"):
        QLSTM(8, 2, dropout=0.1)
    with pytest.raises(ValueError, match="kernel_size"):
        QLSTM(8, 2, kernel_size=1)
