"""Gradient difference as a part: one cross-entropy down, the other up."""

import torch
from torch.nn import functional as F

from logitkit.adapt import GradDiff


def test_what_is_kept_is_learned_while_the_rest_is_unlearned():
    g = torch.Generator().manual_seed(0)
    forget, keep = torch.randn(2, 3, 5, generator=g), torch.randn(4, 2, 5, generator=g)
    y, z = torch.tensor([[-100, 1, 2], [0, 4, -100]]), torch.randint(5, (4, 2), generator=g)
    down, up = (F.cross_entropy(a.flatten(0, 1), b.flatten()) for a, b in ((keep, z), (forget, y)))
    found = GradDiff()(forget, y, retain_logits=keep, retain_labels=z)
    torch.testing.assert_close(found, down - up)
