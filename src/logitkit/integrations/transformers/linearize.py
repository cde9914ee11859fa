"""LoLCATs on models of transformers: softmax gives way to linear attention with a window."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from logitkit.attention import Hedgehog
from logitkit.errors import InputError

NAME = "logitkit:lolcats"


def linearize(model: Any, window: int = 64) -> Any:
    """A copy of a causal language model whose attention is that of `attention.LolcatsAttention`.

        model = linearize(AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B"))
        attention_transfer(model, batches, steps=1000)
        lora_finetune(model, batches, loss, steps=1000)

    For models whose attention has q_proj, k_proj, v_proj and o_proj, as Llama, Mistral and Qwen: each gets a
    `Hedgehog`, which the two functions of `logitkit.attention` train. batches are input_ids. Rotary positions
    and grouped-query attention work as before; with a cache results are the same, but keys are kept, where
    `LolcatsAttention.step` has a state of fixed size.

    Raises: InputError for a model without such attention; ValueError in the forward of one that pads, or asks
    for anything but causal attention, its scale, or its weights.
    """
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if all(hasattr(m, f"{x}_proj") for x in "qkvo")]
    if not layers:
        raise InputError("expected attention with q_proj, k_proj, v_proj and o_proj, got 0 such layers.")
    for layer in layers:
        heads = layer.q_proj.out_features // layer.head_dim
        layer.learned = Hedgehog(heads, layer.head_dim, window).to(layer.q_proj.weight)
    model.set_attn_implementation(NAME)
    return model


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention interface."""
    learned = getattr(module, "learned", None)
    if not isinstance(learned, Hedgehog):
        raise InputError(f"{NAME} is for models that linearize has made: {type(module).__name__} has 0 maps.")
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is not None:
        key, value = key[:, :, : attention_mask.shape[-1]], value[:, :, : attention_mask.shape[-1]]
        keys = key.shape[2]
        triangle = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if attention_mask.dtype != torch.bool or not torch.equal(
            attention_mask, triangle.expand_as(attention_mask)
        ):
            raise InputError(f"{NAME} takes no padding, nor another mask than the causal one.")
    own = query.shape[-1] ** -0.5
    if dropout or given.get("output_attentions") or not math.isclose(scaling or own, own):
        raise InputError(
            f"{NAME} has no dropout, weights or scale other than 1 / sqrt(head_dim), got dropout {dropout},"
            f" scale {scaling}."
        )
    # Queries after a cache are the last ones.
    mixed = learned(F.pad(query, (0, 0, keys - queries, 0)), key, value)
    return mixed[:, :, -queries:].transpose(1, 2).contiguous(), None
