"""The training loop: recipe and data in, trained network out."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from logitkit import catalog
from logitkit.data import Dataset, Preprocessor, Split
from logitkit.data.base import OF_NUMBERS, OF_TOKENS, answer_length, seeded
from logitkit.engine.checkpoint import load_state, rng_state, save_state, set_rng_state
from logitkit.engine.inference import forward
from logitkit.engine.network import Network, Shape, build_network, locate
from logitkit.engine.objective import Batch, Objective, build_objective
from logitkit.engine.recipe import PartSpec, Recipe, card_of
from logitkit.engine.tasks import TASKS, task_of
from logitkit.errors import InputError

TORCH_OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class Diverged(RuntimeError):
    """Training produced NaN or infinity; the message says at which step."""


class Algorithm(Protocol):
    """Who performs a training step. `algorithm=` names one when a method owns more than its loss."""

    def step(self, trainer: Trainer, batch: Batch) -> Tensor:
        """Update the network on `batch` and return the loss, detached.

        An algorithm that also has `order(trainer, epoch)` decides in which order the rows come, and one that
        has `state_dict()` and `load_state_dict(state)` is resumed with what it knew.
        """
        ...


class Standard:
    """Forward, backward, clip, update."""

    def step(self, trainer: Trainer, batch: Batch) -> Tensor:
        return trainer.standard_step(batch)


@dataclass
class Prepared:
    """A split as tensors on one device: what several runs on the same data share."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    preprocessor: Preprocessor
    shape: Shape
    class_names: tuple[str, ...] | None
    train_set: Dataset
    documents: Tensor | None = None

    @classmethod
    def of(cls, split: Split, device: torch.device | str = "cpu") -> Prepared:
        """Preprocessing fitted on the training rows and applied to all three parts; documents, which are all
        known, are standardised by their own statistics."""
        dataset = split.train
        task = task_of(dataset)
        pre = Preprocessor().fit(dataset)

        def tensors(part: Dataset) -> tuple[Tensor, Tensor]:
            return pre.transform(part).to(device), task.targets(part, pre).to(device)

        train, test = tensors(dataset), tensors(split.test)
        numbers = dataset.task in OF_NUMBERS
        known = train[1][~train[1].isnan()] if numbers else torch.zeros(1)
        margin = 0.1 * float(known.max() - known.min())
        names = None if numbers else dataset.class_names
        documents = None
        if dataset.documents is not None:
            rows = torch.arange(len(dataset.documents))
            every = Dataset("documents", dataset.documents, rows, "search", "vector")
            documents = Preprocessor().fit(every).transform(every).to(device)
        shape = Shape(
            input_shape=tuple(pre.input_shape),
            task=dataset.task,
            num_classes=task.outputs(dataset),
            num_samples=dataset.y.numel() if dataset.task in OF_TOKENS else len(dataset),
            vmin=float(known.min()) - margin if numbers else -1.0,
            vmax=float(known.max()) + margin if numbers else 1.0,
            class_names=names and names[: task.outputs(dataset)],
            vocabulary=pre.vocabulary,
            bag=int((dataset.extras["bag"] == 0).sum()) if dataset.task == "bags" else 1,
            answer=answer_length(*test) if dataset.task == "sequence" else 0,  # test labels are never wrong
            documents=None if documents is None else (len(documents), documents.shape[1]),
        )
        return cls(train, tensors(split.val), test, pre, shape, names, dataset, documents)


