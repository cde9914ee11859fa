"""A training step of a small Llama with a large vocabulary, with and without its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from logitkit.bench.base import Arms, Case, peer
from logitkit.ops import linear_cross_entropy

PEERS = ("transformers",)
NOTE = """\
What `logitkit.integrations.transformers.patch_loss` changes in a step: "unpatched" is the model's own forward
and loss, "patched" its body and the cross-entropy of its head's layer, which is what the patched model runs.
The embedding of 131,072 words and the head are 128 MiB each, the matrix of logits of 2,048 tokens 1 GiB."""


def _patched(model: Any, tokens: Tensor) -> Tensor:
    """The loss as the patched model computes it; the patch itself lies in a layer above this one."""
    hidden = model.model(input_ids=tokens).last_hidden_state
    labels = F.pad(tokens, (0, 1), value=-100)[..., 1:]
    return linear_cross_entropy(hidden, model.lm_head.weight, labels)


def _arms(small: bool) -> Arms:
    transformers = peer("transformers")
    assert transformers is not None
    words, tokens, width = (4096, 300, 16) if small else (131_072, 2048, 256)
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokens,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).train()
    text = torch.randint(words, (1, tokens))
    losses: dict[str, float] = {}

    def step(name: str) -> None:
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=text, labels=text).loss if name == "unpatched" else _patched(model, text)
        loss.backward()
        losses[name] = float(loss.detach())

    return Arms(
        {"patched": lambda: step("patched"), "unpatched": lambda: step("unpatched")},
        leaves=tuple(model.parameters()),
        values=lambda: {"loss, relative difference": abs(losses["patched"] / losses["unpatched"] - 1)},
    )


def cases() -> list[Case]:
    if peer("transformers") is None:
        return []
    name = "Llama, 2 layers of 256, V=131072, 2048 tokens, float32"
    return [Case(name, _arms, memory=["patched", "unpatched"], rounds=3)]
