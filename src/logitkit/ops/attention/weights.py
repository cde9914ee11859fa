"""What attention makes of a score: the softmax and its replacements.

A weight of your own is a subclass of `Elementwise`, or of `Normalized` where each row is divided by its sum,
with two functions of a tensor of scores. Attention takes care of masks, blocks and the products around them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Weight:
    """What `Elementwise` and `Normalized` share."""

    def stretch(self, visible: Tensor, head_dim: int) -> Tensor | None:
        """What the scores of a row that sees `visible` keys are multiplied by, of its shape; None for
        nothing."""
        return None

    def resolve(self, keys: int) -> Weight:
        """This weight for that many keys."""
        return self


class Elementwise(Weight):
    """A weight that depends on its own score only: w_ij = weigh(s_ij)."""

    def weigh(self, scores: Tensor) -> Tensor:
        """The weights of finite scores, by torch functions that have derivatives."""
        raise NotImplementedError

    def slope(self, scores: Tensor) -> Tensor:
        """dw/ds."""
        raise NotImplementedError


class Normalized(Weight):
    """A weight divided by its row's sum: A_ij = w_ij / (sum_k w_ik + floor), the sum over visible keys.

    So that nothing overflows, w is computed relative to that of the row's peak, the largest size(s) there is.
    """

    def size(self, scores: Tensor) -> Tensor:
        """A number that is larger where the weight is; the score itself if the weight rises with it."""
        return scores

    def weigh(self, scores: Tensor, peak: Tensor) -> Tensor:
        """w(score) / w(peak)."""
        raise NotImplementedError

    def slope(self, scores: Tensor, peak: Tensor) -> Tensor:
        """The derivative of `weigh` in the score, the peak held."""
        raise NotImplementedError

    def floor(self, peak: Tensor) -> Tensor | float:
        """What is added to the sum of the weights relative to the peak's."""
        return 0.0


@dataclass(frozen=True)
class Softmax(Normalized):
    """w = exp(s), divided by the row's sum."""

    def weigh(self, scores: Tensor, peak: Tensor) -> Tensor:
        return torch.exp(scores - peak)

    def slope(self, scores: Tensor, peak: Tensor) -> Tensor:
        return torch.exp(scores - peak)


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """w = 1 / (1 + exp(-(s + bias))), not normalised.

    bias: None stands for -log(number of keys), with which a row of zero scores sums to about 1. A model that
        meets lengths it was not trained on should hold it at -log(n) of its training. A bias that is learned
        goes into the scores: append it to the queries and a 1 to the keys.

    Source: Ramapuram et al., arXiv:2409.04431.
    """

    bias: float | None = None

    def weigh(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores + self._bias())

    def slope(self, scores: Tensor) -> Tensor:
        w = torch.sigmoid(scores + self._bias())
        return w * (1 - w)

    def resolve(self, keys: int) -> Sigmoid:
        return Sigmoid(-math.log(max(keys, 1))) if self.bias is None else self

    def _bias(self) -> float:
        assert self.bias is not None, "resolve comes first"
        return self.bias


@dataclass(frozen=True)
class Softplus(Normalized):
    """w = softplus(s)^power, divided by the row's sum.

    power: 1 while training; larger powers sharpen the weights without retraining.
    by_length: multiply the scores of a row that sees N keys by log(head_dim) log(N), as published.

    Where softplus underflows it is exp, so that rows of very low scores keep their ratios.

    Source: Gao, Spratling, arXiv:2501.13428 (LSSA; LSSAR with offset 0).
    """

    power: float = 1.0
    by_length: bool = True

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"the power of the softplus weight must be positive, got {self.power}.")

    def weigh(self, scores: Tensor, peak: Tensor) -> Tensor:
        low = peak < math.log(torch.finfo(scores.dtype).eps)
        top = _softplus(torch.where(low, 0, peak))
        w = torch.where(low, torch.exp(torch.where(low, scores - peak, 0)), _softplus(scores) / top)
        return w if self.power == 1 else w**self.power

    def slope(self, scores: Tensor, peak: Tensor) -> Tensor:
        low = peak < math.log(torch.finfo(scores.dtype).eps)
        top = _softplus(torch.where(low, 0, peak))
        e = torch.exp(torch.where(low, scores - peak, 0))
        w = torch.where(low, e, _softplus(scores) / top)
        slope = torch.where(low, e, torch.sigmoid(scores) / top)
        return slope if self.power == 1 else self.power * w ** (self.power - 1) * slope

    def stretch(self, visible: Tensor, head_dim: int) -> Tensor | None:
        return math.log(head_dim) * visible.clamp(min=1).log() if self.by_length else None


@dataclass(frozen=True)
class Power(Normalized):
    """w = s^power, an even power, divided by the row's sum plus eps: large for scores far from 0 on either
    side.

    Source: Zimerman et al., arXiv:2410.09457 (PowerSoftmax).
    """

    power: int = 4
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.power < 2 or self.power % 2:
            raise ValueError(f"the power weight takes an even power, got {self.power}.")
        if not self.eps >= 0:
            raise ValueError(f"eps of the power weight must not be negative, got {self.eps}.")

    def size(self, scores: Tensor) -> Tensor:
        return scores.abs()

    def weigh(self, scores: Tensor, peak: Tensor) -> Tensor:
        return (scores / torch.where(peak == 0, 1, peak)) ** self.power

    def slope(self, scores: Tensor, peak: Tensor) -> Tensor:
        unit = torch.where(peak == 0, 1, peak)
        return self.power * (scores / unit) ** (self.power - 1) / unit

    def floor(self, peak: Tensor) -> Tensor | float:
        # Infinite for a row of zeros, whose weights are then 0.
        return self.eps * peak ** (-self.power) if self.eps else 0.0


def _softplus(x: Tensor) -> Tensor:
    # torch's own softplus is exact to 1e-10 only.
    return -F.logsigmoid(-x)


NAMED: dict[str, Weight] = {
    "softmax": Softmax(),
    "sigmoid": Sigmoid(),
    "softplus": Softplus(),
    "power": Power(),
}
