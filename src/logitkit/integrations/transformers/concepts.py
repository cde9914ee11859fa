"""What a vision-language model of transformers says of concepts: the similarities that bottlenecks read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from logitkit.errors import InputError


@torch.no_grad()
def concept_similarities(
    model: Any, images: Sequence[Any], concepts: Sequence[str], processor: Any = None, batch_size: int = 64
) -> Float[Tensor, "images concepts"]:
    """CLIP's logits of every image for the text of every concept: 100 cosines or so, the model's own scale.

        s = concept_similarities("openai/clip-vit-base-patch32", images, ["striped", "has wings"])
        logitkit.compare(data=(s, labels), model="linear", head=["linear", "sparse_cbm"])

    model: a `CLIPModel` with its `processor`, or a name or folder, from which both are loaded. images: what
    the processor takes, such as PIL images or (channels, height, width) arrays; read `batch_size` at a time.
    The model is used without dropout or a gradient, on its own device; the result is on the CPU.

    Raises: InputError for no images, no concepts, or a model without a processor.
    """
    if not len(images) or not len(concepts):
        raise InputError(
            f"expected at least one image and one concept, got {len(images)} and {len(concepts)}."
        )
    if isinstance(model, str):
        processor = CLIPProcessor.from_pretrained(model) if processor is None else processor
        model = CLIPModel.from_pretrained(model)
    if processor is None:
        raise InputError("a model that is no name needs its processor: pass processor=CLIPProcessor(...).")
    training = model.training
    model.eval()
    texts = processor(text=list(concepts), return_tensors="pt", padding=True, truncation=True).to(
        model.device
    )
    found = []
    for start in range(0, len(images), batch_size):
        some = processor(images=list(images[start : start + batch_size]), return_tensors="pt")
        found.append(
            model(**texts, pixel_values=some["pixel_values"].to(model.device)).logits_per_image.cpu()
        )
    model.train(training)
    return torch.cat(found).float()
