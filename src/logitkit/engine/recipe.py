"""A recipe: one choice of part per slot, plus data, budget and seed. A validated, hashable value."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from logitkit import catalog
from logitkit.errors import InputError, nearest
from logitkit.registry import Card

SPEC = re.compile(
    r"^\s*(?:(?P<weight>[0-9.eE+-]+)\s*\*)?\s*(?P<name>[\w.:/-]+)\s*(?:\((?P<args>.*)\))?\s*$", re.DOTALL
)


class PartSpec(BaseModel):
    """A part and the arguments that differ from its defaults, written `name(arg=value, ...)`.

    `name` is a part's name or alias, or `module:attribute` for the user's own. `weight` multiplies a
    regulariser: `0.1*z_loss`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    args: tuple[tuple[str, Any], ...] = ()
    weight: float = 1.0

    @classmethod
    def parse(cls, text: Any) -> PartSpec:
        """`"ldr(lam=0.1)"` -> PartSpec. Values are Python literals; bare words are strings. A class or
        function of the user's becomes the `module:attribute` it can be imported from."""
        if isinstance(text, PartSpec):
            return text
        if callable(text):
            if not hasattr(text, "__qualname__"):
                raise InputError(
                    f"give the class {type(text).__name__} or a function that builds one, not an instance:"
                    " every seed starts from a new one."
                )
            if "<" in text.__qualname__:
                raise InputError(
                    f"{text.__qualname__} cannot be found by name in another process: define it at the top"
                    " level of a module."
                )
            return cls(name=f"{text.__module__}:{text.__qualname__}")
        match = SPEC.match(text) if isinstance(text, str) else None
        if not match:
            raise InputError(f"cannot read the part {text!r}: write `name` or `name(argument=value, ...)`.")
        args = []
        for item in split_outside(match["args"] or ""):
            key, sep, value = item.partition("=")
            if not sep or not key.strip().isidentifier():
                raise InputError(f"cannot read {item.strip()!r} in {text!r}: write `argument=value`.")
            args.append((key.strip(), literal(value.strip())))
        return cls(name=match["name"], args=tuple(sorted(args)), weight=float(match["weight"] or 1))

    @property
    def kwargs(self) -> dict[str, Any]:
        return dict(self.args)

    def __str__(self) -> str:
        args = ", ".join(f"{k}={v}" for k, v in self.args)
        weight = "" if self.weight == 1 else f"{self.weight:g}*"
        return f"{weight}{self.name}({args})" if args else f"{weight}{self.name}"

    def having(self, **args: Any) -> PartSpec:
        """This part with `args` added or replaced."""
        return self.model_copy(update={"args": tuple(sorted({**self.kwargs, **args}.items()))})


