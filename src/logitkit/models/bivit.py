"""A trained vision transformer as a binary one."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn

from logitkit.attention import BiViTAttention, SoftmaxAttention
from logitkit.layers import BinaryLinear
from logitkit.layers.binary_linear import ActBits

FAMILIES = ("mlp", "attn")


def binarize_vit(
    model: nn.Module, families: Collection[str] = FAMILIES, *, mlp_act_bits: ActBits = 32
) -> nn.Module:
    """A copy of a transformer with binary layers that start from its weights, to be trained on.

    families: "mlp": linear layers in modules called `mlp`. "attn": softmax attention, of logitkit or
        `nn.MultiheadAttention(batch_first=True)`, becomes `BiViTAttention` with binary projections. The
        paper binarises one family, trains, and then the other: two calls.
    mlp_act_bits: 32, the authors' choice, keeps the inputs of an MLP real; 1 takes their signs.

    Everything else, such as the embedding of patches and the head, stays as it is. For deployment, see
    `layers.pack`.

    Raises: ValueError for another family, or one that the model does not have.

    Source: He et al., ICCV 2023, arXiv:2211.07091, and the authors' `BiMlp_adapscaling_1w32a` and
    `BiAttention_SAB`.
    """
    if not families or set(families) - set(FAMILIES):
        raise ValueError(f"families must be some of {FAMILIES}, got {tuple(families)}.")
    made = copy.deepcopy(model)
    for family in families:
        new = _mlps(made, mlp_act_bits) if family == "mlp" else _attentions(made)
        if not new:
            raise ValueError(
                f"expected a model with layers of the family {family!r}, got {type(model).__name__} with 0."
            )
        for name, module in new.items():
            made.set_submodule(name, module)
    return made


def _mlps(model: nn.Module, act_bits: ActBits) -> dict[str, nn.Module]:
    linear = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    return {name: BinaryLinear.of(m, act_bits) for name, m in linear.items() if "mlp" in name.split(".")}


def _attentions(model: nn.Module) -> dict[str, nn.Module]:
    new: dict[str, nn.Module] = {}
    for name, old in model.named_modules():
        if type(old) is SoftmaxAttention:
            attention = BiViTAttention(
                old.embed_dim, old.num_heads, old.dropout, old.in_proj.bias is not None,
                num_kv_heads=old.num_kv_heads, rope=old.rope, qk_norm=old.q_norm is not None,
            )  # fmt: skip
            attention.load_state_dict(old.state_dict())
        elif isinstance(old, nn.MultiheadAttention) and old.batch_first:
            attention = BiViTAttention(
                old.embed_dim, old.num_heads, old.dropout, old.in_proj_bias is not None
            )
            attention.load_torch(old)
        else:
            continue
        attention.to(old.out_proj.weight).train(old.training)
        for place, projection in list(attention.named_children()):
            if isinstance(projection, nn.Linear):
                attention.set_submodule(place, BinaryLinear.of(projection))
        new[name] = attention
    return new
