"""001: a Gumbel term on concepts makes a better concept bottleneck than a contrastive or an l1 term; concepts
alone find classes better than the class names do.

Set beforehand: rendered shapes, 64 concepts of which some are true, a small vision-language model trained
contrastively, seeds 0-4, all thresholds.
Left open, and chosen before the first run:
- Images are those of `attributes`, 24 pixels, with 17 true concepts, the words for 4 colours, 3 fills and 10
  shapes, and 47 distractors that no caption has.
- The vision-language model: `cnn` of width 16 and a vector for each word, both mapped to 32 dimensions;
  a caption's or class name's text is the mean of its words. It learns from 3000 images of 60 other draws of
  combinations with their captions, 300 batches of 64, InfoNCE with a learned scale, AdamW at 2e-3, and is
  then frozen. Distractors keep the vectors they started with.
- Bottlenecks learn from its scaled similarities on 1200 images of 20 classes, 600 are for testing: 600
  batches of 64, the number of concepts, as the contrastive term needs; AdamW, the best of 3 rates by
  validation accuracy for each.
- The zero-shot class is the one whose name is most similar. Hoyer sparsity of the concept scores is reported
  as further arms.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from logitkit import data
from logitkit.bottleneck.sparse_cbm import MODES, SparseCBM, concept_matrix_search, hoyer_sparsity
from logitkit.claims.base import Check, Trial, claim, difference
from logitkit.models import CNN
from logitkit.ops.sphere import cosine

CONCEPTS, CLASSES, BATCH, DIM = 64, 20, 64, 32
RATES = (1e-3, 3e-3, 1e-2)


@claim(
    "bottleneck",
    "sparse_cbm",
    statement="With a Gumbel term a concept bottleneck is more accurate than with a contrastive and no less"
    " than with an l1 term; without training, concepts find the class better than the class name does.",
    seeds=range(5),
    note="The three terms end alike (89 to 90 %, Hoyer sparsity 0.23 to 0.24): two linear layers without bias"
    " can be any linear classifier. Class names here are just the sum of words that are concepts, so that the"
    " 47 distractors only add noise to the search.",
)
def sparse_cbm(trial: Trial) -> list[Check]:
    runs = [compared(trial, seed) for seed in trial.seeds]
    of = {name: [run[name] for run in runs] for name in runs[0]}
    sparsity = {f"sparsity_{mode}": of[f"sparsity_{mode}"] for mode in MODES}
    return [
        difference("test accuracy, points: Gumbel minus contrastive bottleneck", ">=", 2.0,
                   gumbel=of["gumbel"], contrastive=of["contrastive"], **sparsity),
        difference("test accuracy, points: Gumbel minus l1 bottleneck", ">=", 0.0,
                   gumbel=of["gumbel"], l1=of["l1"]),
        difference("test accuracy, points: concept matrix search minus class names", ">=", 3.0,
                   search=of["search"], zero_shot=of["zero_shot"], cubed=of["cubed"]),
    ]  # fmt: skip


class VisionLanguage(nn.Module):
    """Images and sets of words to directions."""

    def __init__(self) -> None:
        super().__init__()
        self.image = CNN((3, 24, 24), width=16)
        self.map = nn.Linear(self.image.out_features, DIM)
        self.words = nn.Parameter(torch.randn(CONCEPTS, DIM))
        self.log_scale = nn.Parameter(torch.tensor(2.65))

    def similarities(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines of images and texts, given as weights of words (texts, concepts)."""
        return cosine(self.map(self.image(images)), texts @ self.words)


def drawn(trial: Trial, n: int, classes: int, seed: int) -> data.Dataset:
    return data.load(f"attributes:n={trial.few(n, n // 4)},classes={classes},size=24+seed={seed}")


def captions(attributes: Tensor) -> Tensor:
    """Weights of the 64 words: a third for each of an image's three attributes."""
    return F.pad(attributes / 3, (0, CONCEPTS - attributes.shape[1]))


def vision_language(trial: Trial, seed: int) -> VisionLanguage:
    """Trained on images and captions, and frozen."""
    source = drawn(trial, 3000, 60, seed + 1000)
    images, texts = torch.as_tensor(source.x), captions(source.extras["attributes"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionLanguage()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    generator = Generator().manual_seed(seed)
    for _ in range(trial.few(300, 5)):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        scores = model.log_scale.exp() * model.similarities(images[rows], texts[rows])
        target = torch.arange(BATCH)
        optimizer.zero_grad()
        (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def compared(trial: Trial, seed: int) -> dict[str, float]:
    """Accuracies in percent, and Hoyer sparsities of concept scores."""
    model, source = vision_language(trial, seed), drawn(trial, 2400, CLASSES, seed)
    images, labels = torch.as_tensor(source.x), source.y
    cosines = model.similarities(images, torch.eye(CONCEPTS))
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    train, val, test = order.split([len(order) // 2, len(order) // 4, len(order) - 3 * (len(order) // 4)])
    first = torch.stack([(labels == k).nonzero()[0, 0] for k in range(CLASSES)])
    names = captions(source.extras["attributes"][first])
    texts = cosine(names @ model.words, model.words)

    def percent(scores: Tensor, rows: Tensor) -> float:
        return 100 * (scores.argmax(dim=1) == labels[rows]).double().mean().item()

    found = {
        "zero_shot": percent(model.similarities(images[test], names), test),
        "search": percent(concept_matrix_search(cosines[test], texts), test),
        "cubed": percent(concept_matrix_search(cosines[test], texts, cubed=True), test),
    }
    scaled = model.log_scale.exp() * cosines
    for mode in MODES:
        tried = [bottleneck(trial, seed, mode, rate, scaled[train], labels[train]) for rate in RATES]
        best = max(tried, key=lambda one: percent(one(scaled[val])[1], val))
        c, logits = best(scaled[test])
        found |= {mode: percent(logits, test), f"sparsity_{mode}": hoyer_sparsity(c).mean().item()}
    return found


def bottleneck(trial: Trial, seed: int, mode: str, rate: float, s: Tensor, y: Tensor) -> SparseCBM:
    """A bottleneck trained with one of the terms."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SparseCBM(CONCEPTS, CLASSES, mode)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
        for _ in range(trial.few(600, 5)):
            rows = torch.randint(len(s), (BATCH,))
            optimizer.zero_grad()
            model.loss(s[rows], y[rows]).backward()
            optimizer.step()
    return model.requires_grad_(False)
