"""Cross-entropy of a linear layer's logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from logitkit.ops.linear_loss.distributed import shard_of, shared
from logitkit.ops.linear_loss.layer import checked, checked_class_weight, checked_labels
from logitkit.ops.linear_loss.skeleton import reduced, reduced_rows, softplus
from logitkit.ops.reduce import check_reduction


def linear_cross_entropy(
    features: Float[Tensor, "*batch features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, "*batch"],
    bias: Float[Tensor, " classes"] | None = None,
    *,
    class_weight: Float[Tensor, " classes"] | None = None,
    token_weight: Float[Tensor, "*batch"] | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    shift: bool = False,
    filter_eps: float | str | None = "auto",
    accum_dtype: torch.dtype | None = None,
    reduction: str = "mean",
    return_lse: bool = False,
    return_z_loss: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`F.cross_entropy(features @ weight.T + bias, target)`, with gradients, without the matrix of logits.

    For each token, with z = softcap(features weight^T + bias), softcap(a) = c tanh(a / c):

        loss = (1 - s) w_y (lse - z_y) + (s / V) sum_k w_k (lse - z_k) + z_loss lse^2,  lse = logsumexp(z)

    s being `label_smoothing`, w `class_weight` (1 without), V the number of classes. Each token counts
    `token_weight` times. "mean" divides by the sum of token_weight * w_y over the tokens that are kept, as
    torch does (without weights: by their number); when that is 0, because every token is ignored, the loss
    is 0, where torch's is NaN. The z-loss shares the divisor and is not weighted by class.

    shift: for (batch, time, d) features, predict the target of the next position: features[:, :-1] against
    target[:, 1:]. With "none", the result is one shorter.

    Returns the loss: a number, or one per token with "none". With `return_z_loss`, also the z-loss that is in
    it, detached, so that the plain cross-entropy can be logged; with `return_lse`, also the log-sum-exps
    of all tokens (0 where ignored), with their gradient. Tuples come in the order (loss, z_loss, lse).

    filter_eps: which softmax entries are left out of the backward's products. "auto" leaves out columns, for
    a chunk of tokens at a time, from the features' gradient only, and only so many that their largest entries
    (relative to 1 - p_y) add up to less than half a unit in the last place of 1: no entry of that gradient
    moves by more than this times the loss's derivative in z_y times the largest weight left out. The
    weight's gradient is complete, since a rare word's consists of nothing but small entries, which Adam would
    notice. That finds something to leave out only where the softmax is very sharp. A number, such as the
    2^-12 of Cut Cross-Entropy, leaves out of both gradients what no token of the chunk gives that much:
    faster on a trained language model, and an approximation. None leaves out nothing. Labels are never left
    out. Label smoothing makes every entry count: nothing is filtered then.

    Products run in the input's dtype (autocast's inside autocast), everything else in float32 and float64;
    the loss is float32 (float64 for float64). On a CPU, memory beyond the gradients stays below 64 MiB, which
    a thread keeps for its next call. Errors, against float64 on the same float32 input: loss 1e-6, gradients
    1e-5 of their largest entry. For bfloat16 the weight's gradient is added up in that dtype over chunks of
    at least 256 tokens (fewer where 256 rows of logits exceed 56 MiB), and rounds once a chunk: c chunks make
    about sqrt(c / 2) times the error of one product. `accum_dtype=torch.float32` makes one product of up to
    4,096 tokens.

    With "none", `return_lse`, weights that need a gradient, `accum_dtype`, or float16 (whose gradients may be
    below its smallest number until a loss scale lifts them), the backward makes the logits again: a third
    more arithmetic. So does calling backward a second time.

    group: the vocabulary is spread over the ranks of this process group. Each rank passes its own rows of the
    weight, and of `bias` and `class_weight`, at least 2 of them and not necessarily as many as the others;
    words are numbered through in order of rank. Features, targets (numbered over all ranks), token weights
    and options are the same on all ranks, and each takes part in forward and backward. Each rank gets the
    whole loss, the gradient of its own rows, and the gradient of the features summed over ranks: the same on
    all, so it is not to be summed again. All options hold; a number as `filter_eps` is relative to the rank's
    own words. Ranks exchange 4 numbers per token in the forward (5 with class weights), and the gradient
    of the features in the backward; nothing grows with the vocabulary. The logits are made twice. Gradients
    of token weights are whole on every rank. No second derivatives.

    On CUDA, Triton kernels make the logits twice; "auto" leaves out tiles of which all entries together are
    that small, a number tiles without an entry that large. Memory beyond the gradients: at most 256 MiB, the
    features' gradient in float32, and 64 bytes per token and 4,096 words. The weight's gradient rounds once.
    Not measured on a GPU.

    Pays: with vocabularies of 10,000 and more, in memory always, in time against every eager form (on a CPU).
    Plain torch runs below 4 MiB of logits and on devices without a kernel; float64 runs in plain torch. No
    double backward in the kernels: `with logitkit.ops.use("reference")`.

    Raises: ValueError for shapes and dtypes that do not fit together, labels out of range, an empty batch,
    ranks whose features have different shapes.

    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025,
    arXiv:2411.09009.
    """
    check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}.")
    if isinstance(filter_eps, str) and filter_eps != "auto":
        raise ValueError(f"filter_eps must be 'auto', a number or None, got {filter_eps!r}.")
    if accum_dtype not in (None, torch.float32):
        raise ValueError(f"accum_dtype must be torch.float32 or None, got {accum_dtype}.")
    if shift:
        if features.ndim < 2 or features.shape[-2] < 2:
            raise ValueError(f"shift needs features (..., time >= 2, d), got {tuple(features.shape)}.")
        features, target = features[..., :-1, :], target[..., 1:]
        token_weight = None if token_weight is None else token_weight[..., 1:]
    shard = None
    if group is not None:
        shard = shard_of(features, weight, group)
        features = shared(features, group)
    layer = checked(features, weight, bias, softcap)
    classes = len(weight) if shard is None else shard.classes
    y, counts = checked_labels(target, features.shape[:-1], layer, token_weight, ignore_index, classes)
    of_class, of_label, total_weight = None, torch.ones_like(counts), float(classes)
    if class_weight is not None:
        of_class = checked_class_weight(class_weight, len(weight)).to(counts)
        here = y if shard is None else shard.labels(y)
        inside = (here >= 0) & (here < len(of_class))
        of_label = of_class[here.where(inside, 0)].where(inside, 0)
        all_weights = of_class.sum()
        if shard is not None:
            of_label, all_weights = shard.sum(of_label), shard.sum(all_weights)
        total_weight = float(all_weights)
    mix = None
    if label_smoothing:
        mix = of_class if of_class is not None else torch.ones(len(weight), device=weight.device)
    hard = (1 - label_smoothing) * of_label
    soft = label_smoothing / classes

    def loss(rest: Tensor, at: Tensor, mixed: Tensor, hard: Tensor) -> Tensor:
        value = hard * softplus(rest - at)
        if soft or z_loss:
            lse = torch.logaddexp(rest, at)
            value = value + soft * (total_weight * lse - mixed) + z_loss * lse.square()
        return value

    divisor = (counts * of_label).sum()
    value, lse = reduced(
        loss,
        layer,
        y,
        counts,
        (hard,),
        reduction,
        divisor,
        attached=return_lse or (accum_dtype is not None and features.dtype != accum_dtype),
        shard=shard,
        mix=mix,
        filter_eps=filter_eps,
    )
    shape, dtype = features.shape[:-1], torch.promote_types(features.dtype, torch.float32)
    results = [value.reshape(shape) if reduction == "none" else value]
    if return_z_loss:
        part = reduced_rows(z_loss * lse.detach().square(), counts.detach(), reduction, divisor.detach())
        results.append(part.reshape(shape) if reduction == "none" else part)
    if return_lse:
        kept = target.reshape(-1) != ignore_index
        results.append(lse.where(kept, lse.new_zeros(())).reshape(shape))
    results = [r.to(dtype) for r in results]
    return results[0] if len(results) == 1 else tuple(results)
