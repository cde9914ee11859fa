"""Backbone, head and normaliser as one module, built from a recipe for a data set."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from logitkit import catalog
from logitkit.contrast.anncur import Found
from logitkit.data.base import OF_PIXELS, OF_TOKENS
from logitkit.engine.recipe import PartSpec, Recipe, card_of
from logitkit.engine.tasks import TASKS
from logitkit.errors import InputError, nearest
from logitkit.ops.grid import windows


@dataclass(frozen=True)
class Shape:
    """What a network must fit: its inputs, its outputs, and the task. bag: how many rows share a target.
    answer: most tokens that are said after a prompt, 0 where that is not how the sequences are made.
    documents: how many there are to search, and their features."""

    input_shape: tuple[int, ...]
    task: str
    num_classes: int
    num_samples: int
    vmin: float = -1.0
    vmax: float = 1.0
    class_names: tuple[str, ...] | None = None
    vocabulary: int | None = None
    bag: int = 1
    answer: int = 0
    documents: tuple[int, int] | None = None

    def context(self, in_features: int | None = None) -> dict[str, Any]:
        """The arguments that `catalog.create` offers to a part."""
        known = {
            "input_shape": self.input_shape, "num_classes": self.num_classes, "num_samples": self.num_samples,
            "vmin": self.vmin, "vmax": self.vmax, "class_names": self.class_names,
        }  # fmt: skip
        if self.vocabulary is not None:
            known["vocabulary"] = self.vocabulary
        return known if in_features is None else {**known, "in_features": in_features}


class Outputs(NamedTuple):
    """scores: what losses and calibrators take; raw: the head's, before the normaliser; embeddings: pooled
    features (batch, out_features); features: the backbone's last feature map, before pooling."""

    scores: Tensor
    raw: Tensor
    embeddings: Tensor
    features: Tensor


