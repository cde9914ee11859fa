"""Codebooks: vectors that follow data, and means of them under predicted probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# A code used less than this fraction of the mean is replaced by what comes now.
RARE = 0.03


def soft_token(
    logits: Float[Tensor, "*batch codes"], codebook: Float[Tensor, "codes dim"], temperature: float = 1.0
) -> Float[Tensor, "*batch dim"]:
    """sum_k softmax(logits / temperature)_k codebook_k; see `bottleneck.SoftToken`."""
    return soft_weights(logits, temperature).to(codebook.dtype) @ codebook


def soft_weights(
    logits: Float[Tensor, "*batch codes"], temperature: float = 1.0
) -> Float[Tensor, "*batch codes"]:
    """softmax(logits / temperature), in at least float32 and for any positive temperature."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    # With its largest entry at 0, a row divided by a tiny temperature has no infinity but minus infinity.
    return ((logits - logits.detach().amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


class Quantised(NamedTuple):
    """The codes next to the encoder's outputs, with the gradient of these, and which codes they are."""

    codes: Float[Tensor, "batch tokens dim"]
    tokens: Int[Tensor, "batch tokens"]
    commitment: Float[Tensor, ""]


class Codebook(nn.Module):
    """Vectors that follow what is shown to them: each, by an exponential moving average, the rows that are
    closest to it.

    A code that fell out of use becomes a random vector of the batch; so does every code in the first
    training step, which makes the initial values of no account.
    """

    def __init__(self, codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.vectors: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("vectors", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    def nearest(
        self, z: Float[Tensor, "*batch dim"], known: Bool[Tensor, "*batch dim"] | None = None
    ) -> Int[Tensor, "*batch"]:
        """The codes closest to z, over its `known` entries; the others have no influence."""
        with torch.autocast(z.device.type, enabled=False):
            z, square = z.to(self.vectors), self.vectors.square()
            if known is None:
                return (square.sum(dim=1) - 2 * z @ self.vectors.T).argmin(dim=-1)
            z = torch.where(known, z, 0.0)
            return (known.to(square) @ square.T - 2 * z @ self.vectors.T).argmin(dim=-1)

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantised:
        if self.training:
            self.follow(z.detach().flatten(0, 1))
        tokens = self.nearest(z)
        codes = self.vectors[tokens]
        return Quantised(z + (codes - z).detach(), tokens, (codes - z).square().mean())

    def follow(self, z: Float[Tensor, "rows dim"]) -> None:
        """Move the codes toward the rows closest to them."""
        used = F.one_hot(self.nearest(z), len(self.vectors)).to(self.counts)
        self.counts.lerp_(used.sum(dim=0), 1 - self.decay)
        with torch.autocast(z.device.type, enabled=False):
            self.sums.lerp_(used.T @ z.to(self.sums), 1 - self.decay)
        mean = self.counts.mean()
        rare = self.counts < RARE * mean
        fresh = z[torch.randint(len(z), (len(rare),), device=z.device)].to(self.sums)
        self.sums.copy_(torch.where(rare[:, None], mean * fresh, self.sums))
        self.counts.copy_(torch.where(rare, mean, self.counts))
        self.vectors.copy_(self.sums / self.counts[:, None])
