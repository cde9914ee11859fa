"""The Mahalanobis detector: how far an input's features lie from every class the network knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from logitkit.ops import check_features, check_labels, check_numbers
from logitkit.ops.fitted import Fitted
from logitkit.registry import Real, part

# Examples a network sees at once while a detector around it is fitted or scores.
CHUNK = 512


@part(
    "mahalanobis",
    "detect",
    title="A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    paper="arXiv:1807.03888",
    number=25,
    replaces="msp",
    needs=("features", "labels"),
    search_space={"shrinkage": Real(1e-6, 0.1, log=True)},
)
class Mahalanobis(Fitted):
    """Distance to the nearest class mean in the classes' shared covariance: a detector of inputs far from the
    training data, also where the softmax is sure of itself.

    Equation: score = min_c (f - mu_c)^T S^-1 (f - mu_c), with mu_c the class means and
    S = (1/N) sum_c sum_{i in c} (f_i - mu_c)(f_i - mu_c)^T + shrinkage * (tr S / d) I. The paper's confidence
    M(x) is minus this score. `predict` takes the nearest mean, and `add_class` updates
    S <- C/(C+1) S + 1/(C+1) S_new.

    Shapes: `fit(features, y)` with features (batch, d), labels (batch,) that name every class from 0 on;
    `score(features)` -> (batch,), squared distance, at least 0, higher is more abnormal;
    `distances(features)` -> (batch, classes); `predict(features)` -> (batch,) labels.

    Defaults: shrinkage = 1e-6, just enough that a unit that never fires does not make S singular; the paper
    has none (its code falls back to a pseudo-inverse, which is blind along such units). Everything is
    computed in float64. Scores come back in the features' dtype, in at least float32.

    Raises: ValueError for a negative shrinkage, features of another shape or dtype, NaN, an empty batch,
    missing labels, a class without examples, a singular S (with shrinkage 0), or use before `fit`.

    Source: Lee, Lee, Lee, Shin, NeurIPS 2018, arXiv:1807.03888, equations 1-2 and algorithm 2.

    Not for: a few examples of many features per class; classes of very different spread, which a shared
    covariance averages; near-miss classes that the features do not separate.
    """

    means: Tensor
    covariance: Tensor
    whitening: Tensor

    def __init__(self, shrinkage: float = 1e-6) -> None:
        super().__init__()
        if not shrinkage >= 0:
            raise ValueError(f"shrinkage must be at least 0, got {shrinkage}.")
        self.shrinkage = shrinkage
        for name in ("means", "covariance", "whitening"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "batch d"], y: Int[Tensor, " batch"] | None = None) -> Mahalanobis:
        """Class means and their shared covariance; returns self."""
        x = _check(x)
        if y is None:
            raise ValueError(f"mahalanobis needs labels of shape ({x.shape[0]},) to fit, got None.")
        y = check_labels(y, x.shape[0], int(y.max()) + 1 if y.numel() else 1)
        counts = y.bincount()
        if not bool(counts.all()):
            raise ValueError(
                f"class {int((counts == 0).nonzero()[0])} has no examples; labels must name every class"
                f" from 0 to {len(counts) - 1}."
            )
        self.means = x.new_zeros(len(counts), x.shape[1]).index_add(0, y, x) / counts[:, None]
        self._set_covariance(_covariance(x - self.means[y]))
        return self

    @torch.no_grad()
    def add_class(self, x: Float[Tensor, "batch d"]) -> Mahalanobis:
        """Append a class from its examples alone, without the earlier data; returns self."""
        x = self._fitted(x)
        mean = x.mean(dim=0)
        classes = len(self.means)
        self.means = torch.cat([self.means, mean[None]])
        self._set_covariance((classes * self.covariance + _covariance(x - mean)) / (classes + 1))
        return self

    def distances(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch classes"]:
        """Squared Mahalanobis distance to every class mean, in float64."""
        white = self._fitted(x) @ self.whitening
        return (white[:, None] - self.means @ self.whitening).square().sum(dim=-1)

    def score(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Squared distance to the nearest class mean."""
        nearest = self.distances(x).amin(dim=1)
        return nearest.to(torch.promote_types(x.dtype, torch.float32))

    def predict(self, x: Float[Tensor, "batch d"]) -> Int[Tensor, " batch"]:
        """The class of the nearest mean."""
        return self.distances(x).argmin(dim=1)

    def _set_covariance(self, covariance: Float[Tensor, "d d"]) -> None:
        """Keep S and W with W W^T = (S + shrinkage)^-1, from its Cholesky factor."""
        d = len(covariance)
        identity = torch.eye(d, dtype=covariance.dtype, device=covariance.device)
        ridge = self.shrinkage * covariance.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(covariance + ridge * identity)
        # Rounding may leave a singular S a tiny pivot, whose inverse would be noise.
        pivots = factor.diagonal().square()
        if bool(failed) or bool((pivots <= 1e-13 * covariance.diagonal().amax()).any()):
            raise ValueError(
                f"the covariance of {d} features is singular (constant or dependent features, or too few"
                f" examples); raise shrinkage above {self.shrinkage}."
            )
        self.covariance = covariance
        self.whitening = torch.linalg.solve_triangular(factor, identity, upper=False).T.contiguous()

    def _fitted(self, x: Tensor) -> Float[Tensor, "batch d"]:
        if not self.means.numel():
            raise ValueError(f"mahalanobis must be fitted before it sees features {tuple(x.shape)}.")
        return _check(x, self.means.shape[1])