@dataclass
class Progress:
    """Where a training run stands; everything a checkpoint holds besides the modules."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_state: dict[str, Tensor] | None = None
    since_best: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    stopped: bool = False


class Trainer:
    """One recipe on one prepared split. `run()` trains; `network` is the result; `data` is the split, with
    labels in the place of votes.

    checkpoint:       file to resume from if it exists, and to write every `checkpoint_every` steps.
    checkpoint_every: steps between checkpoints; killing the process loses at most that many.
    on_epoch:         called with the progress after each epoch's validation.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Prepared,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: int = 500,
        on_epoch: Callable[[Progress], None] | None = None,
    ) -> None:
        self._given = data
        data = labelled(recipe, data)
        self.recipe, self.data = recipe, data
        self.accelerator = accelerator(recipe.precision)
        device = self.accelerator.device
        torch.manual_seed(recipe.seed)
        network = build_network(recipe, data.shape, data.documents).to(device)
        objective = build_objective(recipe, data.shape, network).to(device)
        # an objective may learn parameters of its own (prototypes, temperatures)
        optimizer = build_optimizer(recipe, [*network.parameters(), *objective.parameters()])
        self.network: Network
        self.optimizer: Optimizer
        self.network = self.accelerator.prepare(network)
        # Accelerate's optimiser is needed for loss scaling only, and looks up packages on every step.
        scaled = self.accelerator.scaler is not None
        self.optimizer = self.accelerator.prepare(optimizer) if scaled else optimizer
        self.backward: Callable[[Tensor], None] = self.accelerator.backward if scaled else Tensor.backward
        self.objective: Objective = objective
        self.algorithm: Algorithm = build_algorithm(recipe, data.shape, network)
        # precision "no" needs no context at all, and entering one every step is not free
        self.autocast: Callable[[], Any] = _nothing if recipe.precision == "no" else self.accelerator.autocast
        self.progress = Progress()
        self._started = self._teacher_seconds = 0.0
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._x, self._y = (t.to(device) for t in data.train)
        self._val = tuple(t.to(device) for t in data.val)
        self._checkpoint, self._every, self._on_epoch = checkpoint, checkpoint_every, on_epoch
        self._epoch_steps = max(1, math.ceil(len(self._y) / recipe.batch_size))
        self._total = recipe.steps or self._epoch_steps * recipe.epochs
        if not TASKS[data.shape.task].trains:
            self._total = 0

    def run(self) -> Network:
        """Train to the end of the budget, from the checkpoint if there is one; the teacher first. Raises
        `Diverged`."""
        if self.recipe.teacher.name != "none":
            self._learn_from(self.recipe.of_teacher())
        if self._checkpoint is not None and self._checkpoint.is_file():
            self._restore(load_state(self._checkpoint))
        progress, recipe = self.progress, self.recipe
        self._started = time.perf_counter() - progress.seconds
        order = self._order(progress.step // self._epoch_steps)
        self.network.train()
        while not progress.stopped and self.share < 1:
            at = progress.step % self._epoch_steps
            rows = order[at * recipe.batch_size : (at + 1) * recipe.batch_size]
            # batch statistics of a lone last row are undefined
            if len(rows) > 1 or len(order) == 1 or recipe.batch_size == 1:
                self._schedule(self.share)
                loss = self._step(Batch(self._x[rows], self._y[rows], rows))
                progress.loss_sum += loss
                progress.loss_count += 1
            progress.step += 1
            progress.seconds = time.perf_counter() - self._started
            if progress.step % self._epoch_steps == 0:
                self._end_of_epoch()
                order = self._order(progress.step // self._epoch_steps)
            if self._checkpoint is not None and progress.step % self._every == 0:
                save_state(self._checkpoint, self._state())
        if progress.step % self._epoch_steps or not progress.curve:
            self._end_of_epoch()
        if progress.best_state is not None and recipe.patience is not None:
            self.network.load_state_dict(progress.best_state)
        self.network.eval()
        if self.network.finder is not None:
            scores = forward(lambda x: self.network.outputs(x).raw, self._x)
            if not scores.isfinite().all():
                raise Diverged("the network's scores are not finite at the end")
            self.network.finder.fit(scores)
        return self.network

    def validate(self) -> dict[str, float]:
        """The task's validation numbers; nothing without validation rows."""
        if len(self._val[1]) == 0:
            return {}
        self.network.eval()
        task = TASKS[self.data.shape.task]
        found = task.validate(self.network, self._val[0], self._val[1], self.data)
        self.network.train()
        return found

    def standard_step(self, batch: Batch) -> Tensor:
        """Forward, backward, clip, update; the loss, detached."""
        with self.autocast():
            loss = self.objective(self.network, batch)
        return self.update(loss)

    def update(self, loss: Tensor) -> Tensor:
        """Backward, clip, update the network; `loss`, detached."""
        self.optimizer.zero_grad()
        if loss.requires_grad:  # not for a closed-form head on fixed features
            self.backward(loss)
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        return loss.detach()

    @property
    def seconds(self) -> float:
        """What training took so far, with that of the teacher."""
        return self._teacher_seconds + self.progress.seconds

    @property
    def share(self) -> float:
        """How much of the budget is used, from 0 to 1."""
        if self._total == 0:
            return 1.0
        if self.recipe.seconds is not None:
            return (time.perf_counter() - self._started) / self.recipe.seconds
        return self.progress.step / self._total

    @property
    def rows(self) -> int:
        """How many rows there are to train on."""
        return len(self._y)

    @property
    def labels(self) -> Tensor:
        """The target of each training row."""
        return self._y

    def sibling(self, head: str) -> Network:
        """A new network for the same data, of the recipe with another `head`, initialised from its seed. What
        is drawn elsewhere does not change."""
        recipe = self.recipe.model_copy(update={"head": PartSpec.parse(head)})
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            return build_network(recipe, self.data.shape, self.data.documents).to(self.accelerator.device)

    def embeddings(self) -> Tensor:
        """The network's current features (rows, out_features) of all training rows."""
        self.network.eval()
        found = forward(self.network.embed, self._x)
        self.network.train()
        return found

    def _learn_from(self, teacher: Recipe) -> None:
        """Train the teacher, and give the objective its scores of the training rows. Its checkpoint and its
        random numbers are its own: it is the same network for every student."""
        path = self._checkpoint and self._checkpoint.with_suffix(".teacher.safetensors")
        with torch.random.fork_rng():
            trainer = Trainer(teacher, self._given, checkpoint=path, checkpoint_every=self._every)
            try:
                self.objective.teacher_logits = forward(trainer.run(), self._x)
            except Diverged as error:
                raise Diverged(f"of the teacher, {error}") from error
        self._teacher_seconds = trainer.seconds

    def _step(self, batch: Batch) -> float:
        try:
            loss = self.algorithm.step(self, batch).item()
        except ValueError as error:
            if "NaN" in str(error):
                raise Diverged(f"the network's outputs are NaN at step {self.progress.step + 1}") from error
            raise
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self.progress.step + 1}")
        return loss

    def _schedule(self, share: float) -> None:
        recipe = self.recipe
        if recipe.schedule == "constant" and not recipe.warmup:
            return
        if share < recipe.warmup:
            factor = (share + 1 / self._total) / recipe.warmup
        else:
            done = (share - recipe.warmup) / (1 - recipe.warmup)
            factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
                recipe.schedule
            ]
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * min(factor, 1.0)

    def _order(self, epoch: int) -> Tensor:
        """The order of the rows in `epoch`: the algorithm's, or a function of seed and epoch alone, so that
        it can be resumed. Rows of a bag stay together, and a smaller bag comes last."""
        if hasattr(self.algorithm, "order"):
            return self.algorithm.order(self, epoch).to(self._y.device)
        rows, bag = torch.arange(self.rows), self.data.shape.bag
        whole = rows[: self.rows // bag * bag].view(-1, bag)
        order = torch.randperm(len(whole), generator=seeded("order", self.recipe.seed, epoch))
        return torch.cat([whole[order].flatten(), rows[whole.numel() :]]).to(self._y.device)

    def _end_of_epoch(self) -> None:
        progress = self.progress
        point = {
            "step": progress.step,
            "loss": progress.loss_sum / max(progress.loss_count, 1),
            **self.validate(),
        }
        progress.loss_sum, progress.loss_count = 0.0, 0
        progress.curve.append(point)
        if self.recipe.patience is not None:
            if (score := validation_order(point)) > progress.best:
                progress.best, progress.since_best = score, 0
                progress.best_state = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            else:
                progress.since_best += 1
                progress.stopped = progress.since_best >= self.recipe.patience
        if self._on_epoch is not None:
            self._on_epoch(progress)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "rng": rng_state(),
            "algorithm": self.algorithm.state_dict() if hasattr(self.algorithm, "state_dict") else {},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        set_rng_state(state["rng"])
        if hasattr(self.algorithm, "load_state_dict"):
            self.algorithm.load_state_dict(state["algorithm"])


def validation_order(point: dict[str, float]) -> tuple[float, float]:
    """What early stopping compares: the validation score, and among equal accuracies, which are common with
    few validation rows, the likelihood."""
    return point["val_score"], -point.get("val_nll", 0.0)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def accelerator(precision: str) -> Any:
    """The process's `accelerate.Accelerator` for this precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("precision='fp16' needs a CUDA device; use 'bf16' or 'no' on the CPU.")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        # Accelerate keeps one precision per process, and one process here trains many recipes.
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision)


def build_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    """The optimiser of `recipe`: torch's adamw, adam or sgd, or a part of the `train` room."""
    spec = recipe.optimizer
    make = TORCH_OPTIMIZERS.get(spec.name) or catalog.get("train", spec.name).build
    if not _is_optimizer(make):
        raise InputError(f"optimizer={spec}: {spec.name} is not an optimiser. Write algorithm={spec}.")
    settings: dict[str, Any] = {"lr": recipe.lr, **spec.kwargs}
    if spec.name in TORCH_OPTIMIZERS:
        settings.setdefault("fused", True)  # one call for all parameters: a third of a small network's step
    if recipe.weight_decay is not None:
        settings.setdefault("weight_decay", recipe.weight_decay)
    takes = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        for key in spec.kwargs:
            if key not in takes:
                raise InputError(f"optimizer={spec}: {spec.name} has no argument {key!r}.")
        settings = {k: v for k, v in settings.items() if k in takes}
    try:
        # a closed-form head on fixed features leaves nothing to train, which torch's optimisers refuse
        return make(parameters or [nn.Parameter(torch.empty(0))], **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer={spec}: {error}") from error


def build_algorithm(recipe: Recipe, shape: Shape, network: nn.Module) -> Algorithm:
    """The training step of `recipe`. Raises InputError for one that would cut bags, or that cannot train the
    network: an algorithm's `check(network)`, if it has one, says so with a ValueError."""
    spec = recipe.algorithm
    if spec.name == "standard":
        return Standard()
    make = locate(spec.name, "algorithm") if ":" in spec.name else catalog.get("train", spec.name).build
    if _is_optimizer(make) or not callable(getattr(make, "step", None)):
        hint = f" It is an optimiser: write optimizer={spec}." if _is_optimizer(make) else ""
        raise InputError(f"algorithm={spec}: expected a class with step(trainer, batch).{hint}")
    if shape.bag > 1 and hasattr(make, "order"):
        raise InputError(f"algorithm={spec} orders rows one by one and would cut bags of {shape.bag} rows.")
    try:
        algorithm = make(**spec.kwargs)
        if hasattr(algorithm, "check"):
            algorithm.check(network)
    except ValueError as error:
        raise InputError(f"algorithm={spec}: {error}") from error
    return algorithm


def build_votes(recipe: Recipe, shape: Shape) -> Any:
    """What makes labels of votes; None where there are none. Raises InputError for a part that does not."""
    spec = recipe.votes
    if shape.task != "crowd":
        if spec != Recipe.model_fields["votes"].default:
            raise InputError(f"votes={spec} needs votes; data={recipe.data} is a {shape.task} task.")
        return None
    card = card_of("votes", spec)
    assert card is not None
    if "crowd" not in card.tasks:
        able = ", ".join(c.name for c in catalog.cards("robust") if "crowd" in c.tasks)
        raise InputError(f"votes={spec} makes no labels of votes. Use one of {able}.")
    return catalog.create(card.room, card.name, **{**shape.context(), **spec.kwargs})


def labelled(recipe: Recipe, data: Prepared) -> Prepared:
    """`data` with the most probable class in the place of votes, by the recipe's `votes` fitted on those of
    the training rows; other data as they are."""
    part = build_votes(recipe, data.shape)
    if part is None:
        return data
    try:
        part = part.to(data.train[1].device).fit(data.train[1])
        train, val = (
            (x, part.predict(votes) if len(x) else votes[:, 0]) for x, votes in (data.train, data.val)
        )
    except ValueError as error:
        raise InputError(f"votes={recipe.votes}: {error}") from error
    return replace(data, train=train, val=val)


def _is_optimizer(make: Any) -> bool:
    return isinstance(make, type) and issubclass(make, Optimizer)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run with so many CPU threads, and put the caller's number back."""
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
