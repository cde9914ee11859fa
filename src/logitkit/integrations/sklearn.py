"""A recipe as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from logitkit import data
from logitkit.data import Dataset, Split
from logitkit.engine import Predictor, Prepared, Recipe, Trainer
from logitkit.engine.run import isolated


class LogitClassifier(ClassifierMixin, BaseEstimator):
    """Train a recipe on a feature matrix: losses, heads and models with `fit` and `predict_proba`.

    Reach for it to put logitkit's parts into a `Pipeline`, `GridSearchCV` or `cross_val_score`.

    Parameters are those of `logitkit.engine.Recipe`, written the same way, with these of scikit-learn's:

    validation_fraction: share of the training rows held out, stratified, when `patience` or `calibrate`
                         needs them; otherwise every row is trained on.
    random_state:        seed of initialisation, batch order and held-out rows; None draws one.

    Attributes: `classes_`, `n_features_in_`, `feature_names_in_` (if X has names), `predictor_` (the trained
    `logitkit.engine.Predictor`), `curve_` (one point per epoch).

    >>> model = LogitClassifier(loss="ldr", model="mlp(hidden=(64,))", epochs=50, random_state=0)
    >>> model.fit(X, y).predict_proba(X)

    Features are standardised inside. Predictions are computed in float64, so that a row's probabilities do
    not depend on which rows come with it.
    """

    def __init__(
        self,
        loss: str = "auto",
        head: str = "linear",
        softmax: str = "softmax",
        model: Any = "mlp",
        regularize: str | Sequence[str] = (),
        calibrate: str | Sequence[str] = (),
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float | None = None,
        schedule: str = "cosine",
        batch_size: int = 64,
        epochs: int = 100,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.loss = loss
        self.head = head
        self.softmax = softmax
        self.model = model
        self.regularize = regularize
        self.calibrate = calibrate
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> LogitClassifier:
        """Train on X (rows, features) and labels y (rows,) of any type. Returns self.

        Raises ValueError (`logitkit.InputError` for a recipe that cannot work).
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds 1 class, {self.classes_[0]!r}; expected at least 2 classes.")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        settings = self.get_params(deep=False)
        for ours in ("validation_fraction", "random_state"):
            del settings[ours]
        recipe = Recipe.of(**settings, data="X", seed=seed, split_seed=seed)
        dataset = Dataset(
            name="X",
            x=_tensor(X),
            y=torch.from_numpy(labels.reshape(-1)),
            task="classification",
            kind="vector",
            class_names=tuple(str(c) for c in self.classes_),
        )
        with isolated(recipe.threads):
            prepared = Prepared.of(self._split(dataset, recipe))
            trainer = Trainer(recipe, prepared)
            network = trainer.run().to("cpu")
            self.predictor_ = Predictor.fit(recipe, network, prepared)
        self.predictor_.network.double()
        self.curve_ = trainer.progress.curve
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities (rows, classes), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        x = self.predictor_.preprocessor.transform(_tensor(X)).double()
        return self.predictor_.probabilities(x).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class (rows,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _split(self, dataset: Dataset, recipe: Recipe) -> Split:
        if recipe.patience is not None or recipe.calibrate:
            return data.split(dataset, recipe.seed, test=0.0, val=self.validation_fraction)
        rows, none = torch.arange(len(dataset)), torch.arange(0)
        return Split(
            dataset, dataset.take(none), dataset.take(none), {"train": rows, "val": none, "test": none}
        )


def _tensor(X: ArrayLike) -> torch.Tensor:
    # a copy, so that a read-only array is never shared with a tensor
    return torch.from_numpy(np.array(X, dtype=np.float32))
