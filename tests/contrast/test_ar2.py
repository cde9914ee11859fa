"""AR2 against loops over plain floats, its gradients, and who learns when."""

import copy
import math

import pytest
import torch
from torch import nn

from logitkit.contrast import AR2Loss, AR2Trainer
from logitkit.ops import mine_negatives, ranker_loss

S = 2 * torch.sin(1.7 * torch.arange(8.0, dtype=torch.float64)).reshape(2, 4)
R = 2 * torch.cos(1.3 * torch.arange(8.0, dtype=torch.float64)).reshape(2, 4)


@pytest.mark.parametrize(("lam", "temperature"), [(0.0, 1.0), (1.0, 1.0), (0.3, 0.5)])
def test_loops_over_plain_floats(lam, temperature):
    expected = []
    for s, r in zip(S.tolist(), R.tolist(), strict=True):
        total, belief = sum(map(math.exp, s)), sum(math.exp(v / temperature) for v in r)
        value = 0.0
        for a, b in zip(s, r, strict=True):
            reward = math.log(math.exp(r[0]) / (math.exp(r[0]) + math.exp(b)))
            log_p = a - math.log(total)
            value += lam * reward * log_p - (1 - lam) * math.exp(b / temperature) / belief * log_p
        expected.append(value)
    found = AR2Loss(lam, temperature, reduction="none")(S, R)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert ranker_loss(R).item() == pytest.approx(
        sum(math.log(sum(map(math.exp, r))) - r[0] for r in R.tolist()) / 2
    )


def test_values_of_the_official_code():
    """The retriever's loss of co_training_wiki_train.py of github.com/microsoft/AR2 on these numbers, with
    adv_lambda 0, 0.5 and 1; its adversarial term divided by the batch. Logarithms there are of
    numbers plus 1e-7."""
    found = [AR2Loss(lam)(S, R).item() for lam in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([1.4454227127, 1.8866292908, 2.3278358688], abs=1e-5)


def gradient(scores, ranked, lam, temperature=1.0):
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(AR2Loss(lam, temperature, reduction="sum")(scores, ranked), scores)[0]


def test_the_distillations_gradient_is_a_difference_of_softmaxes():
    found = gradient(S, R, 0.0, 0.7)
    torch.testing.assert_close(found, torch.softmax(S, dim=1) - torch.softmax(R / 0.7, dim=1))


def test_where_the_ranker_is_undecided_the_adversarial_gradient_flattens_the_retriever():
    found = gradient(S, torch.full_like(R, 3.0), 1.0)
    torch.testing.assert_close(found, math.log(2) * (4 * torch.softmax(S, dim=1) - 1))


def test_from_even_odds_an_adversarial_step_raises_what_the_ranker_likes_most():
    scores = -0.1 * gradient(torch.zeros_like(S), R, 1.0)
    assert torch.equal(scores.argmax(dim=1), R.argmax(dim=1))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_large_scores_stay_finite(dtype, size):
    scores = (size * S.sign()).to(dtype).requires_grad_()
    loss = AR2Loss()(scores, (size * R.sign()).to(dtype))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


def test_mined_are_the_nearest_but_the_positive():
    q, d = torch.randn(5, 3), torch.randn(9, 3)
    positives = (q @ d.T).argmax(dim=1)
    found = mine_negatives(q, d, positives, 2, block=2)
    for i in range(5):
        order = sorted((j for j in range(9) if j != positives[i]), key=lambda j: -float(q[i] @ d[j]))
        assert found[i].tolist() == order[:2]
    with pytest.raises(ValueError, match="between 1 and 8, got 9"):
        mine_negatives(q, d, positives, 9)


class Retriever(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries, self.documents = nn.Linear(4, 3), nn.Linear(5, 3)


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(9, 1)

    def forward(self, queries, candidates):
        both = torch.cat([queries[:, None].expand(-1, candidates.shape[1], -1), candidates], dim=-1)
        return self.map(both)[..., 0]


def test_each_step_moves_one_of_the_two():
    torch.manual_seed(0)
    trainer = AR2Trainer(Retriever(), Ranker(), negatives=3, lr=0.1, ranker_lr=0.1)
    q, d, positives = torch.randn(6, 4), torch.randn(8, 5), torch.arange(6)
    candidates = d[trainer.mine(q, d, positives)]
    assert torch.equal(candidates[:, 0], d[positives])
    for step, moves in ((trainer.ranker_step, trainer.ranker), (trainer.retriever_step, trainer.retriever)):
        before = copy.deepcopy([trainer.ranker.state_dict(), trainer.retriever.state_dict()])
        first = step(q, candidates)
        for module, old in zip((trainer.ranker, trainer.retriever), before, strict=True):
            changed = any(not torch.equal(v, old[k]) for k, v in module.state_dict().items())
            assert changed == (module is moves)
        assert step(q, candidates) != first


def test_rounds_teach_both_and_without_a_ranker_the_retriever():
    q, d, positives = torch.randn(40, 4), torch.randn(50, 5), torch.arange(40)
    for ranker in (Ranker(), None):
        trainer = AR2Trainer(Retriever(), ranker, negatives=4, block=5, batch_size=8, lr=0.05, ranker_lr=0.05)
        state = copy.deepcopy(trainer.retriever.state_dict())
        trainer.round(q, d, positives, blocks=2, generator=torch.Generator().manual_seed(0))
        moved = [k for k, v in trainer.retriever.state_dict().items() if not torch.equal(v, state[k])]
        assert {"queries.weight", "documents.weight"} <= set(moved)


def test_refuses_what_it_cannot_weigh():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 2"):
        AR2Loss(lam=2)
    with pytest.raises(ValueError, match="4 columns"):
        AR2Loss()(S, R[:, 1:])
