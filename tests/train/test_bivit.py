"""Cross-layer binarisation: which layers are binary when, and where scales start."""

import pytest
import torch

from logitkit import data
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.errors import InputError
from logitkit.train import CrossLayerBinarization

RECIPE = {
    "data": "shapes:n=160", "model": "vit(depth=1,dim=16)", "layers": "binary_linear", "attention": "bivit",
    "batch_size": 16, "steps": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes():
    return Prepared.of(data.split(data.load(RECIPE["data"]), 0))


@pytest.mark.parametrize("schedule", [("mlp", "attn"), ("attn", "mlp")])
def test_what_is_binary_when(shapes, schedule):
    trainer = Trainer(Recipe.of(**RECIPE, algorithm=f"bivit(schedule={schedule})"), shapes)
    seen, step = [], trainer.algorithm.step
    block = trainer.network.backbone.blocks[0]
    late = block.attention.in_proj if schedule[1] == "attn" else block.mlp[0]
    scales = []

    def watched(trainer, batch):
        before = late.weight.detach().abs().mean(1)
        untouched = late.scale.detach().clone()
        loss = step(trainer, batch)
        seen.append({n for n, m in block.named_modules() if getattr(m, "binary", False)})
        scales.append((before, untouched))
        return loss

    starts = {"mlp": {"mlp.0", "mlp.2"}, "attn": {"attention", "attention.in_proj", "attention.out_proj"}}
    trainer.algorithm.step = watched
    initial = late.scale.detach().clone()
    trainer.run()
    assert seen == [starts[schedule[0]]] * 4 + [starts["mlp"] | starts["attn"]] * 4
    assert all(torch.equal(s, initial) for _, s in scales[:5])  # not trained in full precision
    # one step of AdamW away from where the weights were when the layer became binary
    rate = 2 * trainer.recipe.lr
    assert (scales[5][1] - scales[4][0]).abs().max() <= rate
    assert (scales[5][1] - initial).abs().max() > 0


def test_it_names_what_is_missing(shapes):
    for layers, message in (("standard", "'mlp': 0"), ("binary_linear", "both stages")):
        with pytest.raises((InputError, ValueError), match=message):
            Trainer(Recipe.of(**{**RECIPE, "layers": layers}, patience=1, algorithm="bivit"), shapes).run()
    with pytest.raises(ValueError, match="got \\('mlp',\\)"):
        CrossLayerBinarization(("mlp",))