def literal(text: str) -> Any:
    """A Python literal, or the text itself when it is not one."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value


def split_outside(text: str, separator: str = ",") -> list[str]:
    """Split where the separator stands outside brackets: `"a,b(c=1,d=2)"` -> `["a", "b(c=1,d=2)"]`."""
    items, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == separator and depth == 0:
            items.append(text[start:i])
            start = i + 1
    return [s.strip() for s in (*items, text[start:]) if s.strip()]


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        value = [] if value == "none" else split_outside(value, "+")
    return tuple(PartSpec.parse(v) for v in value) if isinstance(value, Iterable) else value


Part = Annotated[PartSpec, BeforeValidator(PartSpec.parse), PlainSerializer(str, when_used="always")]
Parts = Annotated[
    tuple[PartSpec, ...],
    BeforeValidator(_parts),
    PlainSerializer(lambda v: [str(p) for p in v], when_used="always"),
]

OBJECTIVES = ("losses", "robust", "contrast", "bottleneck", "distill")
# slot of a recipe -> rooms its parts come from, first match wins
SLOTS: dict[str, tuple[str, ...]] = {
    "model": ("models",), "teacher": ("models",), "attention": ("attention",), "layers": ("layers",),
    "head": ("heads",), "softmax": ("softmax",), "loss": OBJECTIVES, "regularize": OBJECTIVES,
    "optimizer": ("train",), "algorithm": ("train",), "calibrate": ("calibrate",),
    "detect": ("detect",), "adapt": ("adapt",), "votes": ("robust",), "search": ("contrast",),
}  # fmt: skip
# names that are not parts of a room: torch's optimisers, the ordinary training step, all documents, nothing,
# "whatever fits"
BUILT_IN = {
    "teacher": ("none",), "layers": ("standard",), "loss": ("auto",), "optimizer": ("adamw", "adam", "sgd"),
    "algorithm": ("standard",), "adapt": ("auto", "none"), "search": ("exact",),
}  # fmt: skip


# slots that take the user's own code as `module:attribute`
OWN = ("model", "teacher", "loss", "regularize", "algorithm")


def card_of(slot: str, spec: PartSpec) -> Card | None:
    """The card of the part that `spec` names in `slot`; None for built-ins and the user's own code.

    Raises InputError when there is no such part, with the nearest name.
    """
    built_in = BUILT_IN.get(slot, ())
    if spec.name in built_in or ":" in spec.name:
        return None
    known = [(c, key) for room in SLOTS[slot] for c in catalog.cards(room) for key in (c.name, *c.aliases)]
    for card, key in known:
        if key == spec.name:
            return card
    elsewhere = [c for c in catalog.cards() if spec.name in (c.name, *c.aliases)]
    if elsewhere:
        slots = [s for s, rooms in SLOTS.items() if elsewhere[0].room in rooms]
        hint = f" {spec.name!r} is a part of room {elsewhere[0].room!r}"
        hint += f": write {slots[0]}={spec.name}." if slots else "."
    else:
        hint = nearest(spec.name, [*built_in, *(key for _, key in known)])
    raise InputError(
        f"{slot}={spec.name}: there is no such part.{hint} See `logitkit list {SLOTS[slot][0]}`."
    )


class Recipe(BaseModel):
    """Everything that determines a trained model, and nothing else.

    data:         where examples come from (see `logitkit.data.load`).
    model:        backbone, a part of `models` or `module:attribute`.
    teacher:      model of the network that such losses as `kd` learn from, trained first by the rest of this
                  recipe, without them and with standard attention and layers; "none" where nothing does.
    attention:    what a transformer's tokens attend by, a part of `attention`.
    layers:       a part of `layers` in the place of the model's own (the card's `replaces`: "norm", "mlp",
                  "mixer", "conv", "linear" or "block"); "standard" leaves them.
    head:         last layer, a part of `heads`.
    softmax:      scores to weights; its log-weights are what the loss sees.
    loss:         objective; "auto" is cross-entropy, mean squared error, or the head's own.
    regularize:   further objectives added to the loss, `weight*part`, several with +; "none" for none.
    algorithm:    who performs the training step; "standard" is forward, backward, update.
    optimizer:    adamw, adam, sgd, or a part of `train`.
    lr, schedule, warmup: step size; `schedule` runs over the budget, `warmup` is its share of it.
    weight_decay: None is the optimiser's own default (0.01 for adamw, none for adam and sgd).
    batch_size:   examples per step.
    epochs, steps, seconds: the budget; `steps` or `seconds` replaces `epochs`.
    clip:         largest gradient norm, or None.
    precision:    "no" (float32), "bf16" or "fp16" autocast.
    patience:     stop after so many epochs without a better validation score (ties: likelihood) and keep the
                  best weights; None trains to the end and keeps the last.
    calibrate:    post-hoc calibrators, fitted on the validation split; a chain with + between; "none".
    detect:       out-of-distribution detector, fitted on the training split.
    adapt:        what segments classes that training never saw from a few images, or makes a model forget, a
                  part of `adapt`; "auto" is prototype for segmentation and none elsewhere, "none" leaves the
                  model as it is.
    votes:        what makes labels of a crowd's votes: a part of `robust`, fitted on the training votes.
    search:       how documents are found for a query: "exact" scores every one; or a part of `contrast`,
                  fitted on the scores of the training queries.
    seed:         initialisation and batch order; `split_seed` the data split (None: the same number).
    threads:      CPU threads. Part of the recipe because sums split over threads round differently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    data: str = "digits"
    model: Part = PartSpec(name="mlp")
    teacher: Part = PartSpec(name="none")
    attention: Part = PartSpec(name="softmax")
    layers: Part = PartSpec(name="standard")
    head: Part = PartSpec(name="linear")
    softmax: Part = PartSpec(name="softmax")
    loss: Part = PartSpec(name="auto")
    regularize: Parts = ()
    algorithm: Part = PartSpec(name="standard")
    optimizer: Part = PartSpec(name="adamw")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1)
    batch_size: int = Field(64, ge=1)
    epochs: int = Field(30, ge=1)
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    clip: float | None = Field(None, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    patience: int | None = Field(None, ge=1)
    calibrate: Parts = ()
    detect: Part = PartSpec(name="msp")
    adapt: Part = PartSpec(name="auto")
    votes: Part = PartSpec(name="majority")
    search: Part = PartSpec(name="exact")
    seed: int = Field(0, ge=0)
    split_seed: int | None = Field(None, ge=0)
    threads: int = Field(1, ge=1)

    @classmethod
    def of(cls, **settings: Any) -> Recipe:
        """A recipe from settings as a user writes them; every mistake is one `InputError`."""
        for key in settings:
            if key not in cls.model_fields:
                raise InputError(f"a recipe has no setting {key!r}.{nearest(key, cls.model_fields)}")
        try:
            recipe = cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, InputError):
                raise InputError(f"{where}: {cause}") from None
            why = first["msg"][0].lower() + first["msg"][1:]
            raise InputError(f"{where}={first['input']!r} is not valid: {why}.") from None
        recipe.check_parts()
        return recipe

    def check_parts(self) -> None:
        """Raise InputError for a part that does not exist, or that does not take its arguments."""
        for slot in SLOTS:
            value = getattr(self, slot)
            for spec in value if isinstance(value, tuple) else (value,):
                if ":" in spec.name and slot not in OWN:
                    raise InputError(f"{slot}={spec}: your own code can be a {', '.join(OWN)}, not a {slot}.")
                card = card_of(slot, spec)
                if card is None:
                    continue
                takes = inspect.signature(card.build).parameters
                for key in spec.kwargs:
                    if key not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                        raise InputError(
                            f"{slot}={spec}: part {card.name!r} has no argument {key!r}.{nearest(key, takes)}"
                        )

    @property
    def learners(self) -> list[PartSpec]:
        """The loss and regularisers that learn from a teacher."""
        cards = {spec: card_of("loss", spec) for spec in (self.loss, *self.regularize)}
        return [spec for spec, card in cards.items() if card and "teacher_logits" in card.needs]

    def of_teacher(self) -> Recipe:
        """The recipe of the teacher: this one with its model, and without what learns from it."""
        learners = self.learners
        replaced = ["teacher", "attention", "layers", *(["loss"] if self.loss in learners else [])]
        usual = {slot: Recipe.model_fields[slot].default for slot in replaced}
        rest = tuple(spec for spec in self.regularize if spec not in learners)
        return self.model_copy(update={**usual, "model": self.teacher, "regularize": rest})

    def canonical(self) -> Recipe:
        """The same recipe with aliases replaced by names, so that `ce` and `cross_entropy` are one."""
        changes: dict[str, Any] = {}
        for slot in SLOTS:
            value = getattr(self, slot)
            many = isinstance(value, tuple)
            specs = []
            for spec in value if many else (value,):
                card = card_of(slot, spec)
                specs.append(spec if card is None else spec.model_copy(update={"name": card.name}))
            changes[slot] = tuple(specs) if many else specs[0]
        return self.model_copy(update=changes)

    @property
    def hash(self) -> str:
        """16 hex digits that are the same for the same recipe, in every process and on every machine."""
        return hashlib.sha256(self.canonical().model_dump_json().encode()).hexdigest()[:16]
