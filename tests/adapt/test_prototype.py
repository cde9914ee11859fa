"""The prototype of the support against a loop over pixels."""

import math

import torch

from logitkit.adapt import Prototype


def test_loop_over_pixels():
    g = torch.Generator().manual_seed(0)
    support = torch.randn(1, 2, 3, 4, 4, generator=g, dtype=torch.float64)
    query = torch.randn(1, 3, 4, 4, generator=g, dtype=torch.float64)
    masks = (torch.rand(1, 2, 4, 4, generator=g) < 0.4).long()
    w, count = torch.zeros(3, dtype=torch.float64), 0
    for shot in range(2):
        for i in range(4):
            for j in range(4):
                if masks[0, shot, i, j]:
                    f = support[0, shot, :, i, j]
                    w, count = w + f / f.norm(), count + 1
    w = w / count
    cosines = [[float(w @ f / (w.norm() * f.norm())) for f in row] for row in query[0].permute(1, 2, 0)]
    b = 10 * sum(map(sum, cosines)) / 16
    found = Prototype(temperature=10.0).segment(support, masks, query)[0]
    for i in range(4):
        for j in range(4):
            assert math.isclose(found[i, j], 1 / (1 + math.exp(b - 10 * cosines[i][j])), rel_tol=1e-9)