class MahalanobisEnsemble(nn.Module):
    """The paper's full detector around a network: one `Mahalanobis` per layer, inputs nudged towards
    their nearest class, and the layers' scores weighted by logistic regression.

    Equation: f_l(x) = mean over positions of layer l's output (batch, channels, ...); x_l = x - eps
    sign(grad_x d_l(x)) with d_l the distance to the nearest class mean; score = sum_l alpha_l d_l(x_l), alpha
    from `fit_ensemble` on ordinary and abnormal examples (adversarial versions of ordinary ones will do).

    model: the network, used in eval mode and left as it was; its parameters get no gradient.
    layers: names of submodules, as in `model.get_submodule`.
    eps: size of the nudge in the inputs' units; the paper searches 0 to 0.01 on validation data.

    Source: arXiv:1807.03888, algorithm 1.
    """

    weights: Tensor
    bias: Tensor

    def __init__(
        self, model: nn.Module, layers: Sequence[str], eps: float = 0.0, shrinkage: float = 1e-6
    ) -> None:
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"eps must be at least 0, got {eps}.")
        names = dict(model.named_modules())
        unknown = [layer for layer in layers if layer not in names]
        if unknown or not layers:
            raise ValueError(
                f"layers must name submodules of the model, got {unknown or list(layers)};"
                f" it has {', '.join(n for n in names if n)}."
            )
        self.model = model
        self.layers = tuple(layers)
        self.eps = eps
        self.detectors = nn.ModuleList(Mahalanobis(shrinkage) for _ in layers)
        self.register_buffer("weights", torch.ones(len(layers), dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    def fit(self, x: Tensor, y: Int[Tensor, " batch"]) -> MahalanobisEnsemble:
        """Fit every layer's detector on training inputs and labels; returns self."""
        with torch.no_grad(), self._watched() as features:
            seen = [features(chunk) for chunk in x.split(CHUNK)]
        for layer, detector in enumerate(self.detectors):
            detector.fit(torch.cat([chunk[layer] for chunk in seen]), y)  # type: ignore[operator]
        return self

    def layer_scores(self, x: Tensor) -> Float[Tensor, "batch layers"]:
        """Each layer's distance, after its own nudge of the input."""
        with self._watched() as features:
            return torch.cat([self._layer_scores(chunk, features) for chunk in x.split(CHUNK)])

    def fit_ensemble(self, ordinary: Tensor, abnormal: Tensor) -> MahalanobisEnsemble:
        """Weigh the layers by logistic regression of abnormal against ordinary inputs; returns self."""
        from sklearn.linear_model import LogisticRegression

        inside, outside = self.layer_scores(ordinary), self.layer_scores(abnormal)
        scores = torch.cat([inside, outside])
        mean, spread = scores.mean(dim=0), scores.std(dim=0).clamp(min=1e-12)
        label = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
        regression = LogisticRegression().fit(((scores - mean) / spread).cpu().numpy(), label.numpy())
        self.weights = torch.as_tensor(regression.coef_[0], dtype=torch.float64).to(scores) / spread
        self.bias = torch.as_tensor(regression.intercept_[0]).to(scores) - (self.weights * mean).sum()
        return self

    def score(self, x: Tensor) -> Float[Tensor, " batch"]:
        """The weighted distance: log-odds of being abnormal after `fit_ensemble`, the plain sum before."""
        return self.layer_scores(x) @ self.weights + self.bias

    def predict(self, x: Tensor) -> Int[Tensor, " batch"]:
        """The class of the nearest mean at the last of `layers`."""
        with torch.no_grad(), self._watched() as features:
            nearest = [self.detectors[-1].predict(features(chunk)[-1]) for chunk in x.split(CHUNK)]  # type: ignore[operator]
        return torch.cat(nearest)

    def _layer_scores(
        self, x: Tensor, features: Callable[[Tensor], list[Tensor]]
    ) -> Float[Tensor, "batch layers"]:
        scores = []
        for layer, detector in enumerate(self.detectors):
            nudged = x.detach()
            if self.eps:
                with torch.enable_grad():
                    nudged.requires_grad_()
                    distance = detector.distances(features(nudged)[layer]).amin(dim=1)  # type: ignore[operator]
                    (slope,) = torch.autograd.grad(distance.sum(), nudged)
                nudged = (nudged - self.eps * slope.sign()).detach()
            with torch.no_grad():
                scores.append(detector.distances(features(nudged)[layer]).amin(dim=1))  # type: ignore[operator]
        return torch.stack(scores, dim=1)

    @contextmanager
    def _watched(self) -> Iterator[Callable[[Tensor], list[Tensor]]]:
        """A function from inputs to every layer's pooled features, while the model is in eval mode."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                outputs[name] = output.flatten(2).mean(dim=2) if output.ndim > 2 else output

            return hook

        def features(x: Tensor) -> list[Tensor]:
            self.model(x)
            return [outputs[name] for name in self.layers]

        modes = {module: module.training for module in self.model.modules()}
        hooks = [self.model.get_submodule(n).register_forward_hook(keep(n)) for n in self.layers]
        self.model.eval()
        try:
            yield features
        finally:
            for handle in hooks:
                handle.remove()
            for module, training in modes.items():
                module.training = training


def _check(x: Tensor, d: int | None = None) -> Float[Tensor, "batch d"]:
    """Features in float64, seen not to be NaN."""
    x = check_features(x, d).double()
    check_numbers(x, "x")
    return x


def _covariance(centred: Float[Tensor, "batch d"]) -> Float[Tensor, "d d"]:
    return centred.T @ centred / centred.shape[0]
