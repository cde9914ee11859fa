"""Attention functions inside transformers' models: the same masks, caches and files as its own."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers as hf

from logitkit import attention, catalog
from logitkit.integrations.transformers import register

NAMES = register()
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 2,
}  # fmt: skip
CAUSAL = {
    "llama": lambda: hf.LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=0, eos_token_id=1),
    "gpt-2": lambda: hf.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    ),
}  # fmt: skip
DECODE = [n for n in NAMES if "step" in catalog.get("attention", n.removeprefix("logitkit:")).build.takes]


def causal_model(kind, name):
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(CAUSAL[kind](), attn_implementation=name).double().eval()


def tokens(length=12, batch=2):
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(0))


def test_every_function_is_there():
    assert {n.removeprefix("logitkit:") for n in NAMES} == set(attention.FUNCTIONS)


@pytest.mark.parametrize("kind", CAUSAL)
def test_softmax_is_sdpa(kind):
    ours, theirs = (causal_model(kind, name) for name in ("logitkit:softmax", "sdpa"))
    padded = torch.ones(2, 12, dtype=torch.long)
    padded[0, :4] = 0
    for mask in (None, padded):
        found, expected = (m(tokens(), attention_mask=mask, labels=tokens()) for m in (ours, theirs))
        seen = padded.bool() if mask is not None else torch.ones(2, 12, dtype=torch.bool)
        torch.testing.assert_close(found.logits[seen], expected.logits[seen])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models(kind, name):
    """No later token, no padding has an influence; gradients reach every weight."""
    model, x = causal_model(kind, name), tokens()
    logits = model(x).logits
    later = x.clone()
    later[:, 8:] = 5
    torch.testing.assert_close(model(later).logits[:, :8], logits[:, :8])
    left = torch.cat([torch.full((2, 3), 2), x], 1)
    mask = (torch.arange(15) >= 3).long().expand(2, 15)
    positions = (torch.arange(15) - 3).clamp(min=0).expand(2, 15)
    found = model(left, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(found, logits)
    model.train()
    model(x, labels=x).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert all((g != 0).any() for n, g in grads.items() if "bias" not in n)


@pytest.mark.parametrize("name", DECODE)
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_cache_changes_nothing(kind, name):
    model, x = causal_model(kind, name), tokens()
    found = [model.generate(x, max_new_tokens=8, do_sample=False, use_cache=c) for c in (True, False)]
    assert found[0].shape[1] > 12
    torch.testing.assert_close(found[0], found[1])
    cached = model(x[:, :7], use_cache=True)
    more = model(x[:, 7:], past_key_values=cached.past_key_values)  # several queries after a cache
    torch.testing.assert_close(more.logits, model(x).logits[:, 7:])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_saved_and_read_again(name, tmp_path):
    model = causal_model("llama", name)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name).double().eval()
    torch.testing.assert_close(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("name", NAMES)
def test_bert(name):
    torch.manual_seed(0)
    model = hf.BertForMaskedLM._from_config(hf.BertConfig(**SIZES), attn_implementation=name).double().eval()
    x = tokens()
    logits = model(x).logits
    mask = (torch.arange(15) < 12).long().expand(2, 15)
    padded = torch.cat([x, torch.full((2, 3), 2)], 1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, :12], logits)
    first = x.clone()
    first[:, 1:] = 5
    assert (model(first).logits[:, 0] - logits[:, 0]).abs().max() > 1e-6  # sees what comes later
    if name == "logitkit:softmax":
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(x).logits, logits)
    model.train()
    model(x, labels=x).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_vit(name):
    torch.manual_seed(0)
    sizes = {k: SIZES[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = hf.ViTConfig(**sizes, num_attention_heads=4, image_size=16, patch_size=4, num_labels=3)
    model = hf.ViTForImageClassification._from_config(config, attn_implementation=name).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    logits = model(images).logits
    torch.testing.assert_close(model(images[1:]).logits, logits[1:])
    if name == "logitkit:softmax":
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(images).logits, logits)
    model.train()
    model(images, labels=torch.tensor([0, 2])).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_length_of_the_sigmoid():
    """From the configuration, or as said."""
    model, x = causal_model("llama", "logitkit:sigmoid"), tokens()
    found = model(x).logits
    register(n_ref=32)
    torch.testing.assert_close(model(x).logits, found)
    register(n_ref=8)
    assert (model(x).logits - found).abs().max() > 1e-6
    register()
    with pytest.raises(ValueError, match="n_ref must be at least 1"):
        register(n_ref=0)


def test_what_a_function_cannot_do_is_said():
    attend = hf.AttentionInterface()["logitkit:linear"]
    q = torch.randn(1, 2, 4, 8)
    module = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"does not know softcap"):
        attend(module, q, q, q, None, softcap=3.0)
    with pytest.raises(ValueError, match=r"does not know output_attentions"):
        attend(module, q, q, q, None, output_attentions=True)
    window = torch.ones(4, 4, dtype=torch.bool).tril().triu(-1)[None, None]
    with pytest.raises(ValueError, match="masks of keys"):
        attend(module, q, q, q, window)
    with pytest.raises(ValueError, match="no scale"):
        attend(module, q, q, q, None, scaling=3.0)
