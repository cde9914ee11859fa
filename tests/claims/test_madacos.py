"""Mean average precision of the MadaCos claim, against scikit-learn."""

import torch
from sklearn.metrics import average_precision_score

from logitkit.claims.heads.madacos import average_precision
from logitkit.ops.sphere import cosine


def test_average_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator)
    y = torch.arange(30) % 6
    similarity = cosine(x, x)
    found = []
    for i in range(30):
        others = torch.arange(30) != i
        found.append(average_precision_score((y == y[i])[others], similarity[i][others]))
    assert abs(average_precision(x, y) - 100 * sum(found) / 30) < 1e-6
