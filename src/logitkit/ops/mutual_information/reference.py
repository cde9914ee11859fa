"""All distances of some points at a time, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Distances held at once.
HELD = 2**22


def counts(parts: Sequence[Float[Tensor, "n _"]], k: int, rectangles: bool) -> Int[Tensor, "n spaces"]:
    """How many other points lie nearer than the k-th neighbour: in x and in y, or, if a third part is given,
    in (x, z), (y, z) and z. `rectangles`: no further than the points up to the k-th neighbour, in x and y."""
    n = len(parts[0])
    found = []
    for rows in torch.arange(n, device=parts[0].device).split(max(1, HELD // n)):
        each = []
        for part in parts:
            distance = (part[rows, None, 0] - part[:, 0]).abs()
            for column in part.T[1:]:
                distance = torch.maximum(distance, (column[rows, None] - column).abs())
            distance[torch.arange(len(rows)), rows] = torch.inf  # not its own neighbour
            each.append(distance)
        joint = torch.stack(each).amax(0)
        radius = joint.kthvalue(k, dim=1, keepdim=True).values
        if rectangles:
            near = joint <= radius
            within = [d <= torch.where(near, d, 0).amax(1, keepdim=True) for d in each]
        elif len(each) == 2:
            within = [d < radius for d in each]
        else:
            x, y, z = each
            within = [torch.maximum(x, z) < radius, torch.maximum(y, z) < radius, z < radius]
        found.append(torch.stack([w.sum(1) for w in within], 1))
    return torch.cat(found)
