"""The multitask loss against sums by hand, the authors' numbers, and what duplicating data does."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.losses import MultitaskLoss, ValidationBalancer, pack

MODES = ["token", "sample", "task_token", "task_sample"]


def logits_of(losses):
    """Logits over two classes whose cross-entropy with label 0 is the given number."""
    losses = torch.tensor(losses, dtype=torch.float64)
    return torch.stack([-losses, torch.log(-torch.expm1(-losses))], dim=-1)


# Three sequences with token losses 1 2 3 | 4 | 5 6, of tasks 0, 0, 2.
LOGITS = logits_of([[1.0, 2, 3], [4, 9, 9], [9, 5, 6]])
LABELS = torch.tensor([[0, 0, 0], [0, -100, -100], [-100, 0, 0]])
TASK = torch.tensor([0, 0, 2])
WEIGHTS = torch.tensor([1.0, 7.0, 3.0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token", 21 / 6),
        ("sample", (2 + 4 + 5.5) / 3),
        ("task_token", (1 * 10 / 4 + 3 * 11 / 2) / 4),
        ("task_sample", (1 * (2 + 4) / 2 + 3 * 5.5) / 4),
    ],
)
def test_by_hand(mode, expected):
    assert MultitaskLoss(3, mode, WEIGHTS)(LOGITS, LABELS, TASK).item() == pytest.approx(expected)


def test_values_of_the_official_code():
    """loss_func_mft of github.com/codefuse-ai/MFTCoder on these numbers, case1 to case4."""
    logits = 2 * torch.sin(1.7 * torch.arange(60).reshape(3, 4, 5))
    labels = torch.tensor([[0, 3, 1, -100], [2, 2, -100, -100], [4, -100, 1, 0]])
    weights, task = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 2, 0])
    found = [MultitaskLoss(3, mode, weights)(logits, labels, task).item() for mode in MODES]
    assert found == pytest.approx([2.5073113441, 2.4153788090, 1.9005563259, 1.9005565643], abs=1e-6)
    per_task = MultitaskLoss(3).per_task(logits, labels, task)
    assert per_task[[0, 2]].tolist() == pytest.approx([2.7831089497, 1.6799182892], abs=1e-6)
    assert per_task[1].isnan()


@pytest.mark.parametrize("mode", MODES)
def test_one_task_of_equal_lengths_is_cross_entropy(mode):
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, 7, generator=g), torch.randint(7, (4, 5), generator=g)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(MultitaskLoss(1, mode)(logits, labels, torch.zeros(4).long()), expected)


def test_more_of_a_task_moves_only_the_modes_that_count_tokens_or_sequences():
    again = torch.tensor([0, 1, 2, 2, 2])
    for mode in MODES:
        loss = MultitaskLoss(3, mode)
        before = loss(LOGITS, LABELS, TASK).item()
        after = loss(LOGITS[again], LABELS[again], TASK[again]).item()
        assert (after == pytest.approx(before)) == mode.startswith("task")


def test_focal_factors_by_hand():
    token = [value * (1 - math.exp(-value)) ** 2 for value in (1, 2, 3, 4, 5, 6)]
    assert MultitaskLoss(3, "token", focal="token")(LOGITS, LABELS, TASK).item() == pytest.approx(
        sum(token) / 6
    )
    first, second = 10 / 4, 11 / 2
    expected = sum(value * (1 - math.exp(-value)) ** 2 for value in (first, second)) / 2
    assert MultitaskLoss(3, focal="task")(LOGITS, LABELS, TASK).item() == pytest.approx(expected)


@pytest.mark.parametrize("focal", ["token", "task"])
def test_gamma_zero_is_the_plain_loss(focal):
    plain = MultitaskLoss(3)(LOGITS, LABELS, TASK)
    torch.testing.assert_close(MultitaskLoss(3, focal=focal, gamma=0.0)(LOGITS, LABELS, TASK), plain)


def test_a_detached_factor_scales_the_gradient_of_the_plain_loss():
    logits = logits_of([[1.5]]).requires_grad_()
    given = torch.zeros(1, 1).long(), torch.zeros(1).long()
    (plain,) = torch.autograd.grad(MultitaskLoss(1)(logits, *given), logits)
    for focal in ("token", "task"):
        detached = MultitaskLoss(1, focal=focal, detach_focal=True)(logits, *given)
        (gradient,) = torch.autograd.grad(detached, logits)
        torch.testing.assert_close(gradient, (1 - math.exp(-1.5)) ** 2 * plain)
        (attached,) = torch.autograd.grad(MultitaskLoss(1, focal=focal)(logits, *given), logits)
        assert attached.abs().max() > gradient.abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("focal", [None, "token"])
def test_nothing_asked_of_a_sequence_or_of_all(mode, focal):
    loss = MultitaskLoss(3, mode, focal=focal)
    rows = torch.tensor([[-100, -100, -100]])
    more = torch.cat([LABELS, rows]), torch.cat([TASK, torch.tensor([1])])
    logits = torch.cat([LOGITS, torch.full((1, 3, 2), 1e4, dtype=torch.float64)]).requires_grad_()
    value = loss(logits, *more)
    torch.testing.assert_close(value, loss(LOGITS, LABELS, TASK))
    value.backward()
    assert torch.equal(logits.grad[3], torch.zeros(3, 2, dtype=torch.float64))
    assert loss(LOGITS, LABELS * 0 - 100, TASK) == 0


@pytest.mark.parametrize("focal", [None, "token", "task"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_large_logits_stay_finite(focal, dtype, size):
    logits = (size * torch.tensor([[[1.0, -1], [-1, 1]]])).to(dtype).requires_grad_()
    for labels in (torch.tensor([[0, 0]]), torch.tensor([[0, 1]])):
        (gradient,) = torch.autograd.grad(
            MultitaskLoss(1, focal=focal, gamma=0.5)(logits, labels, torch.zeros(1).long()), logits
        )
        assert gradient.isfinite().all()


def test_the_balancer_follows_famo():
    """FAMO's update, with Adam and the derivative of the softmax written out in plain floats."""
    history = [[2.0, 1.0, 3.0], [1.0, 0.9, 2.9], [0.6, 0.8, 2.0]]
    balancer = ValidationBalancer(3)
    xi, m, v = [0.0] * 3, [0.0] * 3, [0.0] * 3
    balancer.update(torch.tensor(history[0]))
    assert balancer.weights.tolist() == pytest.approx([1 / 3] * 3)
    for step in (1, 2):
        z = [math.exp(x) / sum(map(math.exp, xi)) for x in xi]
        delta = [math.log(a / b) for a, b in zip(history[step - 1], history[step], strict=True)]
        mean = sum(a * b for a, b in zip(z, delta, strict=True))
        for k in range(3):
            gradient = z[k] * (delta[k] - mean) + 1e-3 * xi[k]
            m[k], v[k] = 0.9 * m[k] + 0.1 * gradient, 0.999 * v[k] + 0.001 * gradient**2
            root = math.sqrt(v[k] / (1 - 0.999**step)) + 1e-8
            xi[k] -= 0.025 * m[k] / (1 - 0.9**step) / root
        found = balancer.update(torch.tensor(history[step]))
        expected = [math.exp(x) / sum(map(math.exp, xi)) for x in xi]
        assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.argmin() == 0  # whose loss fell most


