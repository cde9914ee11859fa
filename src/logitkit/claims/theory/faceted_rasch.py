"""063: faceted Rasch measurement finds what was rated, how severe the judges are and who guesses, and an
ordinal head predicts ratings with less error than a softmax.

Set beforehand: 600 subjects, 8 items, 150 judges with severity of deviation 1, 4 ratings each, 10 % of the
judges guessing, 500 subjects for the networks; seeds 0-4, all thresholds.
Left open, and chosen before the first run:
- The data are `ratings` with its defaults, which are those. theta is that of the fit after leaving out judges
  with an infit outside (0.5, 1.5); the raw mean is over all ratings of a subject. Infit is the first fit's.
- Severity is compared over the judges who do not guess, the others having none.
- The networks get `ratings` of 834 subjects, of which 500 train, and predict the level of theta from the
  features: `mlp(hidden=(32,))`, 60 epochs; both heads choose among three learning rates for every seed by
  validation accuracy. RPS is the ranked probability score of the test rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitkit import data
from logitkit.claims.base import Check, Trial, claim, difference, over_seeds, ratio
from logitkit.engine import Prepared, Recipe
from logitkit.engine.inference import forward
from logitkit.engine.metrics import auroc
from logitkit.heads import ranked_probability_score
from logitkit.theory import FacetedRasch

RATES = (1e-3, 3e-3, 1e-2)


@claim(
    "theory",
    "faceted_rasch",
    statement="From simulated ratings, faceted Rasch measurement recovers subjects better than the mean"
    " rating, and the judges' severity and which of them guess; an ordinal head predicts levels with a lower"
    " RPS.",
    seeds=range(5),
    note="With steps 0.8 logits apart an honest judge's levels scatter nearly as widely as a guesser's: on"
    " seed 0 guessers have an infit of 0.75 to 1.45, honest judges 1.0 with a deviation of 0.12, so the"
    " bounds 0.5 and 1.5 catch almost nobody. The ordinal head is no better than a softmax on features"
    " that are linear in the value.",
)
def faceted_rasch(trial: Trial) -> list[Check]:
    found = [measured(trial, seed) for seed in trial.seeds]
    rasch, mean, severity, guessing = (list(values) for values in zip(*found, strict=True))
    scores = {head: [rps(trial, seed, head) for seed in trial.seeds] for head in ("ordinal", "linear")}
    return [
        difference(
            "correlation with the true value: Rasch minus mean rating", ">=", 0.05, rasch=rasch, mean=mean
        ),
        over_seeds("correlation of severity with the truth", severity, ">=", 0.85, {"rasch": severity}),
        over_seeds("AUROC of infit for judges who guess", guessing, ">=", 0.9, {"infit": guessing}),
        ratio("ranked probability score: ordinal over softmax cross-entropy", "<", 1.0, **scores),
    ]


def measured(trial: Trial, seed: int) -> tuple[float, float, float, float]:
    """Correlation of theta by Rasch and by mean, and of severity; AUROC of infit."""
    rows = data.load(f"ratings:n={trial.few(600, 200)}+seed={seed}").extras
    level, judge = rows["ratings"], rows["judge"]
    n, each, items = level.shape
    grid = torch.meshgrid(torch.arange(n), torch.arange(each), torch.arange(items), indexing="ij")
    table = torch.stack([grid[0], grid[2], judge[:, :, None].expand_as(level), level], dim=-1).view(-1, 4)
    whole = FacetedRasch().fit(table)
    kept = FacetedRasch(infit_bounds=(0.5, 1.5)).fit(table)
    severity = torch.zeros(int(judge.max()) + 1).index_put((judge,), rows["severity"])
    guesses = torch.zeros(len(severity), dtype=torch.bool).index_put((judge,), rows["spammer"])
    seen = ~whole.infit.isnan()
    honest = seen & ~guesses
    return (
        correlation(kept.theta, rows["theta"]),
        correlation(level.double().mean(dim=(1, 2)), rows["theta"]),
        correlation(whole.alpha[honest], severity[honest]),
        auroc(whole.infit[honest], whole.infit[guesses & seen]),
    )


def correlation(a: Tensor, b: Tensor) -> float:
    known = ~a.isnan()
    return torch.corrcoef(torch.stack([a[known], b[known].to(a)]))[0, 1].item()


def rps(trial: Trial, seed: int, head: str) -> float:
    """Ranked probability score on the test rows."""
    prepared = Prepared.of(data.split(data.load(f"ratings:n=834+seed={seed}"), seed))
    common = {"model": "mlp(hidden=(32,))", "head": head, "epochs": 60, "seed": seed, "split_seed": seed}
    trainer = trial.tuned(prepared, [Recipe.of(lr=rate, **common) for rate in RATES])
    x, y = trainer.data.test
    return ranked_probability_score(forward(trainer.network, x).softmax(dim=1), y).mean().item()
