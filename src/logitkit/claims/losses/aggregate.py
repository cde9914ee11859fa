"""076: between fitting bag means and fitting every example to its bag's mean there is a better loss.

Set beforehand: the linear problem (1000 rows, bags of 5, 180 features, 20 draws, 20 values of rho) and
digits in bags of 8, seeds 0-4, all thresholds.
Left open, and chosen before the first run:
- Linear: `AggregateRidge` on the `linear` data, four draws for each seed. The excess risk is |theta - w|^2,
  w the true weights; rho = 0, 1/19, ..., 1, the best by its mean over the draws.
- Digits: two hidden layers of 128, cross-entropy of the bags' mean labels, 40 epochs of AdamW in batches of
  8 whole bags (64 rows), cosine schedule; the few rows left over when bags are made are dropped.
- Every arm chooses among five: the bag and the instance loss among learning rates, the interpolation among
  rho at the rate 1e-3. What is known to choose by are bags, so it is the bag loss of validation rows in bags
  of 8, averaged over the seeds.
The engine's `+bags=8` keeps those rows as a smaller bag; the loop here is its own.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from logitkit import data
from logitkit.claims.base import Check, Trial, accuracy, claim, difference, over_seeds, ratio
from logitkit.engine import Prepared
from logitkit.losses import AggregateLoss, AggregateRidge, bag_means, make_bags
from logitkit.models import MLP

RHOS = [i / 19 for i in range(20)]
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
ARMS: dict[str, list[tuple[float, float]]] = {
    "interpolated": [(rho, 1e-3) for rho in (0.02, 0.1, 0.3, 0.5, 0.8)],
    "bag": [(0.0, rate) for rate in RATES],
    "instance": [(1.0, rate) for rate in RATES],
}
SIZE = 8


@claim(
    "losses",
    "aggregate",
    statement="With only bag means known, a loss between the bag loss and the instance loss is better than"
    " both, for a linear model and for digits.",
    seeds=range(5),
    note="On digits the bag loss alone reaches 96.8 %, and the instance loss, which bends every prediction"
    " towards the overall mean, 74 %; a little of it adds 0.2 points, less than the 0.5 asked for. The linear"
    " problem behaves as the paper says.",
)
def aggregate(trial: Trial) -> list[Check]:
    draws = [4 * seed + i for seed in trial.seeds for i in range(trial.few(4, 1))]
    excess = torch.tensor([excess_risks(draw) for draw in draws])
    best = int(excess.mean(dim=0).argmin())
    risks = {
        "best": excess[:, best].tolist(),
        "bag": excess[:, 0].tolist(),
        "instance": excess[:, -1].tolist(),
    }
    right: dict[str, list[float]] = {}
    for name, variants in ARMS.items():
        runs = [[digits(trial, seed, *variant) for seed in trial.seeds] for variant in variants]
        chosen = min(runs, key=lambda arm: sum(loss for loss, _ in arm))
        right[name] = [accuracy for _, accuracy in chosen]
    other = max(("bag", "instance"), key=lambda name: sum(right[name]))
    compared = {name: right[name] for name in ("interpolated", other)}
    return [
        ratio("excess risk of the linear model: best rho over bag loss", "<=", 0.7, **risks),
        ratio(
            "excess risk of the linear model: best rho over instance loss", "<=", 0.9,
            **{name: risks[name] for name in ("best", "instance", "bag")},
        ),
        over_seeds("the best rho of the linear model, below 1", [RHOS[best]], "<", 1.0, {}),
        over_seeds("the best rho of the linear model, above 0", [RHOS[best]], ">", 0.0, {}),
        difference(
            f"accuracy on digits in bags of 8, points: interpolated minus the better of bag and instance loss"
            f" ({other})",
            ">=", 0.5, **{**compared, **right},
        ),
    ]  # fmt: skip


def excess_risks(draw: int) -> list[float]:
    """|theta - w|^2 for every rho."""
    rows = data.load(f"linear:n=1000,dim=180,sd=1+seed={draw}")
    assert isinstance(rows.x, Tensor)
    x = rows.x.double()
    w = torch.linalg.lstsq(x, rows.extras["mean"].double()[:, None]).solution[:, 0]
    bags = make_bags(len(x), 5, torch.Generator().manual_seed(draw))
    means = bag_means(rows.y.double(), bags)
    return [(AggregateRidge(rho).fit(x, means, bags).theta - w).square().sum().item() for rho in RHOS]


@cache
def bagged(seed: int) -> tuple[Prepared, Tensor, Tensor]:
    """The prepared split, and the rows of each training and validation bag, (bags, 8)."""
    prepared = Prepared.of(data.split(data.load("digits"), seed))
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _, y in (prepared.train, prepared.val):
        whole = len(y) // SIZE
        rows.append(make_bags(len(y), SIZE, generator).argsort(stable=True)[: whole * SIZE].view(whole, SIZE))
    return prepared, rows[0], rows[1]


def bag_loss(network: nn.Module, rho: float, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """The loss of the bags made of `rows` (bags, 8), from their mean labels."""
    ids = torch.arange(len(rows)).repeat_interleave(SIZE)
    means = nn.functional.one_hot(y[rows], 10).float().mean(dim=1)
    return AggregateLoss(rho, "ce")(network(x[rows.flatten()]), means, ids)


def digits(trial: Trial, seed: int, rho: float, rate: float) -> tuple[float, float]:
    """Bag loss of the validation rows, and accuracy on the test rows in percent."""
    prepared, train, val = bagged(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(MLP(prepared.shape.input_shape), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        b for _ in range(trial.few(40, 1)) for b in torch.randperm(len(train), generator=generator).split(8)
    ]
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        bag_loss(network, rho, *prepared.train, train[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return bag_loss(network, 0.0, *prepared.val, val).item(), accuracy(network, prepared.test)
