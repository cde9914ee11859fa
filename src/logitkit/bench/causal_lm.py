"""A training step of a small Llama with a large vocabulary, with and without its logits."""

from __future__ import annotations

import torch

from logitkit.bench.base import Arms, Case, peer

PEERS = ("transformers",)
NOTE = """\
The same model before and after `logitkit.integrations.transformers.patch_loss`.
The embedding of 131,072 words and the head are 128 MiB each, the matrix of logits of 2,048 tokens 1 GiB."""


def _arms(small: bool) -> Arms:
    transformers = peer("transformers")
    assert transformers is not None
    from logitkit.integrations.transformers import patch_loss, unpatch_loss

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
        (patch_loss if name == "patched" else unpatch_loss)(model)
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=text, labels=text).loss
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
