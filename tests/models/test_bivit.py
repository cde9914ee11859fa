"""A trained transformer as a binary one: what changes, what stays, and that it is the model built binary."""

import pytest
import torch
from torch import nn

from logitkit.attention import BiViTAttention, SoftmaxAttention
from logitkit.layers import BinaryLinear, PackedLinear, pack
from logitkit.models import ViT, binarize_vit

IMAGE = (1, 8, 8)


def kinds(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | BinaryLinear)}


def test_it_is_the_model_built_binary():
    torch.manual_seed(0)
    plain = ViT(IMAGE, depth=2, dim=16)
    made = binarize_vit(plain, mlp_act_bits=1)
    built = ViT(IMAGE, depth=2, dim=16, attention=BiViTAttention, linear=BinaryLinear)
    assert built.state_dict().keys() == made.state_dict().keys()
    built.load_state_dict(made.state_dict())
    x = torch.randn(3, *IMAGE)
    assert torch.equal(built(x), made(x))
    for name, layer in kinds(made).items():
        old = plain.get_submodule(name)
        assert type(layer) is BinaryLinear
        assert torch.equal(layer.weight, old.weight)
        assert torch.equal(layer.scale, old.weight.abs().mean(1))
    assert not any(isinstance(m, BinaryLinear) for m in plain.modules())
    assert type(made.patches) is nn.Conv2d


def test_one_family_and_then_the_other():
    plain = ViT(IMAGE, depth=2, dim=16)
    first = binarize_vit(plain, ["mlp"])
    assert {n.split(".")[2] for n, m in kinds(first).items() if isinstance(m, BinaryLinear)} == {"mlp"}
    assert sum(type(m) is SoftmaxAttention for m in first.modules()) == 2
    both = binarize_vit(first, ["attn"])
    assert all(isinstance(m, BinaryLinear) for m in kinds(both).values())
    x = torch.randn(3, *IMAGE)
    assert torch.equal(both(x), binarize_vit(plain)(x))
    bits = {n: m.act_bits for n, m in kinds(both).items()}
    assert {b for n, b in bits.items() if ".mlp." in n} == {32}
    assert {b for n, b in bits.items() if ".attention." in n} == {1}


def test_torchs_attention_keeps_its_projections():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=False)[0]

    plain = Block()
    made, x = binarize_vit(plain, ["attn"]), torch.randn(2, 5, 8)
    assert torch.equal(made.attn.in_proj.weight, plain.attn.in_proj_weight)
    for m in made.modules():
        if hasattr(m, "binary"):
            m.binary = False
    torch.testing.assert_close(made(x), plain(x))


def test_a_packed_vit():
    model = binarize_vit(ViT(IMAGE, depth=1, dim=64)).eval()
    x = torch.randn(3, *IMAGE)
    made = pack(model)
    assert torch.equal(made(x), model(x))
    assert sum(isinstance(m, PackedLinear) for m in made.modules()) == 4


def test_models_without_the_family():
    with pytest.raises(ValueError, match="family 'attn', got Linear with 0"):
        binarize_vit(nn.Linear(2, 2), ["attn"])
    with pytest.raises(ValueError, match="got \\('head',\\)"):
        binarize_vit(ViT(IMAGE), ["head"])
