"""Fitting one temperature on 100,000 x 100 logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional as F

from logitkit.bench.base import Arm, Arms, Case, Goal, peer
from logitkit.ops import fit_temperature

PEERS = ("scikit-learn", "netcal")
NOTE = """\
scikit-learn's answer is right and slow. Two common recipes return a wrong temperature without a warning:
LBFGS with its default line search stops far from the minimum after the customary 50 steps, and netcal leaves
float32 input unfitted. The gradient is the derivative of the mean negative log-likelihood in log T, in
float64."""


def _arms(small: bool) -> Arms:
    n, classes = (2000, 10) if small else (100_000, 100)
    g = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (n,), generator=g)
    logits = torch.randn(n, classes, generator=g)
    logits[torch.arange(n), target] += 2.0
    logits *= 2.5
    found: dict[str, float] = {}

    def arm(name: str, fit: Callable[[], float]) -> Arm:
        return lambda: found.update({name: fit()})

    fits: dict[str, Callable[[], float]] = {
        "ours": lambda: fit_temperature(logits, target),
        "scikit-learn": lambda: _sklearn(logits, target),
        "LBFGS, lr 0.01, 50 steps": lambda: _lbfgs(logits, target, 0.01, None),
        "LBFGS, strong Wolfe": lambda: _lbfgs(logits, target, 1.0, "strong_wolfe"),
    }
    if peer("netcal"):
        fits["netcal, float32 in"] = lambda: _netcal(logits, target, np.float32)
        fits["netcal, float64 in"] = lambda: _netcal(logits, target, np.float64)
    run = {name: arm(name, fit) for name, fit in fits.items()}

    def values() -> Mapping[str, float]:
        return {f"gradient, {name}": _gradient(logits, target, t) for name, t in found.items()} | {
            f"temperature, {name}": t for name, t in found.items()
        }

    return Arms(run, values=values)


def _gradient(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    log_t = torch.tensor(temperature, dtype=torch.float64).log().requires_grad_()
    F.cross_entropy(logits.double() / log_t.exp(), target).backward()
    assert log_t.grad is not None
    return abs(float(log_t.grad))


def _lbfgs(logits: torch.Tensor, target: torch.Tensor, lr: float, line_search: str | None) -> float:
    t = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], lr=lr, max_iter=50, line_search_fn=line_search)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / t, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(t.detach())


def _sklearn(logits: torch.Tensor, target: torch.Tensor) -> float:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        def fit(self, x: np.ndarray, y: np.ndarray) -> Logits:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(1)

    x, y = logits.numpy(), target.numpy()
    model = CalibratedClassifierCV(FrozenEstimator(Logits().fit(x, y)), method="temperature").fit(x, y)
    return 1 / float(model.calibrated_classifiers_[0].calibrators[0].beta_)


def _netcal(logits: torch.Tensor, target: torch.Tensor, dtype: type) -> float:
    from netcal.scaling import TemperatureScaling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TemperatureScaling()
        model.fit(logits.softmax(1).numpy().astype(dtype), target.numpy(), random_state=0)
    return 1 / float(np.ravel(model.temperature)[0])


def cases() -> list[Case]:
    return [
        Case(
            "float32",
            _arms,
            [Goal("ours", 0.03, "scikit-learn"), Goal("gradient, ours", 1e-7, unit="value")],
        )
    ]