class Network(nn.Module):
    """backbone -> pooled features -> head -> log-weights of the normaliser.

    `forward(x)` gives the scores that losses and calibrators take: (batch, classes), or (batch, 1) for
    regression. `embed(x)` gives the pooled features. With `per_token` nothing is pooled: every position of
    the feature map, (batch, tokens, dim) or (batch, dim, *grid), is a row of its own, (batch * tokens, ...).
    In a search the classes are documents; `finder` is the recipe's `search`, None where all are scored.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        normalizer: nn.Module | None,
        head_takes_target: bool,
        per_token: bool = False,
        grid: tuple[int, ...] = (),
        finder: Any = None,
    ) -> None:
        super().__init__()
        self.per_token, self.grid = per_token, grid
        self.finder: Any = finder
        self.backbone = backbone
        self.head = head
        self.normalizer = normalizer
        self.head_takes_target = head_takes_target

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        return self.outputs(x, target).scores

    def outputs(self, x: Tensor, target: Tensor | None = None, keep: Tensor | None = None) -> Outputs:
        """The scores, and what they came from; of the rows in the mask `keep`, to which `target` belongs."""
        features, pooled = self.hidden(x, keep)
        raw = self.head(pooled, target=target) if self.head_takes_target else self.head(pooled)
        scores = raw if self.normalizer is None else self.normalizer.log(raw)  # type: ignore[operator]
        return Outputs(scores, raw, pooled, features)

    def hidden(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The backbone's last feature map, and the pooled features; of the rows in the mask `keep`."""
        features = self.maps(x)
        if not self.per_token:
            return features, self.backbone.pool(features)  # type: ignore[operator]
        rows = (features.flatten(2).transpose(1, 2) if self.grid else features).flatten(0, 1)
        rows = rows if keep is None else rows[keep]
        return rows, rows

    @torch.no_grad()
    def find(self, x: Tensor, k: int) -> Found:
        """The best `k` documents of each query, or as many as are scored: all until the finder is fitted."""
        features = self.embed(x)
        finder = self.finder
        if finder is None or not finder.fitted:
            scores = self.head(features)
            best = scores.topk(min(k, scores.shape[1]), dim=1)
            return Found(best.indices, best.values, scores.shape[1])
        head: Any = self.head
        return finder.search(lambda rows: head.score(features, rows), min(k, finder.budget))

    def maps(self, x: Tensor) -> Tensor:
        """The backbone's last feature map."""
        return self.backbone.forward_features(x)  # type: ignore[operator]

    def labels(self, y: Tensor) -> Tensor:
        """(batch, tokens) labels of the rows of each example, with `per_token`: of pixels the nearest's; of
        depths the mean of the patch's known ones, NaN where none is, or for a head that tells the patch all
        of them, (batch, tokens, pixels)."""
        if not self.grid:
            return y
        rows, columns = self.grid
        if hasattr(self.head, "pixels"):
            return windows(y[..., None], (y.shape[1] // rows, y.shape[2] // columns))[..., 0]
        if y.is_floating_point():
            both = torch.stack([y.nan_to_num(), (~y.isnan()).to(y)], dim=1)
            total, known = nn.functional.adaptive_avg_pool2d(both, (rows, columns)).unbind(dim=1)
            return (total / known).flatten(1)
        return nn.functional.interpolate(y[:, None].double(), size=self.grid).long().flatten(1)

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features (batch, out_features)."""
        return self.hidden(x)[1]


class _Wrapped(nn.Module):
    """A user's own module as a backbone: its output, flattened, is the features."""

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = module
        was = module.training
        with torch.no_grad():
            module.eval()
            out = module(torch.zeros(1, *input_shape))
            module.train(was)
        self.out_features = out.flatten(1).shape[1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.module(x)

    def pool(self, features: Tensor) -> Tensor:
        return features.flatten(1)


class Suppression(nn.Module):
    """A recipe's `calibrate` on boxes (batch, n, 5) of corners and a score: the scores (batch, n) it leaves.
    Boxes of different images do not meet."""

    finder = None

    def __init__(self, rules: list[nn.Module]) -> None:
        super().__init__()
        self.rules = nn.ModuleList(rules)

    def forward(self, x: Tensor) -> Tensor:
        corners, scores = x[..., :4].flatten(0, 1), x[..., 4].flatten()
        image = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
        for rule in self.rules:
            scores = rule.transform(corners, scores, image)  # type: ignore[operator]
        return scores.view(x.shape[:2])


def locate(path: str, what: str) -> Any:
    """The object at `module:attribute`."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{what}={path}: cannot import {module_name!r} ({error}).") from None
    if not hasattr(module, attribute):
        raise InputError(
            f"{what}={path}: {module_name!r} has no {attribute!r}.{nearest(attribute, dir(module))}"
        )
    return getattr(module, attribute)


def build_backbone(recipe: Recipe, shape: Shape) -> Any:
    """A part of `models`, or the user's `module:attribute`: a callable that returns a module; with the
    recipe's attention and layers.

    The callable gets the recipe's arguments, and `input_shape` and `vocabulary` if it asks for them. A module
    without `forward_features` and `pool` is wrapped: its flattened output is the features.
    """
    spec, chosen = recipe.model, _chosen_layers(recipe)
    if ":" not in spec.name:
        _check_places(recipe, chosen, catalog.get("models", spec.name).build)
        return catalog.create("models", spec.name, **{**shape.context(), **spec.kwargs, **chosen})
    make = locate(spec.name, "model")
    takes = inspect.signature(make).parameters if callable(make) else {}
    _check_places(recipe, chosen, make)
    known = {k: v for k, v in shape.context().items() if k in ("input_shape", "vocabulary") and k in takes}
    known |= chosen
    module = make(**known, **spec.kwargs) if callable(make) and not isinstance(make, nn.Module) else make
    if not isinstance(module, nn.Module):
        raise InputError(f"model={spec}: expected a torch.nn.Module, got {type(module).__name__}.")
    return (
        module
        if hasattr(module, "forward_features") and hasattr(module, "pool")
        else _Wrapped(module, shape.input_shape)
    )


def _chosen_layers(recipe: Recipe) -> dict[str, Callable[..., nn.Module]]:
    """What the recipe puts into the model: the model's argument -> what builds the layer."""
    found: dict[str, Callable[..., nn.Module]] = {}
    for slot, standard in (("attention", "softmax"), ("layers", "standard")):
        spec = getattr(recipe, slot)
        if spec.name == standard and not spec.args:
            continue
        card = card_of(slot, spec)
        assert card is not None
        places = "attention" if slot == "attention" else str(card.replaces)
        found |= dict.fromkeys(places.split("+"), functools.partial(card.build, **spec.kwargs))
    return found


def _check_places(recipe: Recipe, chosen: Mapping[str, Any], model: Any) -> None:
    """Raise InputError for a layer that the model has no place for. A model of the catalogue names its places
    by arguments that are keywords only, the user's own by any."""
    takes = inspect.signature(model).parameters if callable(model) else {}
    for place in chosen:
        if place not in (takes if ":" in recipe.model.name else _keywords(model)):
            slot = "attention" if place == "attention" else "layers"
            able = [c.name for c in catalog.cards("models") if place in _keywords(c.build)]
            raise InputError(
                f"{slot}={getattr(recipe, slot)} replaces a model's {place}, and model={recipe.model} has no"
                f" place for it; a model that has is {' or '.join(able)}."
            )


def _keywords(build: Callable[..., Any]) -> list[str]:
    """Names of the arguments that can be given by keyword only."""
    return [k for k, p in inspect.signature(build).parameters.items() if p.kind is p.KEYWORD_ONLY]


def _check_reads(spec: PartSpec, shape: Shape) -> None:
    """Raise InputError for a model that reads numbers where the data are tokens, or the other way round."""
    if ":" in spec.name:
        return
    reads_tokens = "vocabulary" in inspect.signature(catalog.get("models", spec.name).build).parameters
    if shape.vocabulary is not None and not reads_tokens:
        raise InputError(f"model={spec} cannot read tokens; use model=transformer.")
    if shape.vocabulary is None and reads_tokens:
        raise InputError(f"model={spec} reads tokens, and the data hold none.")


def build_suppression(recipe: Recipe, shape: Shape) -> Suppression:
    """What takes the place of a network for boxes: the recipe's `calibrate`. Raises InputError for others."""
    rules = []
    for spec in recipe.calibrate:
        card = catalog.get("calibrate", spec.name)
        if "boxes" not in card.tasks:
            raise InputError(f"calibrate={spec} is for {' or '.join(sorted(card.tasks))}, not for boxes.")
        rules.append(catalog.create("calibrate", spec.name, **spec.kwargs))
    return Suppression(rules)


def build_network(recipe: Recipe, shape: Shape, documents: Tensor | None = None) -> Any:
    """The network of `recipe` for data of `shape`, initialised from the global seed.

    documents: those of a search; zeros, whose place a saved state takes, without.
    """
    _check_trained(recipe, shape)
    finder = build_search(recipe, shape)
    if shape.task == "boxes":
        return build_suppression(recipe, shape)
    _check_reads(recipe.model, shape)
    usual = TASKS[shape.task].network
    for slot, room, able in (
        ("model", "models", {"sequence"} if shape.task in OF_TOKENS else {usual}),
        ("head", "heads", {"search"} if shape.task == "search" else {usual, shape.task}),
    ):
        spec = getattr(recipe, slot)
        if ":" not in spec.name and not able & catalog.get(room, spec.name).tasks:
            hint = f" Use one of {_names(room, 'search')}." if shape.task == "search" else ""
            raise InputError(f"{slot}={spec} cannot do {shape.task}; data={recipe.data} asks for it.{hint}")
    backbone = build_backbone(recipe, shape)
    card = catalog.get("heads", recipe.head.name)
    place = shape.context(int(backbone.out_features))
    if shape.documents is not None:
        place["documents"] = torch.zeros(shape.documents) if documents is None else documents
    grid = _grid(recipe, backbone, shape) if shape.task in OF_PIXELS else ()
    if shape.task == "depth" and "depth" in card.tasks:
        place["pixels"] = _pixels(recipe, grid, shape)
    head = catalog.create("heads", recipe.head.name, **{**place, **recipe.head.kwargs})
    softmax = catalog.get("softmax", recipe.softmax.name)
    plain = softmax.name == "softmax" and not recipe.softmax.args
    if not plain and TASKS[shape.task].network != "classification":
        raise InputError(
            f"softmax={recipe.softmax} needs classes; data={recipe.data} is a {shape.task} task."
        )
    known = {**shape.context(), **recipe.softmax.kwargs}
    normalizer = None if plain else catalog.create("softmax", softmax.name, **known)
    per_token = shape.task in (*OF_TOKENS, *OF_PIXELS)
    return Network(backbone, head, normalizer, "target" in card.needs, per_token, grid, finder)


def build_search(recipe: Recipe, shape: Shape) -> Any:
    """The recipe's `search`; None where every document is scored. Raises InputError for a part that does not
    search, one that has too few documents for its settings, and where there are none."""
    spec = recipe.search
    if spec == Recipe.model_fields["search"].default:
        return None
    if shape.documents is None:
        raise InputError(f"search={spec} needs documents; data={recipe.data} is a {shape.task} task.")
    card = card_of("search", spec)
    if card is None:
        raise InputError(f"search={spec}: scoring every document has no settings.")
    if "search" not in card.tasks:
        raise InputError(f"search={spec} does not search. Use one of exact, {_names('contrast', 'search')}.")
    finder = catalog.create("contrast", card.name, **spec.kwargs)
    if not finder.anchors < finder.budget <= shape.documents[0]:
        raise InputError(
            f"search={spec} scores {finder.anchors} anchors within a budget of {finder.budget}, of which"
            f" data={recipe.data} has {shape.documents[0]}: give anchors < budget <= documents."
        )
    return finder


def _names(room: str, task: str) -> str:
    """The room's parts for `task`."""
    return ", ".join(card.name for card in catalog.cards(room) if task in card.tasks)


def _check_trained(recipe: Recipe, shape: Shape) -> None:
    """Raise InputError for a choice of what trains, or is trained, where nothing is."""
    if TASKS[shape.task].trains:
        return
    idle = ["teacher", "head", "softmax", "loss", "regularize", "optimizer", "algorithm"]
    if shape.task == "boxes":
        idle += ["model", "attention", "layers"]
    for slot in idle:
        if getattr(recipe, slot) != Recipe.model_fields[slot].default:
            raise InputError(
                f"{slot}= has no effect: data={recipe.data} is a {shape.task} task, which trains nothing."
            )


def _grid(recipe: Recipe, backbone: Any, shape: Shape) -> tuple[int, ...]:
    """Height and width of the backbone's feature map. Raises InputError if it has none."""
    with torch.no_grad():
        features = backbone.forward_features(torch.zeros(1, *shape.input_shape))
    if features.ndim != 4:
        raise InputError(
            f"model={recipe.model} has no map of features over the image, which a {shape.task} task needs;"
            " use model=cnn."
        )
    return tuple(features.shape[2:])


def _pixels(recipe: Recipe, grid: tuple[int, ...], shape: Shape) -> int:
    """How many pixels of the image a position of the feature map stands for. Raises InputError if the map
    does not divide the image."""
    (height, width), (rows, columns) = shape.input_shape[1:], grid
    if height % rows or width % columns:
        raise InputError(
            f"head={recipe.head} tells a patch of pixels for each position, and the {rows}x{columns}"
            f" positions of model={recipe.model} do not divide images of {height}x{width} pixels."
        )
    return height * width // (rows * columns)
