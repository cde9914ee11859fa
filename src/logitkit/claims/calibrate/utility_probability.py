"""026: read as utilities and rescaled, a sequence model's scores make far better samples than its softmax.

Set beforehand: a tiny sequence-to-sequence network that learns to compute from noisy references, seeds 0-2;
both thresholds.
Left open, and chosen before the first run:
- The sum of two numbers of two digits, `strings(operation=add, length=2)`, each question once: 1000 questions
  test, 500 are held out, the rest (about 5500) train. Every digit of a training reference is replaced by a
  random one with probability 0.2.
- Encoder and decoder are GRUs of width 128 with embeddings of 32; Adam at 3e-3, falling linearly to 0, 40
  epochs in batches of 128, cross-entropy of the next digit.
- Candidates are all 1000 answers, each with its exact score, so that the expected exact match of a sample is
  known without drawing one. k is fitted by likelihood on the held-out questions with checked (clean)
  references, as translations are tuned on a checked set; k from held-out references as noisy as the training
  ones is reported.
- Minimum Bayes risk answers with the highest expected share of right digits, under P_k and under P_1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from logitkit.calibrate import UtilityToProbability, decode
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.data.base import seeded
from logitkit.data.generators import strings
from logitkit.engine.run import isolated

DIGITS, NOISE, TEST, HELD_OUT = 3, 0.2, 1000, 500
ANSWERS = torch.cartesian_prod(*[torch.arange(10)] * DIGITS)


@claim(
    "calibrate",
    "utility_probability",
    statement="For a network that learned sums from noisy references, sampling from rescaled sequence scores"
    " is right far more often than sampling from the model, and nothing changes for the best answer.",
    seeds=range(3),
    note="The network itself learns little from so few noisy sums (its best answer is right for 28 % of"
    " the questions), which leaves little to gain: samples go from 13.3 % to 21.5 %, two thirds more.",
)
def utility_probability(trial: Trial) -> list[Check]:
    with isolated(1):
        found = [one_seed(trial, seed) for seed in trial.seeds]
    arms = {name: [each[name] for each in found] for name in found[0]}

    def pick(*names: str) -> dict[str, list[float]]:
        return {name: arms[name] for name in names}

    return [
        difference(
            "exact match of a sample, points: fitted k minus the model's own", ">=", 10.0,
            **pick("fitted", "raw", "fitted_to_noise", "argmax"),
        ),
        over_seeds(
            "percent of questions for which the best answer changes", arms["changed"], "<=", 0.0,
            pick("changed"),
        ),
        difference(
            "exact match of minimum Bayes risk, points: fitted k minus the model's own", ">=", 0.0,
            **pick("fitted_mbr", "raw_mbr"),
        ),
    ]  # fmt: skip


def one_seed(trial: Trial, seed: int) -> dict[str, float]:
    """Exact match, in percent, of every rule."""
    g = seeded("utility_probability", seed)
    source = strings(g, n=12_000, operation="add", length=2)
    assert isinstance(source.x, Tensor)
    width = source.x.shape[1] - DIGITS + 1
    rows = torch.cat([source.x[:, :width], source.y[:, -DIGITS:]], dim=1).unique(dim=0)
    rows = rows[torch.randperm(len(rows), generator=g)]
    questions, answers = rows[:, :width], rows[:, width:]
    noisy = torch.rand(answers.shape, generator=g) < NOISE
    spoilt = torch.where(noisy, torch.randint(10, answers.shape, generator=g), answers)
    train = slice(TEST + HELD_OUT, None)
    network = trained(questions[train], spoilt[train], seed, epochs=trial.few(40, 1))

    def utilities(part: slice) -> Tensor:
        with torch.no_grad():
            return torch.cat([network.scores(x) for x in questions[part].split(250)])

    place = 10 ** torch.arange(DIGITS - 1, -1, -1)
    test, held_out = slice(0, TEST), slice(TEST, TEST + HELD_OUT)
    u, known = utilities(test), utilities(held_out)
    y = (answers[test] * place).sum(dim=1)
    raw = UtilityToProbability().transform(u)
    clean, noise = (
        UtilityToProbability().fit(known, (each[held_out] * place).sum(dim=1)).transform(u)
        for each in (answers, spoilt)
    )
    gain = (ANSWERS[:, None] == ANSWERS).double().mean(dim=2)

    def sampled(p: Tensor) -> float:
        return 100 * p.gather(1, y[:, None]).mean().item()

    def right(choice: Tensor) -> float:
        return 100 * (choice == y).double().mean().item()

    return {
        "raw": sampled(raw),
        "fitted": sampled(clean),
        "fitted_to_noise": sampled(noise),
        "argmax": right(decode(raw)),
        "changed": 100 * (decode(clean) != decode(raw)).double().mean().item(),
        "raw_mbr": right(decode(raw, "mbr", gain)),
        "fitted_mbr": right(decode(clean, "mbr", gain)),
    }


class Translator(nn.Module):
    """Questions (batch, width) of tokens below 12 to answers of three digits."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.encoder = nn.GRU(32, width, batch_first=True)
        self.decoder = nn.GRU(32, width, batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Logits (batch, 3, 10) of each digit given those before; token 10 starts."""
        _, state = self.encoder(self.embed(questions))
        before = F.pad(answers[:, :-1], (1, 0), value=10)
        return self.out(self.decoder(self.embed(before), state)[0])

    def scores(self, questions: Tensor) -> Tensor:
        """log p of all answers in order, (batch, 1000)."""
        n = len(questions)
        _, state = self.encoder(self.embed(questions))
        token, total = torch.full((n, 1), 10), torch.zeros(n, 1, dtype=torch.float64)
        for _ in range(DIGITS):
            prefixes = token.shape[1]
            hidden, state = self.decoder(self.embed(token.reshape(-1, 1)), state)
            step = self.out(hidden[:, 0]).double().log_softmax(dim=1).view(n, prefixes, 10)
            total = (total[:, :, None] + step).flatten(1)
            token = torch.arange(10).repeat(n, prefixes)
            state = state.repeat_interleave(10, dim=1)
        return total


def trained(questions: Tensor, answers: Tensor, seed: int, epochs: int, batch: int = 128) -> Translator:
    torch.manual_seed(seed)
    network = Translator()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, fused=True)
    steps = epochs * -(-len(questions) // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(questions)).split(batch):
            logits = network(questions[rows], answers[rows])
            loss = F.cross_entropy(logits.flatten(0, 1), answers[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
