"""067: on corrupted targets an edit-invariant loss keeps a translator's words in order.

Set beforehand: a non-autoregressive translator, 40 words, sentences of 12; training targets with shuffled
neighbours, insertions, deletions and repetitions, clean test sentences, seeds 0-2, all thresholds.
Left open, and chosen before the first run:
- The language is the other one's under a random permutation of its words; sentences are random words.
- Three noise levels: 0, 3 and 6 edits for each training target, each edit of a random kind and place: three
  neighbours shuffled, a random word inserted, a word deleted, a word repeated. Targets are cut at 12 words;
  what deletions leave empty is not asked for.
- 4000 training and 500 test sentences; a Transformer encoder of 2 layers, width 64, learned positions; AdamW
  at 1e-3 with a linear decay, 500 batches of 64, no dropout, the same for both losses, which start from the
  same weights.
- EISL with its default n-grams, plus 0.1 of cross-entropy. BLEU is the corpus's, of 4-grams, in points.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.text import bleu_score

from logitkit.claims.base import Check, Trial, claim, difference
from logitkit.losses.eisl import EISLLoss

WORDS, LENGTH, WIDTH, BATCH = 40, 12, 64, 64
LEVELS = (0, 3, 6)


@claim(
    "losses",
    "eisl",
    statement="Trained on targets with shuffled, inserted, deleted and repeated words, a non-autoregressive"
    " translator has a higher BLEU on clean sentences with EISL than with cross-entropy, and no lower one"
    " where nothing is corrupted.",
    seeds=range(3),
)
def eisl(trial: Trial) -> list[Check]:
    def arms(level: int) -> dict[str, list[float]]:
        return {
            name: [translated(trial, seed, level, name) for seed in trial.seeds] for name in ("eisl", "ce")
        }

    return [
        difference(f"BLEU, {level} edits in every training target: EISL minus cross-entropy", ">=",
                   5.0 if level else -1.0, **arms(level))
        for level in LEVELS
    ]  # fmt: skip


class Translator(nn.Module):
    """All words of a sentence at once."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, source: Tensor) -> Tensor:
        return self.head(self.layers(self.words(source) + self.places))


def edited(sentence: list[int], edits: int, generator: Generator) -> list[int]:
    """The sentence after some random edits."""

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    words = list(sentence)
    for _ in range(edits):
        kind, place = draw(4), draw(len(words))
        if kind == 0:
            start = draw(max(len(words) - 2, 1))
            three = words[start : start + 3]
            order = torch.randperm(len(three), generator=generator).tolist()
            words[start : start + 3] = [three[i] for i in order]
        elif kind == 1:
            words.insert(place, draw(WORDS))
        elif kind == 2 and len(words) > 1:
            del words[place]
        else:
            words.insert(place, words[place])
    return words[:LENGTH]


def translated(trial: Trial, seed: int, level: int, name: str) -> float:
    """BLEU on clean test sentences, in points."""
    generator = Generator().manual_seed(seed)
    dictionary = torch.randperm(WORDS, generator=generator)
    source = torch.randint(WORDS, (4500, LENGTH), generator=generator)
    target = dictionary[source]
    noisy = [edited(words, level, generator) for words in target[:4000].tolist()]
    labels = torch.tensor([words + [-100] * (LENGTH - len(words)) for words in noisy])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Translator()
        loss = EISLLoss(ce_weight=0.1) if name == "eisl" else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        steps = trial.few(500, 10)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
            rows = torch.randint(4000, (BATCH,), generator=generator)
            logits = model(source[rows])
            optimizer.zero_grad()
            if loss is None:
                F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten()).backward()
            else:
                loss(logits, labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        found = model(source[4000:]).argmax(dim=-1)
    texts = [[" ".join(map(str, words)) for words in x.tolist()] for x in (found, target[4000:])]
    return 100 * float(bleu_score(texts[0], [[text] for text in texts[1]]))
