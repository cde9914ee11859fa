"""What a task asks of the engine: the targets its losses take, how many outputs a network has, and what
judges it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from logitkit.data import Dataset, Preprocessor
from logitkit.data.base import seeded
from logitkit.engine import metrics as M
from logitkit.engine.inference import forward
from logitkit.errors import InputError, nearest
from logitkit.losses import AggregateLoss
from logitkit.ops.grid import merge_windows

if TYPE_CHECKING:
    from logitkit.engine.predictor import Predictor
    from logitkit.engine.train import Prepared

Judged = tuple[dict[str, float], dict[str, Any]]


class Task(Protocol):
    """One kind of problem.

    like:     the task that parts must be able to do: an ordinal task takes the parts of classification.
    network:  the same of models, heads and normalisers, which see rows and not what is known of them.
    classes:  whether a model of it gives class probabilities, which `calibrate` of classification takes; it
              also takes those of the tokens of a sequence.
    detects:  whether the recipe's detector is fitted.
    trains:   whether a network learns from labels.
    head:     what the head is, where none is chosen.
    metrics:  metric -> whether more is better; `primary` is the one that ranks.
    loss:     what `loss=auto` stands for; `compared` what a comparison without a choice compares, as a user
              writes it.
    """

    like: ClassVar[str]
    network: ClassVar[str]
    classes: ClassVar[bool]
    detects: ClassVar[bool]
    trains: ClassVar[bool]
    head: ClassVar[str]
    metrics: ClassVar[Mapping[str, bool]]
    primary: ClassVar[str]
    loss: ClassVar[str]
    compared: ClassVar[str]

    def outputs(self, dataset: Dataset) -> int:
        """How many scores the network gives per example."""
        ...

    def targets(self, dataset: Dataset, preprocessor: Preprocessor) -> Tensor:
        """What losses take as target, a row per example."""
        ...

    def truth(self, target: Tensor, preprocessor: Preprocessor) -> Tensor:
        """Targets in their own units."""
        ...

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        """Numbers to follow in training, on preprocessed rows; more of `val_score` is better."""
        ...

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        """Metrics and the curves behind them, on preprocessed inputs and targets in their own units. `train`
        are those of the training rows, where they are known."""
        ...


class Classification:
    """One of several classes."""

    like: ClassVar[str] = "classification"
    network: ClassVar[str] = "classification"
    classes: ClassVar[bool] = True
    detects: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    head: ClassVar[str] = "linear"

    metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True, "balanced_accuracy": True, "nll": False, "ece": False, "ood_auroc": True,
        "noise_accuracy": True,
    }  # fmt: skip
    primary: ClassVar[str] = "accuracy"
    loss: ClassVar[str] = "cross_entropy"
    compared: ClassVar[str] = "loss=cross_entropy,focal,comp_sum(tau=1.7),ldr,aldr,z_loss"

    def outputs(self, dataset: Dataset) -> int:
        return dataset.num_classes

    def targets(self, dataset: Dataset, preprocessor: Preprocessor) -> Tensor:
        return dataset.y

    def truth(self, target: Tensor, preprocessor: Preprocessor) -> Tensor:
        return target

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        scores = forward(network, x)
        accuracy = (scores.argmax(1) == target).double().mean().item()
        nll = nn.functional.cross_entropy(scores.double(), target).item()
        return {"val_score": accuracy, "val_accuracy": accuracy, "val_nll": nll}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        probabilities = predictor.probabilities(x)
        return M.classification(probabilities, y), {"reliability": M.reliability(probabilities, y)}


class Regression:
    """A number. Losses see it standardised; metrics are in its own units."""

    like: ClassVar[str] = "regression"
    network: ClassVar[str] = "regression"
    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    head: ClassVar[str] = "linear"

    metrics: ClassVar[Mapping[str, bool]] = {"rmse": False, "mae": False, "r2": True, "noise_rmse": False}
    primary: ClassVar[str] = "rmse"
    loss: ClassVar[str] = "mse"
    compared: ClassVar[str] = "loss=mse,huber"

    def outputs(self, dataset: Dataset) -> int:
        return 1

    def targets(self, dataset: Dataset, preprocessor: Preprocessor) -> Tensor:
        return preprocessor.transform_target(dataset.y)

    def truth(self, target: Tensor, preprocessor: Preprocessor) -> Tensor:
        return preprocessor.inverse_target(target)

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        error = (to_prediction(network, forward(network, x)) - target).double()
        rmse = error.square().mean().sqrt().item() * prepared.preprocessor.target_std
        return {"val_score": -rmse, "val_rmse": rmse}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.regression(predictor.values(x), y), {}


class Depth(Regression):
    """A positive number for every pixel, of which some are not known. A position of the feature map is a row,
    whose number is the mean of its pixels; a head of this task tells each of them."""

    metrics: ClassVar[Mapping[str, bool]] = {
        "rmse": False, "abs_rel": False, "delta1": True, "noise_rmse": False
    }  # fmt: skip
    compared: ClassVar[str] = "head=linear,soft_token,soft_token(hard=True)"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        truth = self.truth(target, prepared.preprocessor)
        found = self.truth(to_maps(network, x), prepared.preprocessor)
        rmse = M.depth(found, truth)["rmse"]
        return {"val_score": -rmse, "val_rmse": rmse}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.depth(predictor.depths(x), y), {}


class MultiLabel(Classification):
    """Any number of labels out of many. Targets are lists of labels, filled up with -1."""

    like: ClassVar[str] = "multilabel"
    network: ClassVar[str] = "multilabel"
    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False

    metrics: ClassVar[Mapping[str, bool]] = {
        "p@1": True, "p@3": True, "p@5": True, "ndcg@5": True, "psp@1": True, "psp@5": True,
        "noise_p@1": True,
    }  # fmt: skip
    primary: ClassVar[str] = "p@1"
    loss: ClassVar[str] = "binary_cross_entropy"
    compared: ClassVar[str] = "loss=binary_cross_entropy,decoupled_softmax"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        precision = M.multilabel(forward(network, x), target)["p@1"]
        return {"val_score": precision, "val_p@1": precision}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.multilabel(predictor.scores(x), y, train), {}


class Ordinal(Classification):
    """Classes in order: a mistake costs the number of levels between."""

    metrics: ClassVar[Mapping[str, bool]] = {
        "mae": False, "rps": False, "kappa": True, "accuracy": True, "nll": False, "ood_auroc": True,
        "noise_mae": False,
    }  # fmt: skip
    primary: ClassVar[str] = "mae"
    compared: ClassVar[str] = "loss=cross_entropy,focal,comp_sum(tau=1.7),ldr"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        found = M.ordinal(forward(network, x).softmax(1), target)
        return {"val_score": -found["mae"], "val_mae": found["mae"], "val_nll": found["nll"]}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.ordinal(predictor.probabilities(x), y), {}


class Bags(Classification):
    """Classes, of which training and validation know only the mean of each bag of rows."""

    like: ClassVar[str] = "bags"
    loss: ClassVar[str] = "aggregate(base=ce)"
    compared: ClassVar[str] = "loss=aggregate(base=ce, rho=0),aggregate(base=ce),aggregate(base=ce, rho=1)"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        bags, means = in_bags(target, prepared.shape.bag)
        nll = AggregateLoss(rho=0.0, base="ce")(forward(network, x).double(), means, bags).item()
        return {"val_score": -nll, "val_nll": nll}


class Crowd(Classification):
    """Classes, of which training and validation know only the votes of workers. The recipe's `votes` makes
    labels of them before training."""


class Retrieval(Classification):
    """Classes of which the test rows' own never come up in training: each row is to find its like by the
    cosine of embeddings."""

    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, bool]] = {
        "map": True, "r@1": True, "r@10": True, "hubness": False, "noise_map": True,
    }  # fmt: skip
    primary: ClassVar[str] = "map"
    compared: ClassVar[str] = "loss=cross_entropy,focal,comp_sum(tau=1.7),ldr"

    def outputs(self, dataset: Dataset) -> int:
        return int(dataset.y.max()) + 1  # the classes seen in training come first

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        accuracy = (forward(network, x).argmax(1) == target).double().mean().item()
        return {"val_score": accuracy, "val_accuracy": accuracy}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        found = predictor.embeddings(x)
        return M.retrieval(found, y, predictor.normaliser(found)), {}


class Search(Classification):
    """A query is to find its document among many, which its head reads: classification over documents, of
    queries that training has not seen."""

    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    head: ClassVar[str] = "dual"
    metrics: ClassVar[Mapping[str, bool]] = {
        "mrr@10": True, "r@1": True, "r@5": True, "r@100": True, "calls": False, "noise_mrr@10": True,
    }  # fmt: skip
    primary: ClassVar[str] = "mrr@10"
    compared: ClassVar[str] = "loss=cross_entropy,focal,comp_sum(tau=1.7),ldr"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        mrr = M.search(network, x, target)["mrr@10"]
        return {"val_score": mrr, "val_mrr@10": mrr}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.search(predictor.network, x, y), {}


class SequenceTask(Classification):
    """The next token, or another one, at every position of a sequence. Every position is a row to the parts
    of classification; positions labelled `IGNORE` are left out."""

    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, bool]] = {
        "bits": False, "accuracy": True, "perplexity": False, "exact": True, "map_exact": True,
    }  # fmt: skip
    primary: ClassVar[str] = "bits"
    compared: ClassVar[str] = "loss=cross_entropy,focal,comp_sum(tau=1.7),ldr"

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        found = M.tokens(network, x, target)
        return {"val_score": -found["bits"], "val_bits": found["bits"], "val_accuracy": found["accuracy"]}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.tokens(predictor.token_scores, x, y) | predictor.of_answers(x, y), {}


class Unlearning(SequenceTask):
    """Sequences with answers, all of which training sees; some are then to be forgotten, by the recipe's
    `adapt`, and answered with something else."""

    metrics: ClassVar[Mapping[str, bool]] = {
        "selectivity": True, "retained": True, "known": False, "template": True
    }  # fmt: skip
    primary: ClassVar[str] = "selectivity"
    compared: ClassVar[str] = "adapt=gradient_ascent,none,flat,flat(divergence=tv),grad_diff,npo,dpo"

    def outputs(self, dataset: Dataset) -> int:
        return max(dataset.num_classes, int(dataset.extras["instead"].max()) + 1)

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.unlearning(predictor.network, x, y), {}


class OneClass(Classification):
    """One class, of which alone the training and validation rows are. Nothing is trained but the recipe's
    detector, on the features of the model as it is. Rows of other classes come up in the test only."""

    classes: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, bool]] = {"auroc": True, "eer": False, "fpr95": False, "noise_auroc": True}
    primary: ClassVar[str] = "auroc"
    compared: ClassVar[str] = "detect=mahalanobis,hyp_oc"

    def outputs(self, dataset: Dataset) -> int:
        return 1

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        return {"val_score": 0.0}  # without rows of other classes no model is better than another

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        score = predictor.abnormality(x)
        return M.one_class(score[y == 0], score[y == 1]), {}


class Segmentation(Classification):
    """The class of every pixel. Classes that training never saw are segmented from a few labelled images, by
    the recipe's `adapt` on the features of the trained network. A position of the feature map is a row to the
    parts of classification."""

    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, bool]] = {"miou@1": True, "miou@5": True, "miou": True}
    primary: ClassVar[str] = "miou@1"
    compared: ClassVar[str] = "adapt=prototype,repri"

    def outputs(self, dataset: Dataset) -> int:
        return int(dataset.y.max()) + 1  # the classes seen in training come first

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        miou = M.segmentation(network, x, target, prepared.shape.num_classes)
        return {"val_score": miou, "val_miou": miou}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        seen = predictor.shape.num_classes
        found = {"miou": M.segmentation(predictor.network, x, y, seen)}
        generator = seeded("tasks", predictor.recipe.seed)
        novel = M.few_shot(predictor.feature_maps(x), y, seen, predictor.adapter.segment, generator)
        return {**novel, **found}, {}


class Boxes(Classification):
    """Boxes that a detector found, several for an object. There is nothing to train: the recipe's `calibrate`
    makes of their scores those that are judged."""

    like: ClassVar[str] = "boxes"
    classes: ClassVar[bool] = False
    detects: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, bool]] = {"ap": True, "ap50": True, "ap75": True}
    primary: ClassVar[str] = "ap"
    compared: ClassVar[str] = "calibrate=soft_nms(method=hard),soft_nms(method=linear),soft_nms"

    def outputs(self, dataset: Dataset) -> int:
        return dataset.x.shape[1]  # type: ignore[union-attr]

    def validate(self, network: nn.Module, x: Tensor, target: Tensor, prepared: Prepared) -> dict[str, float]:
        ap = M.boxes(x[..., :4], forward(network, x), target)["ap"]
        return {"val_score": ap, "val_ap": ap}

    def judge(self, predictor: Predictor, x: Tensor, y: Tensor, train: Tensor | None) -> Judged:
        return M.boxes(x[..., :4], predictor.scores(x), y), {}


TASKS: dict[str, Task] = {
    "classification": Classification(),
    "ordinal": Ordinal(),
    "retrieval": Retrieval(),
    "bags": Bags(),
    "crowd": Crowd(),
    "regression": Regression(),
    "depth": Depth(),
    "multilabel": MultiLabel(),
    "sequence": SequenceTask(),
    "unlearning": Unlearning(),
    "oneclass": OneClass(),
    "segmentation": Segmentation(),
    "boxes": Boxes(),
    "search": Search(),
}


def task_of(dataset: Dataset) -> Task:
    """The task of a data set. Raises InputError for one that the engine does not train."""
    if dataset.task not in TASKS:
        known = ", ".join(TASKS)
        raise InputError(f"data={dataset.name} is a {dataset.task} task; comparisons take {known}.")
    return TASKS[dataset.task]


def check_metric(metric: str | None, task: str) -> str:
    """`metric`, or the task's usual one. Raises InputError for one that the task does not have."""
    known = TASKS[task].metrics
    if metric is None:
        return TASKS[task].primary
    if metric not in known:
        raise InputError(
            f"metric={metric!r} is not a metric of {task}.{nearest(metric, known)}"
            f" Metrics: {', '.join(known)}."
        )
    return metric


def in_bags(target: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The bag of each row and the target of each bag, where each `size` rows in turn are a bag."""
    return torch.arange(len(target), device=target.device) // size, target[::size]


def to_prediction(network: Any, scores: Tensor) -> Tensor:
    """Standardised predictions (batch,) of a regression network from its scores, or (batch, pixels) of a head
    that tells many."""
    head = network.head
    return head.predict(scores) if hasattr(head, "predict") else scores[:, 0]


def to_maps(network: Any, x: Tensor) -> Tensor:
    """Standardised depths (images, h, w) of the pixels of preprocessed images: those that the head tells, or
    one for each position of the feature map, enlarged bilinearly."""
    size: tuple[int, int] = (x.shape[2], x.shape[3])
    rows, columns = network.grid

    def some(x: Tensor) -> Tensor:
        values = to_prediction(network, network(x))
        if values.ndim == 1:
            return M.resize(values.view(len(x), 1, rows, columns), size)[:, 0]
        parts = values.view(len(x), rows * columns, -1, 1)
        return merge_windows(parts, (size[0] // rows, size[1] // columns), size)[..., 0]

    return forward(some, x)
