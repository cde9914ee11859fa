"""Attention functions as `attn_implementation` of models with transformers' attention interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from logitkit import catalog
from logitkit.attention import FUNCTIONS
from logitkit.errors import InputError

UNKNOWN = ("softcap", "position_bias", "s_aux", "head_mask")
"""What some models pass to change the weights of softmax attention."""


def register(n_ref: int | None = None) -> tuple[str, ...]:
    """Make every attention function of logitkit an `attn_implementation`, and return their names.

        register()
        model = AutoModelForCausalLM.from_config(config, attn_implementation="logitkit:sigmoid")

    The names are `logitkit:` and what `logitkit list attention` calls the part, for those that have nothing
    to learn of their own. Masks, padding, caches, dropout and grouped-query attention work as with "sdpa". A
    model does not save its implementation: give it again to `from_pretrained`. May be called again.

    n_ref: the number of keys that the bias -log n of sigmoid attention stands for, and the most there can be
        for cosFormer; None takes `max_position_embeddings` of the model's configuration, and the number of
        keys where it has none.

    Pretrained weights were trained for softmax: with another function a model has to be trained anew.

    Raises: ValueError in the forward of a model that asks for what the function cannot do: attention weights,
    caps, position biases or sinks of the scores, a scale or a mask that it does not take.
    """
    if n_ref is not None and n_ref < 1:
        raise InputError(f"n_ref must be at least 1, got {n_ref}.")
    names = tuple(f"logitkit:{name}" for name in FUNCTIONS)
    for name, full in zip(FUNCTIONS, names, strict=True):
        AttentionInterface.register(full, _implementation(name, n_ref))
        AttentionMaskInterface.register(full, sdpa_mask)
    return names


def _implementation(name: str, n_ref: int | None) -> Callable[..., tuple[Tensor, None]]:
    """The function `name` with the signature of transformers' attention interface."""
    function = FUNCTIONS[name]
    part: Any = catalog.get("attention", name).build
    any_mask = "mask" in part.takes

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **given: Any,
    ) -> tuple[Tensor, None]:
        asked = [what for what in UNKNOWN if given.get(what) is not None]
        if given.get("output_attentions"):
            asked.append("output_attentions")
        if asked:
            raise InputError(
                f"logitkit:{name} does not know {' and '.join(asked)}, which the model asks for."
            )
        queries = query.shape[2]
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and attention_mask is None and queries > 1
        if causal:  # of a cache that is not full yet
            key, value = key[:, :, :queries], value[:, :, :queries]
        if attention_mask is not None:
            attention_mask = attention_mask[..., : key.shape[2]]
        if not any_mask:
            query, attention_mask, causal = _of_keys(query, key, attention_mask, causal, name)
        own = query.shape[-1] ** -0.5
        scale = None if scaling is None or math.isclose(scaling, own) else scaling
        options: dict[str, float] = {}
        if name == "sigmoid":
            options["bias"] = -math.log(_length(module, key, n_ref))
        elif name == "cosformer":
            options["max_len"] = max(_length(module, key, n_ref), key.shape[2])
            # It counts positions from the first query: those of a cache come after the keys before them.
            query = F.pad(query, (0, 0, max(key.shape[2] - query.shape[2], 0), 0))
        mixed = function(
            query, key, value, attention_mask, dropout_p=dropout, is_causal=causal, scale=scale,
            enable_gqa=True, **options,
        )  # fmt: skip
        return mixed[:, :, -queries:].transpose(1, 2).contiguous(), None

    return forward


def _of_keys(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, name: str
) -> tuple[Tensor, Tensor | None, bool]:
    """The same attention with a mask that is the same for every query, perhaps causal, and perhaps with
    queries in front whose results are not asked for, so that there are as many as keys."""
    if mask is None or mask.shape[2] == 1:
        return query, mask, causal
    queries, keys = mask.shape[2:]
    seen = mask[:, :, -1:]
    triangle = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    if mask.dtype == torch.bool and torch.equal(mask, seen.expand_as(mask)):
        return query, seen, False
    if mask.dtype == torch.bool and torch.equal(mask, seen & triangle):
        return F.pad(query, (0, 0, keys - queries, 0)), seen, True
    raise InputError(f"logitkit:{name} takes masks of keys, causal or not, and the model has another.")


def _length(module: nn.Module, key: Tensor, n_ref: int | None) -> int:
    """The number of keys that a model is made for."""
    if n_ref is not None:
        return n_ref
    most = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return key.shape[2] if most is None else int(most)
