"""A linearised Llama: itself under a wide window, causal, with a cache, and trained in two stages."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")

import transformers as hf

from logitkit.attention import Hedgehog, attention_transfer, lora_finetune
from logitkit.integrations.transformers import linearize


def llama(**settings):
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        **settings,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config).double().eval()


def tokens(length=20, batch=2, seed=0):
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_window_over_everything_is_the_model():
    model, x = llama(), tokens()
    made = linearize(model, window=20)
    for m in made.modules():
        if isinstance(m, Hedgehog):
            m.window_factor.data.fill_(50.0)
    torch.testing.assert_close(made(x).logits, model(x).logits)
    assert (linearize(model, window=4)(x).logits - model(x).logits).abs().max() > 1e-3


def test_causal_and_with_a_cache():
    made, x = linearize(llama(), window=4), tokens()
    logits = made(x).logits
    later = x.clone()
    later[:, 12:] = 5
    torch.testing.assert_close(made(later).logits[:, :12], logits[:, :12])
    found = [made.generate(x, max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False)]
    torch.testing.assert_close(found[0], found[1])
    cached = made(x[:, :9], use_cache=True)
    more = made(x[:, 9:], past_key_values=cached.past_key_values)
    torch.testing.assert_close(more.logits, logits[:, 9:])


def test_both_stages():
    made = linearize(llama(), window=4)
    batches = [tokens(seed=s) for s in range(2)]
    errors = attention_transfer(made, batches, steps=30)
    assert errors[-1] < 0.7 * errors[0]

    def loss(model, x):
        return F.cross_entropy(model(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    before = {k: v.clone() for k, v in made.state_dict().items()}
    losses = lora_finetune(made, batches, loss, steps=10, lr=1e-2, rank=2)
    assert losses[-1] < losses[0]
    changed = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[-2] for k in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_what_it_cannot_do():
    made, x = linearize(llama(), window=4), tokens()
    padding = torch.ones_like(x)
    padding[0, :3] = 0
    with pytest.raises(ValueError, match="no padding"):
        made(x, attention_mask=padding)
    with pytest.raises(ValueError, match="q_proj"):
        linearize(torch.nn.Linear(2, 2))
