"""FLAT against loops and the authors' numbers, and which way each divergence pushes."""

import math

import pytest
import torch

from logitkit.adapt import FLATLoss, answer_probability
from logitkit.ops import next_token_labels

FORGET = 2 * torch.sin(1.7 * torch.arange(40.0)).reshape(2, 4, 5)
TEMPLATE = 2 * torch.cos(1.3 * torch.arange(40.0)).reshape(2, 4, 5)
FORGET_LABELS = torch.tensor([[-100, 3, 1, -100], [-100, 2, 1, 0]])
TEMPLATE_LABELS = torch.tensor([[-100, 0, 4, -100], [-100, 0, 4, 1]])
GIVEN = (FORGET, FORGET_LABELS, TEMPLATE, TEMPLATE_LABELS)
SOUND = ["kl", "tv", "pearson", "js", "jeffrey"]


def with_probability(p):
    """One prompt, one token of answer, of which the label 0 has probability p."""
    return torch.stack([torch.as_tensor(p).log(), torch.as_tensor(1 - p).log()])[None, None]


LABEL = torch.zeros(1, 1).long()


def value(divergence, template, forget):
    return FLATLoss(divergence, experimental=True)(
        with_probability(forget), LABEL, with_probability(template), LABEL
    )


def test_values_of_the_official_code():
    """ProbLossStable and get_contrastive_loss of github.com/UCSC-REAL/FLAT on these numbers."""
    expected = {"kl": 0.2266724110, "tv": -0.0097497180, "pearson": -0.0099963248, "js": 0.0012795329,
                "jeffrey": -0.0094650388, "reverse_kl": 0.0476052761, "neyman": 0.4674148560,
                "squared_hellinger": 0.0670837611}  # fmt: skip
    for divergence, number in expected.items():
        loss = FLATLoss(divergence, legacy=True, experimental=True)
        assert loss(*GIVEN).item() == pytest.approx(number, abs=1e-6)


def test_by_hand():
    e, f = 0.6, 0.3
    hand = {
        "kl": -e + math.exp(f - 1),
        "tv": (math.tanh(f) - math.tanh(e)) / 2,
        "pearson": -e + f * f / 4 + f,
        "js": math.log(1 + math.exp(-e)) + f + math.log(1 + math.exp(-f)) - 2 * math.log(2),
        "jeffrey": -e + f + f**2 / 4 + f**3 / 16,
    }
    for divergence, number in hand.items():
        assert value(divergence, e, f).item() == pytest.approx(number, rel=1e-6)
    assert value("tv", 0.4, 0.4).abs() < 1e-7


def slopes(divergence, p):
    """dL/dP_e and dL/dP_f at probabilities p."""
    both = torch.tensor([p, p], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(value(divergence, both[0], both[1]), both)[0].tolist()


@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.99])
def test_which_way_each_divergence_pushes(p):
    for divergence in SOUND:
        of_template, of_forget = slopes(divergence, p)
        assert of_template < 0 < of_forget
    for divergence in ("reverse_kl", "squared_hellinger"):
        of_template, of_forget = slopes(divergence, p)
        assert of_forget < 0 < of_template
    assert slopes("neyman", p)[0] > 0


def test_the_answers_probability_is_a_mean_over_its_tokens():
    labels = torch.tensor([[7, 0, 3, 1], [7, 2, 1, -100]])  # unshifted, as a language model is given them
    aligned = next_token_labels(labels)
    assert aligned.tolist() == [[0, 3, 1, -100], [2, 1, -100, -100]]
    p = FORGET.exp() / FORGET.exp().sum(-1, keepdim=True)
    expected = [
        (p[0, 0, 0] + p[0, 1, 3] + p[0, 2, 1]) / 3,
        (p[1, 0, 2] + p[1, 1, 1]) / 2,
    ]
    torch.testing.assert_close(answer_probability(FORGET, aligned), torch.stack(expected))
    found = answer_probability(FORGET, aligned, legacy=True)
    torch.testing.assert_close(found, torch.stack([expected[0] * 3 / 4, expected[1] * 2 / 4]))
    assert answer_probability(FORGET, labels * 0 - 100).tolist() == [0, 0]


@pytest.mark.parametrize("divergence", SOUND)
def test_gradients_are_the_derivative(divergence):
    loss, inputs = (
        FLATLoss(divergence),
        (FORGET.double().requires_grad_(), TEMPLATE.double().requires_grad_()),
    )
    assert torch.autograd.gradcheck(lambda f, t: loss(f, FORGET_LABELS, t, TEMPLATE_LABELS), inputs)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.bfloat16, 1e3)])
def test_large_logits_stay_finite(dtype, size):
    forget = (size * FORGET.sign()).to(dtype).requires_grad_()
    loss = FLATLoss()(forget, FORGET_LABELS, (size * TEMPLATE.sign()).to(dtype), TEMPLATE_LABELS)
    loss.backward()
    assert loss.isfinite()
    assert forget.grad.isfinite().all()


def test_what_does_not_count_gets_no_gradient():
    forget = FORGET.clone().requires_grad_()
    FLATLoss()(forget, FORGET_LABELS, TEMPLATE, TEMPLATE_LABELS).backward()
    assert forget.grad[:, 0].abs().sum() == forget.grad[0, 3].abs().sum() == 0
    assert (forget.grad[1, 1:] != 0).all()


def test_refuses_reversed_divergences_unless_asked():
    with pytest.raises(ValueError, match="experimental=True"):
        FLATLoss("reverse_kl")
    with pytest.raises(ValueError, match="'hellinger'"):
        FLATLoss("hellinger")


def test_descending_swaps_the_answer_for_the_template():
    forget, template = torch.zeros_like(FORGET).requires_grad_(), torch.zeros_like(FORGET).requires_grad_()
    optimizer = torch.optim.SGD([forget, template], lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        FLATLoss("tv")(forget, FORGET_LABELS, template, TEMPLATE_LABELS).backward()
        optimizer.step()
    assert answer_probability(forget, FORGET_LABELS).max() < 0.05
    assert answer_probability(template, TEMPLATE_LABELS).min() > 0.9
    assert forget[:, 0].abs().sum() == 0
