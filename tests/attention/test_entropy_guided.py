"""Entropy penalties in closed form and as the official code prints them; temperatures against softmax."""

import copy
import math

import pytest
import torch
from torch import nn

from logitkit import data
from logitkit.attention import (
    QLSTM,
    EntropyRegularizer,
    LinearAttention,
    SoftmaxAttention,
    TemperedAttention,
    attention_entropy,
    entropy_report,
    record_weights,
)
from logitkit.engine import Batch, Prepared, Recipe, Trainer
from logitkit.layers import NonlinearityLight
from logitkit.models import Transformer


def rows(layers=2, seed=0):
    """Causal weights of two layers, (batch 2, heads 3, 5, 5)."""
    g = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(layers, 2, 3, 5, 5, generator=g, dtype=torch.float64)
    return list(scores.masked_fill(torch.ones(5, 5).triu(1) > 0, -math.inf).softmax(-1))


def test_entropy_of_uniform_and_one_hot_rows():
    uniform, one_hot = torch.full((2, 8), 1 / 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(
        attention_entropy(uniform), torch.full((2,), math.log(8), dtype=torch.float64), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        attention_entropy(one_hot), torch.zeros(8, dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_penalty_of_the_official_code():
    """EntropyRegularization of Nandan91/entropy-guided-attention-llm, and its gradient, on these weights."""
    a = torch.arange(192).double().mul(0.7).sin().mul(3).view(2, 2, 3, 4, 4).softmax(-1)
    penalty = EntropyRegularizer(3, 2, lam=0.1, hmax="logT").double()
    penalty.threshold.data = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    found = penalty(list(a))
    found.backward()
    assert found.item() == pytest.approx(0.16077687557933096, rel=1e-6)
    expected = torch.tensor([-0.3481821805953006, -0.1097212581130031, 0.2472718484934793])
    torch.testing.assert_close(penalty.threshold.grad.float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("hmax", ["causal", "logT"])
def test_loop_over_plain_floats(hmax):
    attns, penalty = rows(), EntropyRegularizer(3, 2, lam=0.3, hmax=hmax).double()
    penalty.threshold.data = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    total, slope = 0.0, [0.0, 0.0, 0.0]
    for a in attns:
        for b in range(2):
            for h in range(3):
                for i in range(5):
                    most = math.log(i + 1) if hmax == "causal" else math.log(5)
                    entropy = -sum(p * math.log(p + 1e-9) for p in a[b, h, i].tolist())
                    off = entropy - penalty.threshold[h].item() * most
                    if abs(off) > 0.2 * most:
                        total += off**2
                        slope[h] += -2 * 0.3 * off * most / (3 * 2)
    found = penalty(attns)
    found.backward()
    assert found.item() == pytest.approx(0.3 * total / 6)
    torch.testing.assert_close(penalty.threshold.grad, torch.tensor(slope, dtype=torch.float64))


def test_within_the_margin_nothing_happens():
    attns = [a.requires_grad_() for a in rows()]
    penalty = EntropyRegularizer(3, 2, margin=2.0).double()
    found = penalty(attns)
    found.backward()
    assert found.item() == 0
    assert penalty.threshold.grad.abs().max() == 0
    assert all(a.grad.abs().max() == 0 for a in attns)


def test_the_first_causal_row_is_never_penalised():
    alone = [torch.ones(1, 1, 1, 1, dtype=torch.float64)]
    assert EntropyRegularizer(1, 1)(alone).item() < 1e-12


def test_report():
    uniform = torch.ones(1, 1, 6, 6).tril()
    uniform = (uniform / uniform.sum(-1, keepdim=True)).expand(2, 1, 6, 6)
    both = torch.cat([uniform, torch.eye(6).expand(2, 1, 6, 6)], 1)
    found = entropy_report([both, both])
    assert found.ratio.shape == (2, 2)
    torch.testing.assert_close(found.ratio[0], torch.tensor([1.0, 0.0]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.excess[0], torch.tensor([0.25, 0.0]).double(), atol=1e-5, rtol=0)
    assert found.overload[1].tolist() == [1, 0]
    assert found.collapse[1].tolist() == [0, 1]


def test_temperatures_divide_the_scores_of_their_head_and_position():
    torch.manual_seed(0)
    part, plain = TemperedAttention(8, 2, max_len=6).double(), SoftmaxAttention(8, 2).double()
    plain.load_state_dict(part.state_dict(), strict=False)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(part(x, is_causal=True)[0], plain(x, is_causal=True)[0])
    part.inverse_temperature.data.uniform_(0.1, 3)
    q, k, _ = plain.project(x, x, x)
    t = 1 / part.inverse_temperature[:, :5, None]
    weights = (q @ k.mT / (t * 2)).softmax(-1)
    torch.testing.assert_close(part(x, need_weights=True, average_attn_weights=False)[1], weights)
    with pytest.raises(ValueError, match="max_len is 6"):
        part(torch.randn(1, 7, 8).double())


def test_weights_are_recorded_with_their_graph():
    torch.manual_seed(0)
    model = Transformer(
        (7,), 11, dim=16, heads=2, attention=TemperedAttention, norm=lambda _: nn.Identity(),
        mlp=NonlinearityLight,
    )  # fmt: skip
    x = torch.randint(11, (3, 7))
    with record_weights(model) as found:
        out = model(x)
    torch.testing.assert_close(out, model(x))
    assert [tuple(a.shape) for a in found] == [(3, 2, 7, 7)] * 2
    EntropyRegularizer(2, 2, lam=1.0, margin=0.0)(found).backward()
    assert model.blocks[1].attention.inverse_temperature.grad.abs().max() > 0
    assert len(found) == 2  # the second call was not recorded
    for without in (QLSTM(8, 2), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="attention with weights"), record_weights(without):
            pass
    with record_weights(LinearAttention(8, 2)) as found:
        pass


@pytest.mark.parametrize("hmax", ["causal", "logT"])
def test_a_run_adds_the_penalty_of_every_layer(hmax):
    settings = {"steps": 1, "batch_size": 8, "threads": 1}
    if hmax == "causal":
        settings |= {"data": "recall", "model": "transformer(dim=16, heads=2)"}
    else:
        settings |= {"data": "digits", "model": "vit(dim=16, heads=2, depth=2)"}
    prepared = Prepared.of(data.split(data.load(settings["data"]), 0))
    plain, guided = (
        Trainer(Recipe.of(**settings, attention=f"entropy_guided(lam={lam})"), prepared)
        for lam in (0.0, 0.01)
    )
    plain.network.load_state_dict(guided.network.state_dict(), strict=False)
    batch = Batch(prepared.train[0][:8], prepared.train[1][:8], torch.arange(8))
    with record_weights(plain.network) as weights:
        without = plain.objective(plain.network, batch)
    expected = 2 * EntropyRegularizer(2, 2, lam=0.01, hmax=hmax)(weights)  # the sum over two layers
    with_penalty = guided.objective(guided.network, batch)
    assert expected.item() > 0.01
    assert (with_penalty - without).item() == pytest.approx(expected.item(), rel=1e-4)
    attention = guided.network.backbone.blocks[0].attention
    assert attention.penalty().item() == 0  # it is handed over once
    guided.run()
    assert (attention.regularizer.threshold != 0.5).all()
    copy.deepcopy(guided.network)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="hmax must be"):
        EntropyRegularizer(3, 2, hmax="n")(rows())
    with pytest.raises(ValueError, match="heads and layers"):
        EntropyRegularizer(0, 2)
    with pytest.raises(ValueError, match="must not be negative"):
        EntropyRegularizer(3, 2, lam=-1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        TemperedAttention(8, 2, lam=-1.0)
    with pytest.raises(ValueError, match="expected weights of 2 layers"):
        EntropyRegularizer(3, 2)(rows(1))
    with pytest.raises(ValueError, match="weights must be"):
        EntropyRegularizer(4, 2)(rows())
