"""Each clause of the contract can fail: a deliberately broken loss for each, caught by its check."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from contract import checks
from logitkit import catalog, registry
from logitkit.losses import ClassificationLoss

GOOD_DOC = """Cross-entropy.

Equation: l = -log p_y.
Shapes: logits (batch, classes).
Defaults: none.
Raises: ValueError.
Source: nobody.
Not for: use.
"""


class Broken(ClassificationLoss):
    __doc__ = GOOD_DOC

    def per_example(self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")


class LosesPrecision(Broken):
    def per_example(self, logits, target):
        return torch.softmax(logits * (1e4 if logits.dtype == torch.float32 else 1), -1).gather(
            1, target[:, None]
        )[:, 0]


class FailsUnderAutocast(Broken):
    def per_example(self, logits, target):
        assert not torch.is_autocast_enabled("cpu")
        return super().per_example(logits, target)


class WrongGradient(Broken):
    def per_example(self, logits, target):
        return super().per_example(logits, target).detach() + logits.sum(-1) * 0.1


class Unseeded(Broken):
    calls = 0

    def per_example(self, logits, target):
        Unseeded.calls += 1
        return super().per_example(logits, target) + Unseeded.calls


class ChangesInput(Broken):
    def forward(self, logits, target):
        logits.add_(1)
        return super().forward(logits, target)


class LosesState(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))

    def state_dict(self, *args, **kwargs):
        return {}

    def load_state_dict(self, state, *args, **kwargs):
        return None

    def per_example(self, logits, target):
        return super().per_example(logits, target) * self.scale


class NeedsContiguous(Broken):
    def per_example(self, logits, target):
        flat = torch.as_strided(logits, (logits.numel(),), (1,))
        return super().per_example(flat.view(logits.shape), target)


class FailsOnOne(Broken):
    def per_example(self, logits, target):
        return super().per_example(logits, target) / logits.std(dim=0).mean()


class SwallowsBadInput(Broken):
    def forward(self, logits, target):
        return F.cross_entropy(logits.nan_to_num(), target.clamp(0, 1))


class LoopsOverBatch(Broken):
    def per_example(self, logits, target):
        return torch.stack([F.cross_entropy(row, t) for row, t in zip(logits, target, strict=True)])


class FalseShapes(Broken):
    def forward(self, logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch classes"]) -> Tensor:
        return super().forward(logits, target)


class BreaksCompile(Broken):
    def per_example(self, logits, target):
        if logits.sum().item() > 0:
            return super().per_example(logits, target)
        return super().per_example(logits, target) * 1.0


class NoDocstring(Broken):
    """Cross-entropy, with nothing more to say."""


class NotPublic(Broken):
    __doc__ = GOOD_DOC


CATCHES = [
    (LosesPrecision, checks.check_dtypes),
    (FailsUnderAutocast, checks.check_autocast),
    (WrongGradient, checks.check_gradient),
    (Unseeded, checks.check_determinism),
    (ChangesInput, checks.check_inputs_untouched),
    (LosesState, checks.check_copies),
    (NeedsContiguous, checks.check_noncontiguous),
    (FailsOnOne, checks.check_batch_of_one),
    (SwallowsBadInput, checks.check_bad_input),
    (LoopsOverBatch, checks.check_no_batch_loop),
    (FalseShapes, checks.check_shape_annotations),
    (BreaksCompile, checks.check_compile),
    (NoDocstring, checks.check_docstring),
    (NotPublic, checks.check_card),
]


@pytest.fixture
def register(monkeypatch):
    """Register a class as the part losses/<its name> for one test."""
    before = dict(registry._cards)

    def put(build: type, **card: object) -> registry.Card:
        name = build.__name__.lower()
        registry.part(name, "losses", title="broken on purpose", **card)(build)
        return catalog.get("losses", name)

    yield put
    registry._cards.clear()
    registry._cards.update(before)


@pytest.mark.parametrize(("build", "check"), CATCHES, ids=[c.__name__ for c, _ in CATCHES])
def test_check_catches(build, check, register):
    card = register(build)
    with pytest.raises((AssertionError, RuntimeError)):
        check(card)


def test_unbroken_part_passes(register, monkeypatch):
    """The same class unbroken passes every check, so that each failure above is the break's."""
    card = register(Broken)
    module = types.ModuleType("logitkit.losses.broken")
    module.Broken = Broken
    monkeypatch.setitem(sys.modules, "logitkit.losses.broken", module)
    monkeypatch.setattr(Broken, "__module__", "logitkit.losses.broken")
    monkeypatch.setattr("logitkit.losses.Broken", Broken, raising=False)
    monkeypatch.setattr("logitkit.losses.__all__", ["Broken"])
    for check in checks.checks_for(card):
        check(card)


class Climbs(torch.optim.SGD):
    """Gradient ascent."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, maximize=True)


def test_an_optimiser_that_climbs_is_caught(register):
    card = dataclasses.replace(register(Broken), build=Climbs)
    with pytest.raises(AssertionError, match="40 steps"):
        checks.check_optimizer(card)


def test_two_cards_for_one_paper_are_caught(register):
    a = register(Broken, paper="arXiv:1", number=7)
    b = register(NotPublic, paper="arXiv:1", number=7)
    with pytest.raises(AssertionError, match="both claim 7"):
        checks.check_one_card_per_paper([a, b])
    orphan = register(NoDocstring, paper="arXiv:2", number=8, companion_of="nobody")
    with pytest.raises(AssertionError, match="has no card"):
        checks.check_one_card_per_paper([a, orphan])
