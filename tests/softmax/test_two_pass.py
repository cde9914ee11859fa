"""Two-pass softmax against float64, in pieces, at the ends of the range; and that no maximum is taken."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from logitkit.softmax import ExtExp, TwoPass, TwoPassState, two_pass_softmax


def rows(kind):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3001, generator=g)
    if kind == "wide":
        return 1e4 * (2 * torch.rand(4, 3001, generator=g) - 1)
    if kind == "equal":
        return torch.full((4, 3001), -87.3)
    if kind == "one huge":
        x[:, 17] = 9e4
    if kind == "masked":
        x[:, ::3] = -torch.inf
    return x


@pytest.mark.parametrize("kind", ["normal", "wide", "equal", "one huge", "masked"])
@pytest.mark.parametrize("chunk", [7, 700, 65536])
def test_matches_float64(kind, chunk):
    x = rows(kind)
    exact = x.double().softmax(-1)
    found = two_pass_softmax(x, chunk=chunk).double()
    assert float((found - exact).abs().max()) <= 1e-6 * float(exact.max())
    counts = exact > 1e-30
    assert float(((found - exact) / exact)[counts].abs().max()) < 1e-6
    assert bool((found[x == -torch.inf] == 0).all())


def test_the_mantissa_is_of_the_order_of_one():
    x = torch.linspace(-1e4, 1e4, 50001)
    pair = ExtExp.of(x)
    assert 0.7 < float(pair.m.min()) < float(pair.m.max()) < 1.42
    torch.testing.assert_close(pair.log(), x, rtol=1e-6, atol=1e-6)


class Operations(TorchDispatchMode):
    def __init__(self, scores):
        super().__init__()
        self.scores, self.seen = scores, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(isinstance(a, torch.Tensor) and a.data_ptr() == self.scores.data_ptr() for a in args):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_no_maximum_of_the_scores_is_taken():
    x = rows("normal")
    with Operations(x) as mode:
        TwoPassState().update(x).weights(x)
    assert mode.seen
    assert not [name for name in mode.seen if "max" in name]


def test_shards_merge_in_any_order():
    x = rows("wide")
    g = torch.Generator().manual_seed(1)
    cuts = sorted(torch.randperm(3000, generator=g)[:6].tolist())
    shards = [TwoPassState().update(piece) for piece in x.tensor_split(cuts, dim=1)]
    whole = TwoPassState().update(x)
    for order in (range(7), (6, 2, 0, 5, 1, 4, 3)):
        state = TwoPassState()
        for i in order:
            state = state.merge(shards[i])
        torch.testing.assert_close(state.weights(x), whole.weights(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole.logsumexp()[:, 0], x.double().logsumexp(1))
    with pytest.raises(ValueError, match="seen 0 scores"):
        TwoPassState().weights(x)


def test_rows_without_an_answer_are_nan_as_in_torch():
    nothing = torch.full((1, 5), -torch.inf)
    assert bool(two_pass_softmax(nothing).isnan().all())
    assert bool(two_pass_softmax(torch.tensor([[0.0, torch.inf, 1.0]])).isnan().all())
    with pytest.raises(ValueError, match="chunk"):
        TwoPass(chunk=0)


def test_far_smaller_weights_are_zero_and_do_not_wrap_around():
    for dtype, gap in ((torch.float32, 200.0), (torch.float64, 900.0)):
        x = torch.tensor([[0.0, -gap, -1e7, -5e8]], dtype=dtype)
        assert two_pass_softmax(x).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_other_axes_and_gradients():
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(two_pass_softmax(x, dim=1), x.softmax(1))
    assert torch.autograd.gradcheck(lambda x: two_pass_softmax(x, 1, chunk=4), (x,))
    assert torch.autograd.gradgradcheck(lambda x: two_pass_softmax(x, 1, chunk=4), (x,))
