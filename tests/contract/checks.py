"""The contract of a part, one function per clause. Each takes a card and raises AssertionError.

`tests/test_contract.py` runs every check on every part; `tests/test_contract_catches.py` shows that each
check fails on a part that breaks it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from beartype import beartype
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from contract.samples import context, make
from logitkit import catalog, data
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.engine.train import Progress
from logitkit.errors import InputError
from logitkit.registry import Card, Choice

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
GRADIENT_ROOMS = ("losses", "heads", "softmax", "models", "contrast", "bottleneck", "distill", "layers")
FITTED_ROOMS = ("calibrate", "detect", "adapt", "theory", "probe")
CALLS = ("transform", "score", "predict", "segment", "search", "forward", "__call__")
SECTIONS = ("Equation:", "Shapes:", "Defaults:", "Raises:", "Source:", "Not for:")


def is_optimizer(card: Card) -> bool:
    return inspect.isclass(card.build) and issubclass(card.build, Optimizer)


def differentiable(card: Card) -> bool:
    return card.room in GRADIENT_ROOMS or "model" in card.needs


def _run(card: Card, batch: int = 6, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    sample = make(card, batch, dtype, device)
    part = sample.build()
    torch.manual_seed(1)
    return sample.call(part, *sample.inputs).detach()


def _same(a: Tensor, b: Tensor, what: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(
        a.double().cpu(),
        b.double().cpu(),
        rtol=rtol,
        atol=atol,
        equal_nan=False,
        msg=lambda m: f"{what}: {m}",
    )


def check_dtypes(card: Card) -> None:
    """float32, bfloat16 and float64 agree to their precision, on every device there is."""
    exact = _run(card)
    assert torch.isfinite(exact).all(), "float64 result is not finite"
    for device in DEVICES:
        _same(_run(card, dtype=torch.float32, device=device), exact, f"float32 on {device}", 2e-3, 2e-4)
        half = _run(card, dtype=torch.bfloat16, device=device)
        assert torch.isfinite(half).all(), "bfloat16 result is not finite"
        if not card.no_half:
            _same(half, exact, f"bfloat16 on {device}", 0.12, 0.12)


def check_autocast(card: Card) -> None:
    """Under autocast the part runs, forward and backward, and lands near its float32 value."""
    for device in DEVICES:
        sample = make(card, dtype=torch.float32, device=device)
        part = sample.build()
        inputs = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in sample.inputs)
        torch.manual_seed(1)
        with torch.autocast(device, dtype=torch.bfloat16):
            out = sample.call(part, *inputs)
        if out.requires_grad:
            out.float().sum().backward()
            if inputs[0].grad is not None:
                assert torch.isfinite(inputs[0].grad).all(), "gradient under autocast is not finite"
        assert torch.isfinite(out).all(), "the result under autocast is not finite"
        if not card.no_half:
            _same(out.detach(), _run(card, dtype=torch.float32), f"autocast on {device}", 0.12, 0.12)


def check_gradient(card: Card) -> None:
    """The gradient is the derivative, by finite differences in float64."""
    if not differentiable(card) or card.no_gradcheck:
        return
    sample = make(card, batch=3)
    part = sample.build()

    def value(*inputs: Tensor) -> Tensor:
        torch.manual_seed(1)
        return sample.call(copy.deepcopy(part), *inputs)

    inputs = tuple(x.clone().requires_grad_() for x in sample.inputs)
    assert torch.autograd.gradcheck(value, inputs, nondet_tol=0.0, fast_mode=True), "gradcheck failed"


def check_determinism(card: Card) -> None:
    """The same seed gives the same bits, and building plus calling leaves global settings alone."""
    dtype = torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    first, second = _run(card), _run(card)
    assert torch.equal(first, second), "two runs under one seed differ"
    assert torch.get_default_dtype() == dtype, "the part changed the default dtype"
    assert torch.is_grad_enabled() == grad, "the part changed whether gradients are on"


def check_inputs_untouched(card: Card) -> None:
    """A call changes neither its inputs nor the part's parameters."""
    sample = make(card)
    part = sample.build()
    before = [x.clone() for x in sample.inputs]
    parameters = [p.detach().clone() for p in part.parameters()] if isinstance(part, nn.Module) else []
    sample.call(part, *sample.inputs)
    for x, old in zip(sample.inputs, before, strict=True):
        assert torch.equal(x, old), "the call changed its input in place"
    if isinstance(part, nn.Module):
        for p, old in zip(part.parameters(), parameters, strict=True):
            assert torch.equal(p, old), "the call changed a parameter"


