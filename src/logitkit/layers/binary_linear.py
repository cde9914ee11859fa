"""Linear layers of one bit a weight, and their packed form."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.layers.base import check_tokens, check_whole
from logitkit.ops import (
    Signs,
    binary_matmul,
    check_numbers,
    pack_signs,
    straight_signs,
    unpack_signs,
    values_visible,
)
from logitkit.registry import Choice, part

ActBits = Literal[1, 32]

# Products of which packed signs are faster than float32.
PAYS = 128**3


@part(
    "binary_linear",
    "layers",
    title="BiViT: Extremely Compressed Binary Vision Transformer: linear layers",
    paper="arXiv:2211.07091",
    number=49,
    companion_of="bivit",
    replaces="linear",
    tasks=("classification", "binary", "regression", "multilabel", "sequence"),
    search_space={"act_bits": Choice(1, 32), "learn_scale": Choice(True, False)},
    no_gradcheck="signs pass their gradient straight through",
    no_half="rounding turns the signs of numbers near 0",
)
class BinaryLinear(nn.Module):
    """A linear layer of one bit a weight, for models that are to be 32 times smaller (`packed`), and on a CPU
    faster where inputs are signs too.

    Equation: y_o = s_o sum_i sign(W_oi - mean_i W_oi) x_i + b_o, with sign(x_i) in the place of x_i for
    act_bits=1, and sign(0) = 1. A sign passes its gradient on where its argument lies within (-1, 1).

    Shapes: x (..., in_features) -> (..., out_features), unitless.

    Defaults: signs of inputs too; the paper's MLPs keep real inputs, act_bits=32. s is learned and starts at
    mean_i |W_oi| of the starting weights, those of `nn.Linear`; learn_scale=False computes it anew in every
    call and holds it constant in the gradient, as XNOR-Net does. `binary` is True; as False, which stages of
    training make it, the layer is W x + b.

    Raises: ValueError for sizes below 1, act_bits other than 1 and 32, inputs of another width or dtype, or
    none; NaN where inputs become signs.

    Source: He et al., ICCV 2023, arXiv:2211.07091, its parameterised weight scales, and the authors'
    `BinaryLinear_adapscaling`; Rastegari et al., arXiv:1603.05279, for s without learning.

    Not for: the first and the last layer of a model; inputs of one sign with act_bits=1, such as those behind
    a ReLU.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        act_bits: ActBits = 1,
        learn_scale: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check(in_features, out_features, act_bits)
        self.in_features, self.out_features, self.act_bits = in_features, out_features, act_bits
        self.binary = True
        start = nn.Linear(in_features, out_features, bias=bias)
        self.weight, self.bias = start.weight, start.bias
        self.scale = nn.Parameter(torch.empty(out_features)) if learn_scale else None
        self.reset_scale()

    @classmethod
    def of(cls, layer: nn.Linear, act_bits: ActBits = 1, learn_scale: bool = True) -> BinaryLinear:
        """The binary layer that starts from the weights of `layer`, which are copied."""
        made = cls(layer.in_features, layer.out_features, act_bits, learn_scale, bias=layer.bias is not None)
        made.load_state_dict(layer.state_dict(), strict=False)
        made.reset_scale()
        return made.to(layer.weight).train(layer.training)

    @torch.no_grad()
    def reset_scale(self) -> None:
        """Start s from the weights as they are."""
        if self.scale is not None:
            self.scale.copy_(self.weight.abs().mean(1))

    def scales(self) -> Float[Tensor, " out"]:
        """s."""
        return self.weight.abs().mean(1).detach() if self.scale is None else self.scale

    def centred(self) -> Float[Tensor, "out in"]:
        """The weights whose signs count."""
        return self.weight - self.weight.mean(1, keepdim=True)

    def packed(self) -> PackedLinear:
        """The layer with one bit a weight, for evaluation."""
        made = PackedLinear(self.in_features, self.out_features, self.act_bits, bias=self.bias is not None)
        made.words, made.scale = pack_signs(self.centred()).words, self.scales().detach().clone()
        made.bias = None if self.bias is None else self.bias.detach().clone()
        return made

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        check_tokens(x, self.in_features)
        if not self.binary:
            return F.linear(x, self.weight, self.bias)
        if self.act_bits == 1:
            check_numbers(x, "x")
            if _by_bits(x, self.out_features):
                return _scaled(_bit_product(x, pack_signs(self.centred())), self.scales(), self.bias)
            x = straight_signs(x)
        return _scaled(F.linear(x, straight_signs(self.centred())), self.scales(), self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, act_bits={self.act_bits},"
            f" learn_scale={self.scale is not None}, bias={self.bias is not None}"
        )


class PackedLinear(nn.Module):
    """A trained `BinaryLinear` with 64 weights in a word: the same numbers, bit for bit in float32, without a
    gradient. `BinaryLinear.packed` and `pack` make it.

    Shapes: x (..., in_features) -> (..., out_features); words (out_features, ceil(in_features / 64)).
    Raises: ValueError as `BinaryLinear` does.
    """

    words: Int[Tensor, "out words"]
    scale: Float[Tensor, " out"]
    bias: Float[Tensor, " out"] | None

    def __init__(
        self, in_features: int, out_features: int, act_bits: ActBits = 1, *, bias: bool = True
    ) -> None:
        super().__init__()
        _check(in_features, out_features, act_bits)
        self.in_features, self.out_features, self.act_bits = in_features, out_features, act_bits
        words = math.ceil(in_features / 64)
        self.register_buffer("words", torch.zeros(out_features, words, dtype=torch.int64))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        check_tokens(x, self.in_features)
        weight = Signs(self.words, self.in_features)
        if self.act_bits == 1:
            check_numbers(x, "x")
            return _scaled(_bit_product(x, weight), self.scale, self.bias)
        return _scaled(F.linear(x, unpack_signs(weight).to(x.dtype)), self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, act_bits={self.act_bits}"


def pack(model: nn.Module) -> nn.Module:
    """A copy of `model` for evaluation, with every `BinaryLinear` packed.

    Raises: ValueError for a model without binary layers, or one of which some are not binary now.
    """
    made = copy.deepcopy(model).eval()
    found = [(name, m) for name, m in made.named_modules() if isinstance(m, BinaryLinear)]
    if not found or not all(m.binary for _, m in found):
        raise ValueError(
            f"expected a model whose binary layers are binary, got {type(model).__name__} with"
            f" {sum(m.binary for _, m in found)} of {len(found)}."
        )
    if isinstance(made, BinaryLinear):
        return made.packed().eval()
    for name, layer in found:
        made.set_submodule(name, layer.packed().eval())
    return made


def storage_bits(module: nn.Module) -> int:
    """The size of what `module` holds, parameters and buffers, in bits: scales, biases and the padding of
    words count, and a tensor that is shared counts once."""
    held = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(8 * t.numel() * t.element_size() for t in held.values())


def _check(in_features: int, out_features: int, act_bits: int) -> None:
    check_whole(in_features=in_features, out_features=out_features)
    if act_bits not in (1, 32):
        raise ValueError(f"act_bits must be 1 or 32, got {act_bits!r}.")


def _by_bits(x: Tensor, out_features: int) -> bool:
    """Whether the product can be one of packed signs, which has no gradient, and pays as such."""
    many = x.numel() * out_features >= PAYS
    return many and values_visible(x) and not torch.is_grad_enabled()


def _bit_product(x: Tensor, weight: Signs) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return binary_matmul(rows, weight).view(*x.shape[:-1], len(weight.words)).to(x.dtype)


def _scaled(product: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return product * scale if bias is None else torch.addcmul(bias, product, scale)
