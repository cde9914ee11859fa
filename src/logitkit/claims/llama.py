"""A tiny Llama with random weights, for claims about causal language models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitkit.errors import MissingExtra


def tiny_llama(vocabulary: int, seed: int, width: int = 64, layers: int = 2) -> Any:
    """A `LlamaForCausalLM` of 4 attention heads, in training mode. Raises `MissingExtra`."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingExtra("transformers", "hf", "this claim") from None
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).train()


@torch.no_grad()
def predict(model: Any, tokens: Tensor) -> Tensor:
    """(batch, time, vocabulary) logits in evaluation mode."""
    model.eval()
    logits = model(input_ids=tokens).logits
    model.train()
    return logits


def exact_match(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> float:
    """Percent of sequences all of whose labels are the most likely tokens."""
    right = (logits.argmax(dim=-1) == labels) | (labels == ignore_index)
    return 100 * right.all(dim=1).double().mean().item()
