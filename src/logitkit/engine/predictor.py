"""A trained model as its user sees it: inputs in, decisions and probabilities out; saved and loaded."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import logitkit
from logitkit import catalog, data
from logitkit.data import Preprocessor
from logitkit.data.base import IGNORE, OF_TOKENS, seeded
from logitkit.engine import metrics as M
from logitkit.engine.answers import candidates
from logitkit.engine.checkpoint import load_state, save_state, write_atomically
from logitkit.engine.inference import forward
from logitkit.engine.network import Network, Shape, build_network
from logitkit.engine.recipe import PartSpec, Recipe
from logitkit.engine.tasks import TASKS, to_maps, to_prediction
from logitkit.engine.train import Prepared, threads
from logitkit.engine.unlearning import unlearned
from logitkit.errors import InputError
from logitkit.ops.sphere import cosine

FORMAT = 1
ADAPTED = {"segmentation": "prototype", "unlearning": "none"}
"""Tasks that the recipe's `adapt` is for, and what "auto" stands for."""
SCORES = 2**24
"""Calibrators of tokens are fitted on so many scores at most."""
NOISE = 0.5  # standard deviation of the input noise of `noise_accuracy`, in standardised units


class Predictor:
    """A network with its preprocessing, calibration and detector.

    `predict_proba` takes what `logitkit.data.load` takes, or raw rows as a `Dataset`.
    """

    def __init__(
        self,
        recipe: Recipe,
        shape: Shape,
        network: Network,
        preprocessor: Preprocessor,
        class_names: tuple[str, ...] | None,
        calibrators: list[Any],
        detector: Any,
        bank: Tensor | None = None,
    ) -> None:
        self.recipe, self.shape, self.network = recipe, shape, network.eval()
        self.preprocessor, self.class_names = preprocessor, class_names
        self.calibrators, self.detector, self.bank = calibrators, detector, bank
        self.metrics: dict[str, float] = {}

    @classmethod
    def fit(cls, recipe: Recipe, network: Network, prepared: Prepared) -> Predictor:
        """Fit the recipe's calibrators on the validation split and its detector on the training split. For
        retrieval, where calibrators are fitted to what is searched, keep the validation rows' embeddings. A
        network that is to forget is copied, and the copy forgets. Raises `Diverged` where that leads
        nowhere."""
        network.eval()
        part = build_adapter(recipe, prepared.shape)
        if prepared.shape.task == "unlearning" and part is not None:
            needs = catalog.get("adapt", recipe.adapt.name).needs
            facts = *prepared.train, prepared.train_set.extras["instead"]
            network = unlearned(network, part, needs, *facts, seeded("unlearning", recipe.seed))
        calibrators = build_calibrators(recipe, prepared.shape)
        x_val, y_val = prepared.val
        bank = None
        if calibrators and prepared.shape.task == "retrieval":
            bank, calibrators = forward(network.embed, x_val), []
        elif prepared.shape.task == "sequence":
            _fit_on_sequences(calibrators, recipe, network, prepared)
        elif calibrators:
            scores = forward(network, x_val)
            for calibrator, spec in zip(calibrators, recipe.calibrate, strict=True):
                seen = _seen(calibrator, spec, network, x_val)
                calibrator.fit(scores, y_val, **seen)
                scores = _log(calibrator.transform(scores, **seen))
        detector = None
        if TASKS[prepared.shape.task].detects:
            detector = build_detector(recipe.detect, prepared.shape)
            view = _detector_view(catalog.get("detect", recipe.detect.name).needs, network)
            labels = None if prepared.shape.task == "bags" else prepared.train[1]
            detector.fit(forward(view, prepared.train[0]), labels)
        return cls(
            recipe,
            prepared.shape,
            network,
            prepared.preprocessor,
            prepared.class_names,
            calibrators,
            detector,
            bank,
        )

    def scores(self, x: Tensor) -> Tensor:
        """Uncalibrated scores (batch, outputs) of preprocessed inputs.

        Computed with the recipe's number of threads, so that they are the same bits in every process.
        """
        with threads(self.recipe.threads):
            return forward(self.network, x)

    def probabilities(self, x: Tensor) -> Tensor:
        """Calibrated class probabilities (batch, classes) of preprocessed inputs."""
        scores = self.scores(x)
        for calibrator, spec in zip(self.calibrators, self.recipe.calibrate, strict=True):
            scores = _log(calibrator.transform(scores, **_seen(calibrator, spec, self.scores, x)))
        return scores.softmax(1)

    def token_scores(self, x: Tensor) -> Tensor:
        """Scores (rows * tokens, vocabulary) of every token of sequences, calibrated."""
        pairs = zip(self.calibrators, self.recipe.calibrate, strict=True)
        of_tokens = [calibrator for calibrator, spec in pairs if not _weighs_answers(spec)]
        with threads(self.recipe.threads):
            return _token_scores(self.network, of_tokens)(x)

    def of_answers(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """`exact` and `map_exact` of the answers that a calibrator of whole answers chooses from, where a
        reference that was not drawn is never right; nothing without one. y labels the positions to answer."""
        if not self.calibrators or not _weighs_answers(self.recipe.calibrate[-1]):
            return {}
        found = candidates(self.token_scores, x, y, seeded("answers", self.recipe.seed))
        return M.whole(self.calibrators[-1].transform(found.utilities, lengths=found.lengths), found.right)

    def values(self, x: Tensor) -> Tensor:
        """Predictions (batch,) of a regression model in the units of the target."""
        with torch.no_grad():
            return self.preprocessor.inverse_target(to_prediction(self.network, self.scores(x)))

    def depths(self, x: Tensor) -> Tensor:
        """Predicted depths (images, height, width) of preprocessed images in the units of the target."""
        with threads(self.recipe.threads):
            return self.preprocessor.inverse_target(to_maps(self.network, x))

    def embeddings(self, x: Tensor) -> Tensor:
        """Pooled features (batch, features) of preprocessed inputs, to be compared by their cosine."""
        with threads(self.recipe.threads):
            return forward(self.network.embed, x)

    def normaliser(self, gallery: Tensor) -> Callable[[Tensor], Tensor]:
        """What the recipe's `calibrate` makes of cosines (queries, gallery) to the embeddings `gallery`
        (rows, features); the cosines as they are without one.

        Both of its banks are the embeddings of the validation rows: the network was not fitted to them, as it
        was to the training rows, whose embeddings lie closer to those of their class than new ones do. A row
        of the bank is left out for a gallery row that is itself, with a cosine of 1 up to rounding, unless
        none would be left.
        """
        if self.bank is None:
            return lambda similarities: similarities
        bank = cosine(self.bank, gallery)
        itself = bank > 1 - 1e-6
        bank = bank.masked_fill(itself & ~itself.all(dim=0), -torch.inf)
        (rule,) = build_calibrators(self.recipe, self.shape)
        return rule.fit(bank, bank).transform

    def similarities(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """How alike preprocessed inputs are, (queries, gallery): cosines of embeddings, after the recipe's
        `calibrate`. To be ranked within each row."""
        found = self.embeddings(gallery)
        with threads(self.recipe.threads):
            return self.normaliser(found)(cosine(self.embeddings(queries), found))

    def found(self, x: Tensor, k: int = 5) -> Tensor:
        """The rows (batch, k) of the documents that answer preprocessed queries best, best first."""
        with threads(self.recipe.threads):
            return torch.cat([self.network.find(some, k).items for some in x.split(M.QUERIES)])

    def feature_maps(self, x: Tensor) -> Tensor:
        """The backbone's last feature maps of preprocessed inputs."""
        with threads(self.recipe.threads):
            return forward(self.network.maps, x)

    def classes_of_pixels(self, x: Tensor) -> Tensor:
        """The most probable class (batch, height, width) of each pixel, of those seen in training."""
        maps = self.scores(x).view(len(x), *self.network.grid, self.shape.num_classes)
        return M.resize(maps.movedim(-1, 1), self.shape.input_shape[1:]).argmax(1)

    @property
    def adapter(self) -> Any:
        """The recipe's `adapt`."""
        return build_adapter(self.recipe, self.shape)

    def abnormality(self, x: Tensor) -> Tensor:
        """The detector's score (batch,) of preprocessed inputs: higher is more abnormal."""
        view = _detector_view(catalog.get("detect", self.recipe.detect.name).needs, self.network)
        with threads(self.recipe.threads):
            return self.detector.score(forward(view, x))

    def predict_proba(self, source: Any) -> Tensor:
        """Class probabilities (batch, classes) for anything `logitkit.data.load_unlabelled` takes."""
        if not TASKS[self.shape.task].classes:
            raise InputError(f"a {self.shape.task} model has no class probabilities; use predict.")
        return self.probabilities(self.inputs(source))

    def predict(self, source: Any) -> Tensor | list[str]:
        """The most probable class's (or best label's) name per row; for regression the predicted value, for
        retrieval the embedding (rows, features; see `similarities`), for sequences the most probable token of
        each position, for segmentation the class (rows, h, w) of each pixel, for depth its depth, for one
        class how abnormal a row is, for boxes their new scores, for a search the rows (rows, 5) of the best
        documents."""
        x = self.inputs(source)
        if self.shape.task == "regression":
            return self.values(x)
        if self.shape.task == "depth":
            return self.depths(x)
        if self.shape.task == "retrieval":
            return self.embeddings(x)
        if self.shape.task == "search":
            return self.found(x)
        if self.shape.task == "oneclass":
            return self.abnormality(x)
        if self.shape.task == "boxes":
            return self.scores(x)
        if self.shape.task == "segmentation":
            return self.classes_of_pixels(x)
        if self.shape.task in OF_TOKENS:
            return self.scores(x).argmax(1).view(x.shape)
        if self.shape.task == "multilabel":
            return [self.names[k] for k in self.scores(x).argmax(1).tolist()]
        return [self.names[k] for k in self.probabilities(x).argmax(1).tolist()]

    @property
    def names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.class_names or tuple(str(k) for k in range(self.shape.num_classes))

    def inputs(self, source: Any) -> Tensor:
        """Preprocessed inputs from a data source, a `Dataset`, or a tensor of raw rows."""
        return self.preprocessor.transform(data.load_unlabelled(source, like=self.preprocessor))

    def evaluate(
        self, x: Tensor, y: Tensor, train: tuple[Tensor, Tensor] | None = None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Every metric of the task on preprocessed inputs, and the curves behind them.

        Labels are classes, lists of labels, or targets in their own units. With the training rows `train`,
        also what needs them: the primary metric under Gaussian input noise of standard deviation 0.5 (inputs
        are standardised), and `ood_auroc` against `logitkit.data.out_of_distribution`.
        """
        task = TASKS[self.shape.task]
        found, details = task.judge(self, x, y, None if train is None else train[1])
        if train is None:
            return found, details
        under_noise = f"noise_{task.primary}"
        if under_noise in task.metrics and x.is_floating_point():
            generator = torch.Generator().manual_seed(self.recipe.seed)
            noisy = x + NOISE * torch.randn(x.shape, generator=generator).to(x)
            found[under_noise] = task.judge(self, noisy, y, None)[0][task.primary]
        if self.detector is not None and "ood_auroc" in task.metrics:
            outside = self.abnormality(data.out_of_distribution(x, train[0], self.recipe.seed))
            inside = self.abnormality(x)
            found["ood_auroc"] = M.auroc(inside, outside)
            details["ood"] = M.histogram(inside, outside)
        return found, details

    def save(self, folder: str | Path) -> None:
        """Write `recipe.yaml`, `model.safetensors` and `about.json`; `logitkit.load` reads them back."""
        folder = Path(folder)
        if not all(isinstance(m, nn.Module) for m in (*self.calibrators, self.detector) if m is not None):
            raise InputError("only calibrators and detectors that are torch modules can be saved.")
        meta, tensors = self.preprocessor.state()
        state = {
            "network": self.network.state_dict(),
            "preprocessor": tensors,
            "calibrators": [c.state_dict() for c in self.calibrators],
            "detector": self.detector.state_dict() if self.detector is not None else None,
            "bank": self.bank,
        }
        save_state(folder / "model.safetensors", state)
        about = {
            "format": FORMAT,
            "logitkit": logitkit.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "preprocessor": meta,
            "class_names": self.class_names,
            "shape": vars(self.shape),
            "metrics": self.metrics,
        }
        write_atomically(folder / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json")).encode())
        # last: a folder without it is not a model, so an interrupted save is never mistaken for one
        write_atomically(folder / "about.json", json.dumps(about, indent=1).encode())


def load(folder: str | Path, *, trust_code: bool = False) -> Predictor:
    """The model that `Predictor.save` or `logitkit compare` wrote to `folder`.

    trust_code: allow a recipe that names `module:attribute` to import that module.

    Raises InputError when the folder is not a model, was written by a newer logitkit, holds a pickle where
    safetensors are expected, or needs code you have not allowed.
    """
    folder = Path(folder)
    if not (folder / "about.json").is_file():
        raise InputError(f"{folder} is not a saved model: it has no about.json.")
    try:
        about = json.loads((folder / "about.json").read_text())
        recipe = Recipe.of(**yaml.safe_load((folder / "recipe.yaml").read_text()))
    except (OSError, json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{folder} is a damaged model: {error}.") from error
    if about.get("format", 0) > FORMAT:
        raise InputError(
            f"{folder} was written by logitkit {about.get('logitkit')} in format {about['format']}; this is"
            f" logitkit {logitkit.__version__}, which reads up to format {FORMAT}. Upgrade logitkit."
        )
    if ":" in recipe.model.name and not trust_code:
        raise InputError(
            f"{folder} needs the code {recipe.model.name!r}: pass trust_code=True (--trust-code) to import it"
            " if you trust whoever wrote the folder."
        )
    state = load_state(folder / "model.safetensors")
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["shape"].items()}
    shape = Shape(**known)
    with torch.random.fork_rng():
        network = build_network(recipe, shape)
        calibrators = build_calibrators(recipe, shape) if state["calibrators"] else []
        detector = None
        if state["detector"] is not None:
            detector = build_detector(recipe.detect, shape)
            detector.load_state_dict(state["detector"])
    network.load_state_dict(state["network"])
    for calibrator, saved in zip(calibrators, state["calibrators"], strict=True):
        calibrator.load_state_dict(saved)
    names = tuple(about["class_names"]) if about["class_names"] else None
    predictor = Predictor(
        recipe, shape, network, Preprocessor.from_state(about["preprocessor"], state["preprocessor"]), names,
        calibrators, detector, state.get("bank"),
    )  # fmt: skip
    predictor.metrics = about["metrics"]
    return predictor


def build_calibrators(recipe: Recipe, shape: Shape) -> list[Any]:
    """The recipe's chain of calibrators; none for boxes, where they are the network. Raises InputError for
    one that cannot take data of `shape`, or what another one leaves of them."""
    if shape.task == "boxes":
        return []
    task = TASKS[shape.task]
    able = {shape.task, task.like} if task.classes or shape.task == "sequence" else {shape.task}
    for spec in recipe.calibrate:
        card = catalog.get("calibrate", spec.name)
        if not able & card.tasks:
            known = " or ".join(sorted(card.tasks))
            raise InputError(f"calibrate={spec} is for {known}; this is a {shape.task} task.")
        if "views" in card.needs and len(shape.input_shape) != 3:
            raise InputError(
                f"calibrate={spec} needs images (channels, height, width); the inputs are"
                f" {shape.input_shape}."
            )
        if _weighs_answers(spec) and not shape.answer:
            raise InputError(
                f"calibrate={spec} weighs whole answers, and needs rows of a prompt and then one answer, each"
                " token of which is the next input."
            )
    for spec in recipe.calibrate[:-1]:
        if _weighs_answers(spec):
            raise InputError(f"calibrate={spec} weighs whole answers, and must come last in a chain.")
    if shape.task == "retrieval" and len(recipe.calibrate) > 1:
        chain = " + ".join(map(str, recipe.calibrate))
        raise InputError(f"calibrate={chain} normalises similarities more than once; name one.")
    return [catalog.create("calibrate", spec.name, **spec.kwargs) for spec in recipe.calibrate]


def build_adapter(recipe: Recipe, shape: Shape) -> Any:
    """The recipe's `adapt`; None for none. Raises InputError for one that cannot do the task, or where
    there is nothing to do."""
    spec, task = recipe.adapt, shape.task
    if task not in ADAPTED:
        if spec.name != "auto":
            raise InputError(
                f"adapt={spec} needs pixels, or facts to forget; data={recipe.data} is a {task} task."
            )
        return None
    if spec.name == "auto":
        spec = PartSpec(name=ADAPTED[task])
    able = [card.name for card in catalog.cards("adapt") if task in card.tasks]
    if task == "unlearning":
        able.append("none")
    if spec.name not in able:
        raise InputError(f"adapt={spec} does no {task}. Use one of {', '.join(able)}.")
    return None if spec.name == "none" else catalog.create("adapt", spec.name, **spec.kwargs)


def build_detector(spec: PartSpec, shape: Shape) -> Any:
    """The detector `spec` for data of `shape`. Raises InputError for one that needs labels nobody knows, or
    scores of classes where there is one."""
    if shape.task == "oneclass" and "logits" in catalog.get("detect", spec.name).needs:
        raise InputError(
            f"detect={spec} reads the scores of classes, and one class has none; use one on features."
        )
    if shape.task == "bags" and "labels" in catalog.get("detect", spec.name).needs:
        raise InputError(f"detect={spec} needs the label of each row, and bags know only their means.")
    return catalog.create("detect", spec.name, **spec.kwargs)


def _seen(
    calibrator: Any, spec: PartSpec, network: Callable[[Tensor], Tensor], x: Tensor
) -> dict[str, Tensor]:
    """What the calibrator needs besides the scores of `x`."""
    if "views" not in catalog.get("calibrate", spec.name).needs:
        return {}
    return {"views": torch.stack([forward(network, view) for view in calibrator.make_views(x)])}


def _fit_on_sequences(calibrators: list[Any], recipe: Recipe, network: Network, prepared: Prepared) -> None:
    """Fit the recipe's calibrators on validation tokens, or on what is said to validation prompts."""
    x, y = prepared.val
    for at, (calibrator, spec) in enumerate(zip(calibrators, recipe.calibrate, strict=True)):
        scores = _token_scores(network, calibrators[:at])
        if _weighs_answers(spec):
            found = candidates(scores, x, y, seeded("candidates", recipe.seed), with_reference=True)
            first = torch.zeros(len(x), dtype=torch.int64)
            calibrator.fit(found.utilities, first, lengths=found.lengths)
        else:
            most = max(1, SCORES // (x.shape[1] * prepared.shape.num_classes))
            some = torch.randperm(len(x), generator=seeded("calibrate", recipe.seed))[:most]
            kept = y[some] != IGNORE
            calibrator.fit(forward(scores, x[some])[kept.flatten()], y[some][kept])


def _weighs_answers(spec: PartSpec) -> bool:
    """Whether the calibrator takes scores of whole answers, and not of tokens."""
    return "lengths" in catalog.get("calibrate", spec.name).needs


def _token_scores(network: Network, calibrators: list[Any]) -> Callable[[Tensor], Tensor]:
    """The network followed by those of the calibrators that take tokens."""

    def scores(x: Tensor) -> Tensor:
        found = network(x)
        for calibrator in calibrators:
            found = _log(calibrator.transform(found))
        return found

    return scores


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _detector_view(needs: tuple[str, ...], network: Network) -> Any:
    return network.embed if "features" in needs else network
