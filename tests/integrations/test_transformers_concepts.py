"""Similarities of images to concepts by a tiny CLIP, against cosines of its own embeddings."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import transformers as hf

import logitkit
from logitkit.errors import InputError
from logitkit.integrations.transformers import concept_similarities

WORDS = ["red", "blue", "striped", "round"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A processor whose tokens are letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(set("".join(WORDS)))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    size = {"height": 16, "width": 16}
    images = hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    return hf.CLIPProcessor(image_processor=images, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**small, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 12, **ends}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    return hf.CLIPModel(config)


def images(n=5):
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def direction(output):
    x = output if isinstance(output, torch.Tensor) else output.pooler_output
    return x / x.norm(dim=-1, keepdim=True)


def test_similarities_are_scaled_cosines_of_each_image_and_text(model, processor):
    model.train()
    found = concept_similarities(model, images(), WORDS, processor, batch_size=2)
    assert model.training
    assert found.shape == (5, 4)
    assert not found.requires_grad
    model.eval()
    for i, image in enumerate(images()):
        seen = direction(model.get_image_features(**processor(images=image, return_tensors="pt")))
        for k, word in enumerate(WORDS):
            read = direction(model.get_text_features(**processor(text=[word], return_tensors="pt")))
            expected = model.logit_scale.exp() * (seen * read).sum()
            assert found[i, k].item() == pytest.approx(expected.item(), abs=1e-4)


def test_by_name_and_on_to_a_comparison(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    pictures = images(60)
    s = concept_similarities(str(tmp_path / "clip"), pictures, WORDS)
    torch.testing.assert_close(s, concept_similarities(model, pictures, WORDS, processor))
    y = (s[:, 0] > s[:, 0].median()).long()
    result = logitkit.compare(
        data=(s, y), model="linear", head=["linear", "sparse_cbm"], epochs=2, seeds=1, jobs=1,
        folder=tmp_path / "runs",
    )  # fmt: skip
    assert len(result.records) == 2


def test_what_is_missing_is_said(model, processor):
    with pytest.raises(InputError, match="got 0 and 4"):
        concept_similarities(model, [], WORDS, processor)
    with pytest.raises(InputError, match="needs its processor"):
        concept_similarities(model, images(1), WORDS)
