"""Fixed bins against scikit-learn, the bound against its closed form, gradients against a loop."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import nn

from logitkit.probe import FixedBins, InformationPlane, Known, gradient_snr, ib_curve


def h(p):
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_codes_of_equal_frequency_have_log2_of_their_number():
    codes = torch.tensor([[-0.9, 0.9], [-0.1, 0.9], [0.5, 0.0], [0.5, 0.9]]).repeat(8, 1)
    known = FixedBins()(codes, torch.arange(32) % 4)
    assert known.input == pytest.approx(2)
    assert known.label == pytest.approx(2)
    assert FixedBins()(codes).label is None


def test_scikit_learn_finds_the_same():
    g = torch.Generator().manual_seed(0)
    t = torch.rand(300, 3, generator=g) * 2 - 1
    y = torch.randint(5, (300,), generator=g)
    known = FixedBins(bins=3)(t, y)
    code = np.floor((t.numpy() + 1) / 2 * 3).astype(int) @ [1, 3, 9]
    assert known.label == pytest.approx(mutual_info_score(code, y.numpy()) / math.log(2))
    assert known.input == pytest.approx(mutual_info_score(code, code) / math.log(2))


def test_the_ends_of_the_range_belong_to_it():
    assert FixedBins(bins=2)(torch.tensor([[-1.0], [1.0], [-0.01], [0.0]])).input == pytest.approx(1)


def test_values_outside_the_range_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[-1.0, 1.0\], got -0.5 to 1.5"):
        FixedBins()(torch.tensor([[-0.5], [1.5]]))


def test_what_is_a_function_of_a_layer_knows_no_more():
    g = torch.Generator().manual_seed(1)
    first = torch.rand(200, 4, generator=g) * 2 - 1
    y = torch.randint(3, (200,), generator=g)
    bins = FixedBins(bins=6)
    coarse = ((first * 3).floor() / 3 + 1 / 6)[:, :2].clamp(-1, 1)
    before, after = bins(first, y), FixedBins(bins=3)(coarse, y)
    assert after.input <= before.input + 1e-12
    assert after.label <= before.label + 1e-12


def test_the_bound_of_a_binary_symmetric_channel():
    """Mrs Gerber: T is X flipped with probability q, I(X; T) = 1 - h(q), I(T; Y) = 1 - h(q * p)."""
    p, betas = 0.1, [1.2, 1.8, 2.0, 3.0, 6.0, 20.0]
    joint = torch.tensor([[1 - p, p], [p, 1 - p]], dtype=torch.float64) / 2
    curve = ib_curve(joint, betas)
    for rate, found in curve.tolist():
        low, high = 0.0, 0.5
        for _ in range(60):
            q = (low + high) / 2
            low, high = (q, high) if 1 - h(q) > rate else (low, q)
        assert found == pytest.approx(1 - h(q * (1 - p) + (1 - q) * p), abs=1e-3)
    assert curve[0].abs().max() < 1e-3  # beta below 1 / (1 - 2 p)^2 = 1.56 asks for nothing
    # concave, and of slope 1 / beta
    fine = torch.tensor([2.99, 3.01])
    ends = ib_curve(joint, fine.tolist())
    assert float((ends[1, 1] - ends[0, 1]) / (ends[1, 0] - ends[0, 0])) == pytest.approx(1 / 3, rel=1e-2)
    order = curve[:, 0].argsort()
    slopes = curve[order].diff(dim=0)
    slopes = (slopes[:, 1] / slopes[:, 0])[slopes[:, 0] > 1e-6]
    assert (slopes.diff() < 1e-9).all()


def test_a_joint_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must sum to 1, got 2"):
        ib_curve(torch.eye(2), [1.0])


def test_gradient_signal_and_noise_by_a_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [(torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,))) for _ in range(6)]
    found = gradient_snr(model, batches)
    assert list(found) == ["0", "2"]
    for name in found:
        layer, gradients = model.get_submodule(name), []
        for x, y in batches:
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in layer.parameters()]).numpy().copy())
        gradients = np.array(gradients)
        expected = np.linalg.norm(gradients.mean(0)) / np.linalg.norm(gradients.std(0, ddof=1))
        assert found[name] == pytest.approx(expected)


def test_one_batch_has_no_noise_to_measure():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="at least two, got 1"):
        gradient_snr(model, [(torch.randn(3, 2), torch.tensor([0, 1, 0]))])


class TestPlane:
    @staticmethod
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 2), nn.Tanh())

    def test_every_activation_is_followed(self):
        model, x = self.model(), torch.randn(64, 4)
        y = (x[:, 0] > 0).long()
        plane = InformationPlane(FixedBins(), model, x, y)
        assert plane.layers == ("1", "4")
        plane.record(0)
        expected = FixedBins()(model[1](model[0](x)), y)
        assert plane.values[0, 0].tolist() == pytest.approx(list(expected))
        with torch.no_grad():
            model[0].weight.zero_()
            model[0].bias.zero_()
        plane.record(5)
        assert plane.values.shape == (2, 2, 2)
        assert plane.values[1, 0].tolist() == pytest.approx([0, 0], abs=1e-9)
        assert plane.compression()["1"] == pytest.approx(expected.input)
        assert plane.to_dict()["steps"] == [0, 5]
        assert len(plane.plot().data) == 2
        assert model.training
        assert model[2].training  # dropout was off while looking, and is on again

    def test_compression_is_what_was_lost_since_the_best(self):
        known = iter([Known(1.0, 0.5), Known(4.0, 1.0), Known(1.5, 1.0)])
        x, y = torch.randn(8, 4), torch.arange(8) % 2
        plane = InformationPlane(lambda t, y, x: next(known), self.model(), x, y, ["1"])
        for step in range(3):
            plane.record(step)
        assert plane.compression() == {"1": 2.5}

    def test_hooks_are_gone_afterwards(self):
        model = self.model()
        plane = InformationPlane(FixedBins(), model, torch.randn(8, 4), torch.arange(8) % 2, ["1"])
        plane.record(0)
        assert not model[1]._forward_hooks

    def test_an_unknown_layer_is_named(self):
        with pytest.raises(ValueError, match="got 'nope'"):
            InformationPlane(FixedBins(), self.model(), torch.randn(8, 4), torch.arange(8) % 2, ["nope"])

    def test_a_model_without_activations_is_told(self):
        with pytest.raises(ValueError, match="no activation of torch among its 1 modules"):
            InformationPlane(FixedBins(), nn.Linear(4, 2), torch.randn(8, 4), torch.arange(8) % 2)

    def test_labels_of_another_length(self):
        with pytest.raises(ValueError, match="got 8 and 7"):
            InformationPlane(FixedBins(), self.model(), torch.randn(8, 4), torch.arange(7) % 2)

    def test_a_layer_that_runs_twice_is_refused(self):
        shared = nn.Tanh()
        model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared)
        plane = InformationPlane(FixedBins(), model, torch.randn(8, 4), torch.arange(8) % 2, ["1"])
        with pytest.raises(ValueError, match="2 outputs for 1 batches"):
            plane.record(0)

    def test_nothing_recorded(self):
        plane = InformationPlane(FixedBins(), self.model(), torch.randn(8, 4), torch.arange(8) % 2)
        with pytest.raises(ValueError, match="0 calls of record"):
            plane.compression()
        assert plane.values.shape == (0, 2, 2)
