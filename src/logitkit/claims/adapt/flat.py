"""074: FLAT forgets facts with less harm to the others than gradient ascent, and answers with the template.

Set beforehand: a Llama of 2 layers that knows 200 made-up facts, of which 20 are to be forgotten; full
fine-tuning that stops when at most 5 % of them are answered right; a learning rate for each method from the
same four; seeds 0-2, all thresholds.
Left open, and chosen before the first run:
- A fact is a name of two words and an answer of three, out of 30 and 20 words. The template is an answer of
  three words of its own, which the model learned to give to 20 names without a fact, as a language model
  has seen "I do not know" before.
- Width 64. Learning: 400 batches of 64, AdamW at 3e-3 with a linear decay. Forgetting: AdamW, all 20 prompts
  in every step, at most 200 steps.
- Learning rates 1e-4, 3e-4, 1e-3, 3e-3; a method's is the one with the most facts retained on average among
  those that got down to 5 % on every seed. Answers are the most likely ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from logitkit.adapt.flat import FLATLoss
from logitkit.adapt.unlearning import gradient_ascent
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds
from logitkit.claims.llama import exact_match, predict, tiny_llama

NAMES, ANSWERS = 30, 20
VOCABULARY = NAMES + ANSWERS + 3
TEMPLATE = torch.arange(VOCABULARY - 3, VOCABULARY)
FACTS, FORGOTTEN, UNKNOWN = 200, 20, 20
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
STOP = 5.0

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
METHODS: dict[str, Objective] = {
    "kl": FLATLoss("kl"),
    "tv": FLATLoss("tv"),
    "ascent": lambda logits, labels, *_: gradient_ascent(logits, labels),
}


class Outcome(NamedTuple):
    """After forgetting, in percent: facts still known, facts to forget still known, template answers given to
    the prompts to forget."""

    retained: float
    forgotten: float
    template: float


@claim(
    "adapt",
    "flat",
    statement="Having forgotten 20 of 200 facts, a language model keeps more of the others with FLAT than"
    " with gradient ascent, and answers the forgotten ones with the template.",
    seeds=range(3),
    note="Forgetting stops as soon as 5 % of the facts are left, after few steps, when gradient ascent too"
    " has done little harm; the template has begun to replace the answers by then, but is not the likeliest"
    " yet.",
)
def flat(trial: Trial) -> list[Check]:
    known = [learned(trial, seed) for seed in trial.seeds]
    chosen = {name: best(trial, known, objective) for name, objective in METHODS.items()}
    retained = {name: [run.retained for run in runs] for name, runs in chosen.items()}
    template = {name: [run.template for run in runs] for name, runs in chosen.items()}
    return [
        *(difference(f"facts retained, points: FLAT ({name}) minus gradient ascent", ">=", 15.0,
                     **{name: retained[name], "ascent": retained["ascent"]}) for name in ("kl", "tv")),
        *(over_seeds(f"template answers to forgotten prompts, percent: FLAT ({name})",
                     template[name], ">=", 80.0, {name: template[name]}) for name in ("kl", "tv")),
        over_seeds("template answers to forgotten prompts, percent: gradient ascent",
                   template["ascent"], "<", 10.0, {"ascent": template["ascent"]}),
        over_seeds("facts still known that were to be forgotten, percent, worst method",
                   [max(runs[i].forgotten for runs in chosen.values()) for i in range(len(known))],
                   "<=", STOP, {name: [run.forgotten for run in runs] for name, runs in chosen.items()}),
    ]  # fmt: skip


def sentences(names: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens, and the labels that the logits at the same time predict: the answer's three."""
    tokens = torch.cat([names, answers[:, :-1]], dim=1)
    return tokens, F.pad(answers, (1, 0), value=-100)


def learned(trial: Trial, seed: int) -> tuple[Any, Tensor, Tensor]:
    """A model that knows the facts, their names, and their answers."""
    generator = Generator().manual_seed(seed)
    pairs = torch.randperm(NAMES * NAMES, generator=generator)[: FACTS + UNKNOWN]
    names = torch.stack([pairs // NAMES, pairs % NAMES], dim=1)
    answers = NAMES + torch.randint(ANSWERS, (FACTS, 3), generator=generator)
    tokens, labels = sentences(names, torch.cat([answers, TEMPLATE.expand(UNKNOWN, 3)]))
    model = tiny_llama(VOCABULARY, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    steps = trial.few(400, 10)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.randint(len(tokens), (64,), generator=generator)
        logits = model(input_ids=tokens[rows]).logits
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten()).backward()
        optimizer.step()
    return model, names[:FACTS], answers


def best(trial: Trial, known: list[tuple[Any, Tensor, Tensor]], objective: Objective) -> list[Outcome]:
    """The outcomes at the method's best learning rate, one for each seed."""
    found = [[forget(trial, *one, objective, rate) for one in known] for rate in RATES[: trial.few(4, 1)]]
    done = [runs for runs in found if max(run.forgotten for run in runs) <= STOP] or found
    return max(done, key=lambda runs: sum(run.retained for run in runs))


def forget(
    trial: Trial, model: Any, names: Tensor, answers: Tensor, objective: Objective, rate: float
) -> Outcome:
    """Forget the first facts."""
    model = copy.deepcopy(model)
    some = names[:FORGOTTEN]
    tokens, labels = sentences(some, answers[:FORGOTTEN])
    instead, template = sentences(some, TEMPLATE.expand(FORGOTTEN, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    for _ in range(trial.few(200, 3)):
        if exact_match(predict(model, tokens), labels) <= STOP:
            break
        optimizer.zero_grad()
        logits, others = model(input_ids=tokens).logits, model(input_ids=instead).logits
        objective(logits, labels, others, template).backward()
        optimizer.step()
    kept = sentences(names[FORGOTTEN:], answers[FORGOTTEN:])
    return Outcome(
        exact_match(predict(model, kept[0]), kept[1]),
        exact_match(predict(model, tokens), labels),
        exact_match(predict(model, instead), template),
    )
