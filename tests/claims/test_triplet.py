"""Semi-hard triplets of the normalised softmax's claim, against loops."""

import torch

from logitkit.claims.heads.normalized_softmax import semi_hard_triplet
from logitkit.ops.sphere import unit


def test_semi_hard_triplet() -> None:
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 5, 12):
        e = unit(torch.randn(12, 3, generator=generator, dtype=torch.float64))
        y = torch.randint(classes, (12,), generator=generator)
        d = torch.cdist(e, e).square()
        found = []
        for a in range(12):
            for p in range(12):
                if a == p or y[a] != y[p]:
                    continue
                negatives = [d[a, n] for n in range(12) if y[n] != y[a]]
                farther = [n for n in negatives if n > d[a, p]]
                negative = min(farther) if farther else max(negatives)
                found.append(max(d[a, p] - negative + 0.2, torch.tensor(0.0)))
        assert torch.isclose(semi_hard_triplet(e, y), torch.stack(found).double().mean())


def test_without_pairs_there_is_no_loss() -> None:
    e = unit(torch.randn(4, 3, requires_grad=True))
    loss = semi_hard_triplet(e, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
