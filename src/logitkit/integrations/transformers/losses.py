"""Training a causal language model with another loss, or without the matrix of its logits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

from logitkit.errors import InputError
from logitkit.ops import linear_cross_entropy, next_token_labels

Loss = Callable[..., Tensor]


def patch_loss(
    model: PreTrainedModel, loss: Loss = linear_cross_entropy, *, evaluation: bool = False
) -> PreTrainedModel:
    """Make a causal language model compute its loss from the hidden states and the weight of its head.

    In training, where `labels` are given, the logits never exist: the output has the loss
    and no logits, and loss and gradients are those of the model as it was, but for the mean over no label at
    all, which is 0 where the model's is NaN. `num_items_in_batch`, which the Trainer passes, divides the sum
    of the loss. Without labels (generation, scoring) nothing changes, and in eval mode only with
    `evaluation=True`; the Trainer's `compute_metrics` finds no logits then. Packed sequences need what they
    need without the patch: labels of -100 where one begins.

    loss: `linear_cross_entropy`, or another loss of a linear layer (`linear_comp_sum`, `linear_ldr`), called
    with (hidden, weight, labels, bias, ignore_index=, reduction=), and softcap= where the model caps its
    logits.

    The model is changed in place (its class becomes a subclass of the same name) and returned. Its logits on
    four tokens are compared with what its head alone makes of the hidden states, so that a model that does
    something else to its logits is refused. A softcap (Gemma 2) and constant scales (Granite, Cohere) are
    known. Tied embeddings and a bias of the head work as they are.

    Pays: where the logits are large, in memory; see `linear_cross_entropy` for time.

    Raises: ValueError for what is no causal language model of transformers with one linear head, for one
    that does something else to its logits, or that adds a loss of a mixture of experts to its own.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"patch_loss expects a PreTrainedModel of transformers (of a PEFT model, "
            f"`model.get_base_model()`), got {type(model).__name__}."
        )
    if hasattr(type(model), "_logitkit_original"):
        unpatch_loss(model)
    name = type(model).__name__
    head = model.get_output_embeddings()
    if model.config.is_encoder_decoder or not isinstance(head, nn.Linear) or _body(model) is model:
        raise InputError(
            f"patch_loss expects a causal language model with a linear head over a base model, got {name}."
        )
    if getattr(model.config, "output_router_logits", False):
        raise InputError(
            f"{name} adds a loss of its router (output_router_logits=True), which needs its own."
        )
    cap = _softcap(model)
    if cap is not None and "softcap" not in inspect.signature(loss).parameters:
        raise InputError(f"{name} caps its logits at {cap}, and the loss takes no softcap.")
    _check_logits(model, head)
    kind: Any = type(model)
    model.__class__ = _subclass(kind)
    model._logitkit_loss, model._logitkit_evaluation = loss, evaluation
    return model


