"""The linear head is torch's linear layer."""

from __future__ import annotations

import torch
from torch import nn

from logitkit.heads import LinearHead


def test_is_torchs_linear_layer() -> None:
    torch.manual_seed(0)
    ours = LinearHead(5, 3)
    torch.manual_seed(0)
    theirs = nn.Linear(5, 3)
    x = torch.randn(4, 5)
    assert torch.equal(ours(x), theirs(x))
    assert LinearHead(5, 3, bias=False).bias is None


def test_takes_the_place_of_a_loaded_linear_layer() -> None:
    theirs = nn.Linear(5, 3)
    ours = LinearHead(5, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(ours(x), theirs(x))