def test_the_balancer_resumes_and_skips_what_was_not_measured():
    balancer, other = ValidationBalancer(2), ValidationBalancer(2)
    for losses in ([1.0, 1.0], [0.5, 0.9]):
        balancer.update(torch.tensor(losses))
    other.load_state_dict(balancer.state_dict())
    later = torch.tensor([0.4, 0.2])
    assert torch.equal(balancer.update(later), other.update(later))
    balancer.update(torch.tensor([math.nan, 0.1]))
    assert balancer.previous.tolist() == pytest.approx([0.4, 0.1])
    with pytest.raises(ValueError, match="2 positive numbers"):
        balancer.update(torch.tensor([0.0, 1.0]))


def test_packing_by_hand():
    def sample(first, count, task):
        tokens = torch.arange(first, first + count)
        return tokens, tokens.where(tokens > first + 1, -100), task

    found = pack([sample(10, 3, 0), sample(20, 2, 1), sample(30, 2, 0), sample(40, 4, 0)], 5, pad=9)
    assert found.input_ids.tolist() == [[10, 11, 12, 30, 31], [20, 21, 9, 9, 9], [40, 41, 42, 43, 9]]
    assert found.labels.tolist() == [[-100, -100, 12, -100, -100], [-100] * 5, [-100, -100, 42, 43, -100]]
    assert found.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0], [0, 1, 2, 3, 0]]
    assert found.task_id.tolist() == [0, 1, 0]
    whole = torch.arange(3)
    assert pack([(whole, whole, 0)], 3).labels.tolist() == [[-100, 1, 2]]  # nothing precedes the first
    with pytest.raises(ValueError, match="1 to 5 tokens"):
        pack([sample(10, 6, 0)], 5)


def test_refuses_what_it_cannot_mean():
    with pytest.raises(ValueError, match="'mean'"):
        MultitaskLoss(2, "mean")
    with pytest.raises(ValueError, match="'task' in mode 'token'"):
        MultitaskLoss(2, "token", focal="task")
    with pytest.raises(ValueError, match="2 numbers"):
        MultitaskLoss(2, task_weights=torch.ones(3))
    with pytest.raises(ValueError, match="got 0 to 2"):
        MultitaskLoss(2)(LOGITS, LABELS, TASK)