def unpatch_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Undo `patch_loss`: the model is as it was, and is returned. One that is not patched stays as it is.

    Raises: ValueError if the model's class was replaced again since, as FSDP does.
    """
    if not hasattr(type(model), "_logitkit_original"):
        return model
    if "_logitkit_original" not in vars(type(model)):
        raise InputError(
            f"the class of the model was replaced since it was patched, by {type(model).__name__}; undo that "
            f"first."
        )
    del model._logitkit_loss, model._logitkit_evaluation
    model.__class__ = type(model)._logitkit_original
    return model


@functools.cache
def _subclass(original: type) -> type:
    """`original` with a forward that makes no logits in training."""

    @functools.wraps(original.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", None)
        bound = signature.bind(self, *args, **kwargs).arguments
        given = {k: v for k, v in bound.items() if k != signature_self}
        for rest in named_rest & given.keys():
            given |= given.pop(rest)
        return_dict = given.pop("return_dict", return_dict)
        if given.get("labels") is None or not (self.training or self._logitkit_evaluation):
            if return_dict is not None:
                kwargs["return_dict"] = return_dict
            return original.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        output = _without_logits(self, {k: v for k, v in given.items() if v is not None})
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def __reduce_ex__(self: Any, _: Any) -> tuple[Any, ...]:
        return _empty, (original,), self.__dict__

    signature = inspect.signature(original.forward)  # type: ignore[attr-defined]
    signature_self = next(iter(signature.parameters))
    named_rest = {p.name for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD}
    same = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    parts = {"forward": forward, "__reduce_ex__": __reduce_ex__, "_logitkit_original": original}
    return type(original.__name__, (original,), same | parts)


def _empty(original: type) -> Any:
    """A patched model with nothing in it, for copies and pickles."""
    return object.__new__(_subclass(original))


def _without_logits(model: Any, given: dict[str, Any]) -> CausalLMOutputWithCrossAttentions:
    """The loss and what else the model returns, on the arguments of its forward."""
    labels, shifted = given.pop("labels"), given.pop("shift_labels", None)
    items, ignore_index = given.pop("num_items_in_batch", None), given.pop("ignore_index", -100)
    for name in ("logits_to_keep", "num_logits_to_keep"):
        keep = given.pop(name, 0)
        if isinstance(keep, Tensor) or keep != 0:
            raise InputError(f"{name} cannot be combined with labels, got {keep}.")
    if given.get("output_router_logits"):
        raise InputError("the model is patched and cannot add a loss of its router (output_router_logits).")
    outputs = _body(model)(**given, return_dict=True)
    if shifted is None:
        shifted = next_token_labels(labels, ignore_index)
    hidden, weight, bias, cap = _layer(model, outputs.last_hidden_state)
    options = {} if cap is None else {"softcap": cap}
    loss = model._logitkit_loss(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        shifted.reshape(-1).to(hidden.device),
        bias,
        ignore_index=ignore_index,
        reduction="mean" if items is None else "sum",
        **options,
    )
    if items is not None:
        loss = loss / (items.to(loss.device) if isinstance(items, Tensor) else items)
    names = ("past_key_values", "hidden_states", "attentions", "cross_attentions")
    return CausalLMOutputWithCrossAttentions(
        loss=loss, **{name: getattr(outputs, name, None) for name in names}
    )


def _body(model: Any) -> nn.Module:
    """What makes the hidden states; the model itself if it does."""
    body = model.base_model
    return body if body is not model else model.get_decoder()


def _softcap(model: Any) -> float | None:
    return getattr(model.config, "final_logit_softcapping", None)


def _scale(model: Any) -> float:
    """What the model multiplies its logits with, before they are capped."""
    config = model.config
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return (getattr(config, "logit_scale", None) or 1.0) / divisor


def _layer(model: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None, float | None]:
    """(features, weight, bias, softcap) of the layer that makes the model's logits."""
    head, scale = model.get_output_embeddings(), _scale(model)
    hidden, bias = hidden.to(head.weight.device), head.bias
    if scale != 1:
        hidden, bias = hidden * scale, None if bias is None else bias * scale
    return hidden, head.weight, bias, _softcap(model)


@torch.no_grad()
def _check_logits(model: Any, head: nn.Linear) -> None:
    """ValueError unless the model's logits are what its head and the known options make, and its loss the
    cross-entropy of the next token, on four tokens."""
    with _on_four_tokens(model) as tokens:
        found = model(input_ids=tokens, labels=tokens, return_dict=True)
        hidden = _body(model)(input_ids=tokens, return_dict=True).last_hidden_state
    features, weight, bias, cap = _layer(model, hidden)
    expected = F.linear(features, weight, bias).float()
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    logits = found.logits.float().to(expected.device)
    tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 3e-2
    if expected.shape != logits.shape or (expected - logits).abs().max() > tolerance * logits.abs().max():
        raise InputError(
            f"{type(model).__name__} does something to its logits that patch_loss does not know; it knows a "
            f"bias, final_logit_softcapping, logits_scaling and logit_scale."
        )
    loss = F.cross_entropy(logits[0, :-1], tokens[0, 1:].to(logits.device))
    if (loss - found.loss.to(loss)).abs() > tolerance * loss.abs().clamp(min=1):
        raise InputError(
            f"the loss of {type(model).__name__} is not the cross-entropy of the next token that patch_loss "
            f"replaces: {float(found.loss):.6g} on four tokens, where that is {float(loss):.6g}."
        )


