import pytest
import torch

from logitkit.losses import ZLoss, z_loss

LOGITS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 5


@pytest.mark.parametrize("k", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("t", [-50.0, 0.0, 7.0])
def test_invariant_to_shift_and_scale(k, t):
    torch.testing.assert_close(
        z_loss(k * LOGITS + t, LABELS, 0.7, 1.3), z_loss(LOGITS, LABELS, 0.7, 1.3), atol=1e-6, rtol=0
    )


def test_sharp_limit_is_a_hinge_on_the_standardised_logit():
    z = (LOGITS - LOGITS.mean(1, keepdim=True)) / LOGITS.std(1, correction=0, keepdim=True)
    hinge = (1.0 - z[torch.arange(6), LABELS]).clamp(min=0)
    torch.testing.assert_close(z_loss(LOGITS, LABELS, 1e4, 1.0), hinge, atol=1e-4, rtol=0)


def test_value_of_the_authors_formula():
    """softplus((mu - o_c) / sigma), summed, of github.com/pascal20100/factored_output_layer."""
    logits = torch.tensor([[1.5, -0.5, 0.25, 2.0], [-1.0, 0.75, 3.0, -2.5], [0.1, 0.2, -0.3, 0.4]])
    loss = ZLoss(reduction="sum")(logits, torch.tensor([3, 1, 2]))
    assert loss.item() == pytest.approx(2.560971737, abs=1e-6)


def test_refuses_bad_hyperparameters():
    with pytest.raises(ValueError, match="a must be positive, got 0"):
        ZLoss(a=0)
    with pytest.raises(ValueError, match="b must be finite, got nan"):
        ZLoss(b=float("nan"))