def check_copies(card: Card) -> None:
    """deepcopy, pickle, and a state_dict put into a differently initialised part give the same output."""
    sample = make(card)
    part = sample.build()

    def out(p: Any) -> Tensor:
        torch.manual_seed(1)
        return sample.call(p, *sample.inputs).detach()

    twins = {"deepcopy": copy.deepcopy(part), "pickle": pickle.loads(pickle.dumps(part))}
    if isinstance(part, nn.Module):
        other = sample.build()
        for p in other.parameters():
            nn.init.normal_(p)
        buffer = io.BytesIO()
        torch.save(part.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        twins["state_dict"] = other
    expected = out(part)
    for how, twin in twins.items():
        _same(out(twin), expected, f"after {how}")


def check_noncontiguous(card: Card) -> None:
    """A strided view gives what its contiguous copy gives."""
    sample = make(card)
    part, twin = sample.build(), sample.build()
    strided = tuple(torch.stack([x, x], dim=-1)[..., 0] for x in sample.inputs)
    assert not strided[0].is_contiguous()
    torch.manual_seed(1)
    a = sample.call(part, *sample.inputs).detach()
    torch.manual_seed(1)
    _same(sample.call(twin, *strided).detach(), a, "non-contiguous input", 1e-12, 1e-12)


def check_batch_of_one(card: Card) -> None:
    """A single example is a valid batch."""
    assert torch.isfinite(_run(card, batch=1)).all(), "a batch of one is not finite"


def check_bad_input(card: Card) -> None:
    """Every bad input of the room raises ValueError whose sentence says something of it."""
    sample = make(card)
    for what, call in sample.bad.items():
        part = sample.build()
        try:
            call(part)
        except ValueError as error:
            message = str(error)
            assert len(message) > 20, f"{what}: the message says too little: {message!r}"
            assert (
                any(c.isdigit() for c in message)
                or "NaN" in message
                or "dtype" in message
                or "torch." in message
            ), f"{what}: the message does not say what was passed: {message!r}"
        except Exception as error:
            raise AssertionError(
                f"{what}: raised {type(error).__name__} ({error}), expected ValueError"
            ) from error
        else:
            raise AssertionError(f"{what}: no error")


class _CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def check_no_batch_loop(card: Card) -> None:
    """The number of operations does not grow with the batch."""
    counts = []
    for batch in (8, 64):
        sample = make(card, batch)
        part = sample.build()
        with _CountOps() as mode:
            sample.call(part, *sample.inputs)
        counts.append(mode.count)
    assert counts[1] <= counts[0] + 2, f"{counts[0]} operations at batch 8 but {counts[1]} at batch 64"


def check_shape_annotations(card: Card) -> None:
    """The jaxtyping shapes of the part's methods are true of a real call."""
    sample = make(card)
    part = sample.build()
    method = next(name for name in CALLS if hasattr(type(part), name))
    function = inspect.unwrap(getattr(type(part), method))
    hints = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
    assert any("[" in h and "Tensor" in h for h in hints), (
        f"{method} has no jaxtyping shapes in its signature"
    )
    checked = jaxtyping.jaxtyped(typechecker=beartype)(function)
    original = getattr(type(part), method)
    try:
        setattr(type(part), method, checked)
        sample.call(part, *sample.inputs)
    except jaxtyping.TypeCheckError as error:
        raise AssertionError(f"an annotation of {method} is not true: {error}") from error
    finally:
        setattr(type(part), method, original)


def check_docstring(card: Card) -> None:
    """The docstring has every section the contract asks for, none of them empty."""
    doc = inspect.getdoc(card.build) or ""
    assert doc.splitlines()[0].strip() if doc else False, "no first line"
    for section in SECTIONS:
        assert section in doc, f"the docstring has no {section!r} section"
        assert doc.split(section, 1)[1].strip()[:1] not in ("", "\n"), f"section {section!r} is empty"
    if card.paper:
        number = card.paper.removeprefix("arXiv:")
        assert number in doc, f"the source section does not name {card.paper}"


def check_card(card: Card) -> None:
    """The file has the card's name, the part is public in its room, and its search space can be built."""
    module = card.build.__module__
    assert module == f"logitkit.{card.room}.{card.name}", f"part {card.name!r} lives in {module}"
    room = importlib.import_module(f"logitkit.{card.room}")
    assert card.build.__name__ in room.__all__, (
        f"{card.build.__name__} is not in logitkit.{card.room}.__all__"
    )
    assert card.title, "the card has no title"
    assert card.number is None or card.paper is not None, "a numbered paper says where it was published"
    place = {"params": [nn.Parameter(torch.zeros(2))]} if is_optimizer(card) else context(card)
    for name, space in card.search_space.items():
        for value in space.options if isinstance(space, Choice) else (space.low, space.high):
            catalog.create(card.room, card.name, **{**place, name: value})


def check_compile(card: Card) -> None:
    """`torch.compile(fullgraph=True)` gives the eager result."""
    if card.no_compile or card.room in FITTED_ROOMS:
        return
    sample = make(card, dtype=torch.float32)
    part, twin = sample.build(), sample.build()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *inputs: sample.call(part, *inputs), fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    got = compiled(*sample.inputs).detach()
    torch.manual_seed(1)
    _same(got, sample.call(twin, *sample.inputs).detach(), "compiled", 1e-5, 1e-6)


def check_optimizer(card: Card) -> None:
    """An optimiser lowers a quadratic, and resumes from its state_dict bit for bit."""

    def problem() -> tuple[nn.Parameter, Optimizer]:
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(8, 4))
        return w, card.build([w], lr=0.05)

    def step(w: nn.Parameter, optimizer: Optimizer) -> float:
        optimizer.zero_grad()
        loss = ((w - 1.0) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    w, optimizer = problem()
    losses = [step(w, optimizer) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0], f"40 steps went from {losses[0]:.3f} to {losses[-1]:.3f}"
    twin, resumed = problem()
    twin.data.copy_(w.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(w, optimizer), step(twin, resumed)
    assert torch.equal(w, twin), "a state_dict round trip changes what follows"


def _trainable(card: Card) -> tuple[Recipe, Prepared]:
    """The first of a few recipes that the algorithm takes: not every one trains every network."""
    places = [
        {"data": "moons:n=160"},
        {"data": "passages:n=160,documents=40", "head": "dual"},
        {"data": "shapes:n=160", "model": "vit(depth=1,dim=16)", "layers": "binary_linear"},
    ]
    refused = []
    for place in places:
        try:
            recipe = Recipe.of(**place, algorithm=card.name, epochs=6, batch_size=16, lr=0.01)
            prepared = Prepared.of(data.split(data.load(recipe.data), 0))
            Trainer(recipe, prepared)
        except InputError as error:
            refused.append(str(error))
        else:
            return recipe, prepared
    raise AssertionError(f"no recipe that it takes: {refused}")


def check_algorithm(card: Card) -> None:
    """An algorithm of the engine learns, repeats itself under a seed, and resumes bit for bit."""
    recipe, prepared = _trainable(card)

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if len(progress.curve) == 3:
            raise Stop

    def weights(trainer: Trainer) -> Tensor:
        return torch.cat([p.detach().flatten() for p in trainer.run().parameters()])

    first = Trainer(recipe, prepared)
    expected = weights(first)
    losses = [point["loss"] for point in first.progress.curve]
    assert losses[-1] < losses[0], f"six epochs went from {losses[0]:.3f} to {losses[-1]:.3f}"
    assert torch.equal(weights(Trainer(recipe, prepared)), expected), "two runs under one seed differ"
    with tempfile.TemporaryDirectory() as folder:
        settings: Any = {"checkpoint": Path(folder) / "c.safetensors", "checkpoint_every": 3}
        with contextlib.suppress(Stop):
            Trainer(recipe, prepared, on_epoch=stop, **settings).run()
        resumed = Trainer(recipe, prepared, **settings)
        assert torch.equal(weights(resumed), expected), "a resumed run ends elsewhere"


ALWAYS = (check_docstring, check_card)
CALLABLE = (
    check_dtypes, check_autocast, check_gradient, check_determinism, check_inputs_untouched, check_copies,
    check_noncontiguous, check_batch_of_one, check_bad_input, check_no_batch_loop, check_shape_annotations,
    check_compile,
)  # fmt: skip


def checks_for(card: Card) -> tuple[Callable[[Card], None], ...]:
    """The clauses that bind the part on `card`."""
    if card.room == "train":
        return (*ALWAYS, check_optimizer if is_optimizer(card) else check_algorithm)
    return (*ALWAYS, *CALLABLE)


def check_one_card_per_paper(cards: list[Card]) -> None:
    """Each paper number has exactly one main card; its companions name it."""
    main: dict[int, str] = {}
    for card in cards:
        if card.number is None:
            continue
        assert 1 <= card.number <= 225, f"{card.name}: paper number {card.number} is not on the list of 225"
        if card.companion_of is None:
            assert card.number not in main, (
                f"papers have one card: {main[card.number]} and {card.name} both claim {card.number}"
            )
            main[card.number] = card.name
    for card in cards:
        if card.companion_of is not None:
            assert main.get(card.number) == card.companion_of, (
                f"{card.name}: its companion {card.companion_of!r} has no card for paper {card.number}"
            )