@contextmanager
def _on_four_tokens(model: Any) -> Iterator[Tensor]:
    """Four tokens for the model, which is in eval mode meanwhile."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield torch.arange(4, device=model.get_input_embeddings().weight.device)[None]
    finally:
        for module, training in modes:
            module.training = training


def use_loss(model: PreTrainedModel, loss: Loss | None) -> PreTrainedModel:
    """Make a causal language model compute its loss with `loss(logits, labels)` wherever it gets `labels`.

    loss: of logits (batch, time, vocabulary) and labels (batch, time) that the logits at the same time
    predict, -100 where nothing is asked: `MultitaskLoss`, `EISLLoss`, `partial(dco_sequence, N=64)`,
    `FLATLoss().of_rows`, or the user's own. Further arguments of it (the task_id of `MultitaskLoss`, the
    template of FLAT) are taken from those of the model's forward; the Trainer passes columns on with
    `remove_unused_columns=False`. A module is in the model's training mode. None gives the model its own
    loss back.

    A loss of one number per sequence (`dco_sequence`, `EISLLoss(reduction="none")`) is summed over the batch,
    so that gradients accumulated over parts of a batch are those of the batch. One number is a mean: where
    the model gets `num_items_in_batch`, as from the Trainer, it counts with the share of the labels that are
    here. That accumulates to the full batch for means over tokens (`MultitaskLoss(mode="token")`); for means
    over sequences (EISL) or tasks only if every part has as many labels for each of them.

    The model is changed in place, by the `loss_function` that transformers lets be set, and returned;
    `save_pretrained` does not see it. Losses that a model adds to its own, as of a router, stay.

    Raises: ValueError for what is no causal language model of transformers, for one that computes its loss
    by itself or was changed by `patch_loss`; in a forward that lacks an argument of the loss.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        raise InputError(f"use_loss expects a causal language model of transformers, got {name}.")
    if hasattr(type(model), "_logitkit_original"):
        raise InputError(f"{name} was changed by patch_loss and makes no logits: call unpatch_loss first.")
    vars(model).pop("_loss_function", None)
    if loss is None:
        return model
    if not _asks_for_its_loss(model):
        raise InputError(f"{name} does not compute its loss of the next token by its loss_function.")
    model.loss_function = _LossOfLogits(model, loss)
    return model


@torch.no_grad()
def _asks_for_its_loss(model: Any) -> bool:
    """Whether the model's loss on four tokens is what its `loss_function` makes of all their logits."""
    if getattr(model, "loss_type", None) not in (None, "ForCausalLM"):
        return False
    shapes = []

    def ask(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
        shapes.append(logits.shape[:-1] == labels.shape)
        return logits.sum()

    model.loss_function = ask
    try:
        with _on_four_tokens(model) as tokens:
            model(input_ids=tokens, labels=tokens)
    finally:
        del model._loss_function
    return shapes == [True]


class _LossOfLogits:
    """What `use_loss` sets as the model's `loss_function`."""

    def __init__(self, model: Any, loss: Loss) -> None:
        self.model = model
        self.loss = loss
        parameters = list(inspect.signature(getattr(loss, "forward", loss)).parameters.values())[2:]
        self.takes = [p.name for p in parameters]
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.needs = [p.name for p in parameters if p.default is p.empty and p.kind in plain]

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **given: Any,
    ) -> Tensor:
        missing = [name for name in self.needs if given.get(name) is None]
        if missing:
            raise InputError(f"the loss needs {', '.join(missing)}: pass it to the model, beside the labels.")
        if isinstance(self.loss, nn.Module):
            self.loss.train(self.model.training)
        shifted = next_token_labels(labels) if shift_labels is None else shift_labels
        shifted = shifted.to(logits.device)
        value = self.loss(logits, shifted, **{k: v for k, v in given.items() if k in self.takes})
        if value.ndim > 0:
            return value.sum()
        if num_items_in_batch is None:
            return value
        items = torch.as_tensor(num_items_in_batch, device=value.device)
        return value * (shifted != -100).sum() / items
