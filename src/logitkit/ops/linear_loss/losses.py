"""Further losses on a linear layer's logits. Each is a few lines on top of what they share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logitkit.ops.checks import check_positive
from logitkit.ops.linear_loss.layer import Layer, checked, checked_class_weight, checked_labels
from logitkit.ops.linear_loss.skeleton import reduced, softplus
from logitkit.ops.logspace import comp_sum
from logitkit.ops.reduce import check_reduction


def _finish(value: Tensor, features: Tensor, reduction: str) -> Tensor:
    value = value.to(torch.promote_types(features.dtype, torch.float32))
    return value.reshape(features.shape[:-1]) if reduction == "none" else value


def _labelled(
    features: Tensor,
    layer: Layer,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    y, counts = checked_labels(target, features.shape[:-1], layer, None, ignore_index)
    if class_weight is not None:
        counts = counts * checked_class_weight(class_weight, layer.weight.shape[0])[y]
    return y, counts


def linear_comp_sum(
    features: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    tau: float = 1.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    filter_eps: float | str | None = "auto",
    reduction: str = "mean",
) -> Tensor:
    """The comp-sum loss of a linear layer's logits, ((1/p_y)^(1 - tau) - 1) / (1 - tau), without the logits.

    tau = 1 is cross-entropy, 1 < tau < 2 generalised cross-entropy, 2 the mean absolute error. Shapes,
    memory, `filter_eps` and what pays: as `linear_cross_entropy`.

    Raises: ValueError for tau < 0, shapes and dtypes that do not fit together, labels out of range, an empty
    batch.

    Source: Mao, Mohri, Zhong, ICML 2023, arXiv:2304.07288, equation 5.
    """
    check_reduction(reduction)
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}.")
    layer = checked(features, weight, bias)
    y, counts = _labelled(features, layer, target, class_weight, ignore_index)

    def loss(rest: Tensor, at: Tensor, _: Tensor) -> Tensor:
        return comp_sum(-softplus(rest - at), tau)

    value, _ = reduced(loss, layer, y, counts, (), reduction, counts.sum(), filter_eps=filter_eps)
    return _finish(value, features, reduction)


def linear_ldr(
    features: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    lam: float = 1.0,
    margin: float = 0.0,
    class_weight: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    filter_eps: float | str | None = "auto",
    reduction: str = "mean",
) -> Tensor:
    """The LDR-KL loss of a linear layer's logits without the logits:
    lam log((1/K) sum_k exp((z_k - z_y + margin [k != y]) / lam)).

    The scores are the logits as they are: the softplus normalisation of `losses.LDRKL` is not a function of
    one log-sum-exp. Shapes, memory, `filter_eps` and what pays: as `linear_cross_entropy`.

    Raises: ValueError for lam <= 0, margin < 0, shapes and dtypes that do not fit together, labels out of
    range, an empty batch.

    Source: Zhu, Ying, Yang, ICML 2023, arXiv:2112.14869, the LDR-KL loss.
    """
    check_reduction(reduction)
    check_positive(lam=lam)
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}.")
    layer = checked(features, weight, bias)
    y, counts = _labelled(features, layer, target, class_weight, ignore_index)
    log_k = math.log(weight.shape[0])

    def loss(rest: Tensor, at: Tensor, _: Tensor) -> Tensor:
        return lam * (softplus(rest - (at - margin) / lam) - log_k)

    value, _ = reduced(
        loss, layer, y, counts, (), reduction, counts.sum(), scale=1 / lam, filter_eps=filter_eps
    )
    return _finish(value, features, reduction)


def linear_distillation(
    features: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    teacher_features: Float[Tensor, "*batch teacher_features"],
    teacher_weight: Float[Tensor, "classes teacher_features"],
    bias: Float[Tensor, " classes"] | None = None,
    teacher_bias: Float[Tensor, " classes"] | None = None,
    *,
    temperature: float = 1.0,
    token_weight: Float[Tensor, "*batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(z / T)) between two linear layers' logits, t the teacher's, with
    neither matrix of logits.

    The teacher gets no gradient. Two products forward, and two backward: four where cross-entropy has three
    (seven with "none"). Each token counts `token_weight` times (0 leaves it out); "mean" divides by their
    sum. Memory and what pays: as `linear_cross_entropy`; nothing is filtered.

    Raises: ValueError for a temperature that is not positive, shapes and dtypes that do not fit together, an
    empty batch.

    Source: Hinton, Vinyals, Dean, arXiv:1503.02531.
    """
    check_reduction(reduction)
    check_positive(temperature=temperature)
    layer, teacher = _pair(features, weight, bias, teacher_features, teacher_weight, teacher_bias)
    nobody = torch.full(features.shape[:-1], -100, device=features.device)
    counts = torch.ones(nobody.numel(), dtype=torch.float64, device=features.device)
    if token_weight is not None:
        if token_weight.shape != nobody.shape:
            raise ValueError(
                f"token_weight must have shape {tuple(nobody.shape)}, got {tuple(token_weight.shape)}."
            )
        counts = token_weight.reshape(-1).double()

    def loss(rest: Tensor, _: Tensor, mixed: Tensor, teacher_rest: Tensor, __: Tensor) -> Tensor:
        return temperature**2 * (rest - teacher_rest - mixed / temperature)

    value, _ = reduced(
        loss,
        layer,
        nobody.reshape(-1),
        counts,
        (),
        reduction,
        counts.sum(),
        scale=1 / temperature,
        teacher=teacher,
    )
    return _finish(value, features, reduction)


def linear_nkd(
    features: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    teacher_features: Float[Tensor, "*batch teacher_features"],
    teacher_weight: Float[Tensor, "classes teacher_features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    teacher_bias: Float[Tensor, " classes"] | None = None,
    *,
    gamma: float = 1.5,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Normalised knowledge distillation at temperature 1 between two linear layers' logits, with neither
    matrix of logits: -T_y log S_y + gamma KL(T^ || S^).

    S and T are the softmaxes of student and teacher, S^ and T^ those over the other classes. The paper has
    the cross-entropy -sum_k T^_k log S^_k in place of the divergence: this is less by gamma times the
    entropy of T^, on which no gradient depends. Cost: as `linear_distillation`.

    Raises: ValueError for gamma < 0, shapes and dtypes that do not fit together, labels out of range, an
    empty batch.

    Source: Yang et al., ICCV 2023, arXiv:2303.13005, the NKD loss.
    """
    check_reduction(reduction)
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}.")
    layer, teacher = _pair(features, weight, bias, teacher_features, teacher_weight, teacher_bias)
    y, counts = _labelled(features, layer, target, None, ignore_index)

    def loss(rest: Tensor, at: Tensor, mixed: Tensor, teacher_rest: Tensor, teacher_at: Tensor) -> Tensor:
        of_label = torch.sigmoid(teacher_at - teacher_rest) * softplus(rest - at)
        return of_label + gamma * (rest - teacher_rest - mixed)

    value, _ = reduced(loss, layer, y, counts, (), reduction, counts.sum(), teacher=teacher)
    return _finish(value, features, reduction)


def _pair(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> tuple[Layer, Layer]:
    layer = checked(features, weight, bias)
    teacher = checked(
        teacher_features.detach(),
        teacher_weight.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
        name="teacher_",
    )
    if features.shape[:-1] != teacher_features.shape[:-1] or weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError(
            f"student and teacher must have the same batch and classes, got features "
            f"{tuple(features.shape)} and {tuple(teacher_features.shape)}, weights {tuple(weight.shape)} and "
            f"{tuple(teacher_weight.shape)}."
        )
    return layer, teacher
