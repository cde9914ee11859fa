"""Mutual information from 5,000 and 20,000 points by nearest neighbours (KSG, k = 3)"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch

from logitkit.bench.base import Arm, Arms, Case, Goal, peer
from logitkit.ops import mutual_information

PEERS = ("npeet-plus", "scikit-learn", "scipy")
NOTE = """\
x and y are Gaussian, each dimension of y correlated with one of x by 0.6. All estimates agree but for
scikit-learn's, which adds noise and takes one dimension against one only. In 10 + 10 dimensions the estimate
is far below the truth whoever computes it. Ours runs in float32, with float64 beside it, and compares all
pairs except in 1 + 1 dimensions; the trees visit most points as well once there are many dimensions, at a far
higher price each."""


def _count(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    if x.shape[1] == 1:
        s = np.sort(x[:, 0])
        below = np.searchsorted(s, x[:, 0] - r, "right")
        inside: np.ndarray = np.searchsorted(s, x[:, 0] + r, "left") - below
        return inside
    nearer = np.nextafter(r, 0)
    counts: np.ndarray = cKDTree(x).query_ball_point(x, nearer, p=np.inf, return_length=True, workers=-1)
    return counts


def _trees(x: np.ndarray, y: np.ndarray) -> float:
    """KSG with SciPy's trees, and sorting where there is one dimension."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    z = np.hstack([x, y])
    r = cKDTree(z).query(z, 4, p=np.inf, workers=-1)[0][:, -1]
    counts = [np.maximum(_count(v, r), 1) for v in (x, y)]
    return float(digamma(len(x)) + digamma(3) - np.mean(sum(digamma(c) for c in counts)))


def _arms(size: int, d: int) -> Callable[[bool], Arms]:
    def build(small: bool) -> Arms:
        n = 50 if small else size
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d))
        y = 0.6 * x + 0.8 * rng.standard_normal((n, d))
        double = torch.from_numpy(x), torch.from_numpy(y)
        single = double[0].float(), double[1].float()
        found: dict[str, float] = {}

        def arm(name: str, estimate: Callable[[], float]) -> Arm:
            return lambda: found.update({name: float(estimate())})

        run = {
            "ours": arm("ours", lambda: mutual_information(*single)),
            "ours, float64": arm("ours, float64", lambda: mutual_information(*double)),
            "SciPy trees": arm("SciPy trees", lambda: _trees(x, y)),
        }
        npeet = peer("npeet_plus")
        if npeet is not None:
            run["npeet-plus"] = arm("npeet-plus", lambda: npeet.mi(x, y, k=3, base=math.e))
        if d == 1 and peer("sklearn"):
            run["scikit-learn"] = arm("scikit-learn", lambda: _sklearn(x, y))

        def values() -> dict[str, float]:
            named = {f"nats, {name}": value for name, value in found.items()}
            gap = {"ours - ours in float64": abs(found["ours"] - found["ours, float64"])}
            return named | gap | {"nats, true": -0.5 * d * math.log(1 - 0.36)}

        return Arms(run, values=values)

    return build


def _sklearn(x: np.ndarray, y: np.ndarray) -> float:
    from sklearn.feature_selection import mutual_info_regression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(mutual_info_regression(x, y[:, 0], n_neighbors=3)[0])


def cases() -> list[Case]:
    figures = {(20_000, 1): 0.2, (20_000, 10): 0.025}
    found = []
    for n, d in ((5000, 1), (5000, 3), (5000, 10), (20_000, 1), (20_000, 3), (20_000, 10)):
        goals = [
            Goal("ours", figures.get((n, d), 1.0), "npeet-plus"),
            Goal("ours", 1.0, "SciPy trees"),
            Goal("ours, float64", 1.0, "npeet-plus"),
            Goal("ours, float64", 1.0, "SciPy trees"),
        ]
        if d == 1:
            goals.append(Goal("ours", 1.0, "scikit-learn"))
        found.append(Case(f"n = {n}, {d} + {d} dimensions", _arms(n, d), goals))
    return found
