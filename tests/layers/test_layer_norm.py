"""Layer normalisation against plain floats, torch and its closed-form gradient; the cells step by step; and
table 1 of the paper."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from logitkit.layers import (
    LayerNorm,
    LayerNormGRU,
    LayerNormGRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LayerNormRNN,
    LayerNormRNNCell,
    invariance_table,
    layer_norm,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normed(a, gain=1.0, bias=0.0, eps=1e-5):
    """The formula on a (batch, n) array, case by case, in plain floats."""
    rows = []
    for row in a.tolist():
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + eps)
        rows.append([(v - mean) / deviation for v in row])
    return gain * torch.tensor(rows, dtype=torch.float64) + bias


def test_plain_floats_and_torch():
    x, gain, bias = 3 * draw(5, 7) + 2, draw(7, seed=1), draw(7, seed=2)
    part = LayerNorm(7).double()
    part.load_state_dict({"weight": gain, "bias": bias})
    torch.testing.assert_close(part(x), normed(x, gain, bias), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part(x), F.layer_norm(x, (7,), gain, bias, 1e-5), rtol=1e-12, atol=1e-12)
    assert list(LayerNorm(7, affine=False).parameters()) == []


def test_closed_form_gradient():
    """dx = (g / sd) (I - 1 1^T / H - xhat xhat^T / H) dy, with the gain on dy."""
    x, gain, dy = draw(7).requires_grad_(), draw(7, seed=1), draw(7, seed=2)
    layer_norm(x, gain, eps=0.0).backward(dy)
    deviation = x.detach().std(correction=0)
    hat = (x.detach() - x.detach().mean()) / deviation
    project = torch.eye(7).double() - 1 / 7 - torch.outer(hat, hat) / 7
    torch.testing.assert_close(x.grad, project @ (gain * dy) / deviation, rtol=1e-10, atol=1e-12)


def test_cases_do_not_see_each_other_and_modes_agree():
    x, part = draw(6, 4, 7), LayerNorm(7).double()
    torch.testing.assert_close(part(x)[2:3, 1:2], part(x[2:3, 1:2]))
    assert torch.equal(part.train()(x), part.eval()(x))


def test_table_1_of_the_paper():
    """Rows: batch, weight and layer normalisation of the summed inputs, without eps."""

    def batch(x, w):
        a = x @ w.T
        return (a - a.mean(0)) / a.std(0, correction=0)

    def weight(x, w):
        return x @ (w / w.norm(dim=1, keepdim=True)).T

    def layer(x, w):
        return layer_norm(x @ w.T, eps=0.0)

    table = [list(invariance_table(each).values()) for each in (batch, weight, layer)]
    assert table == [
        [True, False, True, True, True, False],
        [True, False, True, False, False, False],
        [True, True, False, True, False, True],
    ]


def randomised(cell):
    for p in cell.parameters():
        nn.init.normal_(p, std=0.5)
    return cell.double()


def test_rnn_cell():
    cell, x, h = randomised(LayerNormRNNCell(3, 5)), draw(4, 3), draw(4, 5, seed=1)
    a = x @ cell.ih.weight.T + h @ cell.hh.weight.T
    torch.testing.assert_close(cell(x, h), normed(a, cell.gain, cell.bias).tanh())


def test_lstm_cell():
    cell, x = randomised(LayerNormLSTMCell(3, 5)), draw(4, 3)
    h, c = draw(4, 5, seed=1), draw(4, 5, seed=2)
    gates = (
        normed(x @ cell.ih.weight.T, cell.gain_ih) + normed(h @ cell.hh.weight.T, cell.gain_hh) + cell.bias
    )
    i, f, g, o = gates[:, :5], gates[:, 5:10], gates[:, 10:15], gates[:, 15:]
    after = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    expected = torch.sigmoid(o) * torch.tanh(normed(after, cell.gain_c, cell.bias_c))
    for found, wanted in zip(cell(x, (h, c)), (expected, after), strict=True):
        torch.testing.assert_close(found, wanted)


def test_gru_cell():
    cell, x, h = randomised(LayerNormGRUCell(3, 5)), draw(4, 3), draw(4, 5, seed=1)
    now, past = x @ cell.ih.weight.T, h @ cell.hh.weight.T
    gates = normed(now[:, :10], cell.gain_ih[:10]) + normed(past[:, :10], cell.gain_hh[:10]) + cell.bias[:10]
    r, z = torch.sigmoid(gates[:, :5]), torch.sigmoid(gates[:, 5:])
    inner = normed(past[:, 10:], cell.gain_hh[10:]) + cell.bias_hn
    n = torch.tanh(normed(now[:, 10:], cell.gain_ih[10:]) + cell.bias[10:] + r * inner)
    torch.testing.assert_close(cell(x, h), (1 - z) * n + z * h)


LAYERS = [
    (LayerNormRNN, nn.RNN),
    (LayerNormLSTM, nn.LSTM),
    (LayerNormGRU, nn.GRU),
]


@pytest.mark.parametrize(("ours", "theirs"), LAYERS)
def test_layers_are_their_cells_over_time_in_torch_s_shapes(ours, theirs):
    x = draw(6, 2, 3)
    part = randomised(ours(3, 5, num_layers=2))
    outputs, last = part(x)
    expected, final = theirs(3, 5, num_layers=2).double()(x)
    shapes = [each.shape for each in (last if isinstance(last, tuple) else (last,))]
    assert outputs.shape == expected.shape
    assert shapes == [each.shape for each in (final if isinstance(final, tuple) else (final,))]
    states = [None, None]
    for t in range(len(x)):
        seen = x[t]
        for layer, cell in enumerate(part.cells):
            states[layer] = cell(seen, states[layer])
            seen = cell.output(states[layer])
        torch.testing.assert_close(outputs[t], seen)
    middle = part(x[:4])[1]
    torch.testing.assert_close(part(x[4:], middle)[0], outputs[4:])
    swapped = ours(3, 5, num_layers=2, batch_first=True).double()
    swapped.load_state_dict(part.state_dict())
    torch.testing.assert_close(swapped(x.transpose(0, 1))[0], outputs.transpose(0, 1))


def test_bad_sizes_and_inputs():
    with pytest.raises(ValueError, match="dim must be a whole number of at least 2, got 1"):
        LayerNorm(1)
    with pytest.raises(ValueError, match="eps must not be negative, got -1"):
        LayerNorm(4, eps=-1)
    with pytest.raises(ValueError, match="hidden_size"):
        LayerNormGRUCell(4, 1)
    with pytest.raises(ValueError, match=r"\(batch, 3\), got \(2, 5, 3\)"):
        LayerNormRNNCell(3, 5)(torch.ones(2, 5, 3))
    with pytest.raises(ValueError, match=r"\(time, batch, 3\), got \(5, 3\)"):
        LayerNormLSTM(3, 5)(torch.ones(5, 3))
