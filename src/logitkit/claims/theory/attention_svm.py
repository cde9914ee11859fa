"""035: descent on an attention layer goes to the support vector machine of its best tokens.

Set beforehand: 4 inputs of 5 tokens in 10 dimensions, 20 random problems, normalised descent of 3,000 steps;
all thresholds.
Left open, and chosen before the first run:
- Tokens, queries and head are random on the sphere, labels random. Steps of 0.1 from 0 for W, and from
  entries N(0, 0.01 / dim) for K and Q. One seed draws all 20 problems.
- "Rising over the last half": the mean cosine at the end is above that after half of the steps.
- Margin of a W: the least of (x_opt - x_t)^T W z; the nuclear norm over it is compared in problems where both
  runs end with the best tokens.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from logitkit.claims.base import Check, Trial, claim
from logitkit.data.base import seeded
from logitkit.theory import attention_descent, attention_svm, direction_gap, token_margins

PROBLEMS, N, TOKENS, DIM = 20, 4, 5, 10


@claim(
    "theory",
    "attention_svm",
    statement="Normalised descent on an attention layer selects the best tokens in most of 20 random"
    " problems, and goes there to the direction of the support vector machine of least Frobenius norm; on"
    " keys and queries, to nearly the least nuclear norm.",
    seeds=range(1),
)
def attention_to_svm(trial: Trial) -> list[Check]:
    g = seeded("attention_svm", trial.seeds[0])
    x, z, v = (
        F.normalize(torch.randn(PROBLEMS, *shape, generator=g, dtype=torch.float64), dim=-1)
        for shape in ((N, TOKENS, DIM), (N, DIM), (DIM,))
    )
    y = torch.where(torch.rand(PROBLEMS, N, generator=g) < 0.5, 1.0, -1.0).double()
    opt = (y[..., None] * (x @ v[:, None, :, None])[..., 0]).argmax(-1)
    steps = trial.few(3000, 100)
    plain = attention_descent(x, z, v, y, steps=steps)
    factored = attention_descent(x, z, v, y, steps=steps, factored=True)

    def selects(w: torch.Tensor) -> torch.Tensor:
        return (token_margins(x, z, opt, w) >= 0).all(-1).all(-1)

    best, both = selects(plain.weight), selects(plain.weight) & selects(factored.weight)
    svm = torch.stack([attention_svm(a, b, c) for a, b, c in zip(x, z, opt, strict=True)])
    cosine = 1 - direction_gap(plain.directions[:, best], svm[best].expand(len(plain.directions), -1, -1, -1))
    mass = (-token_margins(x, z, opt, plain.weight)).softmax(-1).gather(-1, opt[..., None])[best]
    least = torch.stack(
        [
            torch.linalg.matrix_norm(attention_svm(x[i], z[i], opt[i], "nuc", trial.few(2000, 20)), "nuc")
            for i in both.nonzero().flatten().tolist()
        ]
    )

    def nuclear(w: torch.Tensor) -> torch.Tensor:
        margins = token_margins(x, z, opt, w)[both]
        others = torch.ones_like(margins, dtype=torch.bool).scatter(-1, opt[both][..., None], False)
        smallest = margins.masked_fill(~others, torch.inf).amin((-1, -2))
        return torch.linalg.matrix_norm(w[both], "nuc") / smallest

    excess, plain_excess = nuclear(factored.weight) / least, nuclear(plain.weight) / least
    share = 100 * best.double().mean().item()
    half = cosine[len(cosine) // 2 - 1].mean().item()
    return [
        Check("problems in which every input ends at its best token, percent", share, ">=", 60),
        Check("mean cosine with the support vector machine, there", cosine[-1].mean().item(), ">=", 0.95,
              arms={"cosine": cosine[-1].tolist()}),
        Check("the same minus half-way", cosine[-1].mean().item() - half, ">", 0),
        Check("mean attention to the best token, there", mass.mean().item(), ">=", 0.99),
        Check("nuclear norm over margin, keys and queries, over the least possible: the mean",
              excess.mean().item(), "<=", 1.1,
              arms={"factored": excess.tolist(), "plain": plain_excess.tolist()}),
        Check("problems in which it is at most that of descent on W, percent",
              100 * (excess <= plain_excess).double().mean().item(), ">=", 80),
    ]  # fmt: skip
