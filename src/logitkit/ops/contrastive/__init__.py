"""Losses over all pairs of a batch whose matrix of similarities is never stored whole.

All of them share what follows. On a CPU in float32 (half precision is computed in float32) rows are taken in
strips: memory is O(batch x strip), the gradient is exact and made in the forward pass, three matrix products
in all. float64, other devices and `torch.compile` run dense torch, O(batch^2) memory. The result is in at
least float32, under autocast as well.

Accuracy: cosines carry an error of some 2e-7, so logits of some 2e-7 / temperature; losses and gradients that
of their logits, and 1e-6 of their value otherwise.

`group=` takes a `torch.distributed` process group: the loss is then that of the union of all ranks' batches,
which may differ in size, and is the same number on every rank. Embeddings and labels are gathered, gradients
of the gathered embeddings are summed; nothing quadratic travels. All ranks must call, with gradients asked
for alike. Each rank's gradients are those of the loss with respect to what it put in **times the number of
ranks**: averaging gradients over ranks, as DistributedDataParallel and FSDP do, then gives exactly the
gradient of the loss. Whoever sums gradients over ranks must divide them by the number of ranks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from logitkit.ops.checks import check_features, check_positive, values_visible
from logitkit.ops.contrastive import reference
from logitkit.ops.contrastive.distributed import add_up, count_up, gather, sizes_of
from logitkit.ops.contrastive.pairs import Positives, listed, one_each, same_label
from logitkit.ops.dispatch import implementation
from logitkit.ops.sphere import unit


def info_nce(
    queries: Float[Tensor, "batch d"],
    keys: Float[Tensor, "keys d"],
    positives: Int[Tensor, " batch"] | None = None,
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    normalize: bool = True,
    symmetric: bool = False,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """mean_i -log softmax_j(<q_i, k_j> / temperature)_{p_i}, q and k scaled to unit length.

    `positives[i]` is the row of `keys` that belongs to query i; without it, key i. `symmetric=True` averages
    the loss with that of keys against queries (CLIP); it needs as many queries as keys, and no `positives`.
    `temperature` may be a tensor that learns. `normalize=False` takes inner products as they are. With
    `group`, `positives` count from the first of this rank's own keys.

    Pays: on a CPU from about 256 queries, in memory always. `symmetric` costs two losses.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, a temperature that is not positive, or
    positives outside the keys.

    Source: van den Oord, Li, Vinyals, arXiv:1807.03748; Radford et al., arXiv:2103.00020 (symmetric).
    """
    q, k = _embeddings("queries", queries, normalize), _embeddings("keys", keys, normalize)
    _same_width("queries", q, "keys", k)
    if positives is None and len(k) < len(q):
        raise ValueError(f"every query needs its key, got {len(q)} queries and {len(k)} keys.")
    if positives is None:
        positives = torch.arange(len(q), device=q.device)
    elif symmetric:
        raise ValueError("symmetric=True pairs key i with query i; got positives as well.")
    positives = _indices("positives", positives, len(q), len(k))
    if symmetric and len(q) != len(k):
        raise ValueError(f"symmetric=True needs as many keys as queries, got {len(k)} and {len(q)}.")
    temperature = _temperature(temperature)
    loss = _info_nce(q, k, positives, temperature, group)
    return (loss + _info_nce(k, q, positives, temperature, group)) / 2 if symmetric else loss


def _info_nce(
    q: Tensor, k: Tensor, positives: Tensor, temperature: float | Tensor, group: ProcessGroup | None
) -> Tensor:
    rank, sizes = sizes_of(k, group)
    total = count_up(torch.tensor(len(q), device=q.device), group)
    weight = (1 / total.to(q.dtype)).expand(len(q))
    columns = gather(k, sizes, group)
    kernel = _kernel(q)
    return add_up(
        kernel.decoupled(q / temperature, columns, one_each(positives + sum(sizes[:rank])), weight), group
    )


def nt_xent(
    view_a: Float[Tensor, "batch d"],
    view_b: Float[Tensor, "batch d"],
    *,
    temperature: float | Float[Tensor, ""] = 0.5,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """SimCLR: each of the 2 batch views against all others, its partner view being the positive.

    mean_i -log( exp(s_{i p(i)}) / sum_{j != i} exp(s_ij) ), s = cos / temperature. Equal to
    `labelled_nt_xent` of both views, labelled by their place in the batch. One pair alone gives 0.

    Pays: on a CPU from about 128 pairs, in memory always.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, or a temperature that is not positive.

    Source: Chen, Kornblith, Norouzi, Hinton, arXiv:2002.05709, equation 1.
    """
    _same_shape(view_a, view_b)
    a, b = _embeddings("view_a", view_a, normalize), _embeddings("view_b", view_b, normalize)
    rank, sizes = sizes_of(a, group)
    labels = torch.arange(len(a), device=a.device) + sum(sizes[:rank])
    # Halves may come in different precisions.
    a, b = a.to(torch.promote_types(a.dtype, b.dtype)), b.to(torch.promote_types(a.dtype, b.dtype))
    return _labelled(torch.cat([a, b]), labels.repeat(2), _temperature(temperature), group)


def labelled_nt_xent(
    embeddings: Float[Tensor, "batch d"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | Float[Tensor, ""] = 0.07,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Every positive pair against all negatives of its anchor, averaged over the pairs.

    mean_{i, p in P_i} -log( exp(s_ip) / (exp(s_ip) + sum_{n: y_n != y_i} exp(s_in)) ), s = cos / temperature.
    Rows without positives contribute nothing; without any positive pair the loss is 0. A pair whose anchor
    has no negatives counts, with loss 0. pytorch-metric-learning's `NTXentLoss` is this loss, and builds
    (positive pairs) x (negative pairs) numbers.

    Pays: always on a CPU, from about 256 rows against dense torch.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, or a temperature that is not positive.

    Source: Sohn, NeurIPS 2016; Chen, Kornblith, Norouzi, Hinton, arXiv:2002.05709.
    """
    z = _embeddings("embeddings", embeddings, normalize)
    return _labelled(z, _labels(labels, z), _temperature(temperature), group)


def _labelled(z: Tensor, labels: Tensor, temperature: float | Tensor, group: ProcessGroup | None) -> Tensor:
    columns, positives = _batch(z, labels, group)
    pairs = count_up(positives.counts().sum(), group)
    weight = (1 / pairs.clamp(min=1).to(z.dtype)).expand(len(z))
    return add_up(_kernel(z).decoupled(z / temperature, columns, positives, weight), group)


def supervised_contrastive(
    embeddings: Float[Tensor, "batch d"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (SupCon, L_out), averaged over the rows that have positives.

    mean_i -1/|P_i| sum_{p in P_i} log( exp(s_ip) / sum_{j != i} exp(s_ij) ), s = cos / temperature. Rows
    without positives are left out of the mean; without any the loss is 0. Labels that are all equal are a
    loss as any other (pytorch-metric-learning returns 0 there).

    Pays: on a CPU from about 256 rows, in memory always.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, or a temperature that is not positive.

    Source: Khosla et al., arXiv:2004.11362, equation 2.
    """
    z = _embeddings("embeddings", embeddings, normalize)
    temperature = _temperature(temperature)
    columns, positives = _batch(z, _labels(labels, z), group)
    rows = count_up((positives.counts() > 0).sum(), group)
    weight = (1 / rows.clamp(min=1).to(z.dtype)).expand(len(z))
    return add_up(_kernel(z).supervised(z / temperature, columns, positives, weight), group)


def decoupled_softmax(
    queries: Float[Tensor, "batch d"],
    keys: Float[Tensor, "keys d"],
    positives: Int[Tensor, "2 pairs"],
    *,
    temperature: float | Float[Tensor, ""] = 0.05,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Several positives per query, which do not compete: each is set against the query's negatives only.

    mean_i 1/|P_i| sum_{p in P_i} -log( exp(s_ip) / (exp(s_ip) + sum_{n not in P_i} exp(s_in)) ),
    s = cos / temperature. `positives` lists the pairs (query, key), in any order, as `mask.nonzero().T` does.
    Queries without positives are left out of the mean; without any pair the loss is 0. With `group`, queries
    count from this rank's first, and keys over the union of all ranks' keys.

    Pays: on a CPU from about 256 queries or keys, in memory always.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, a temperature that is not positive, pairs
    out of range or given twice.

    Source: Gupta et al., arXiv:2310.10636 (DecoupledSoftmax).
    """
    q, k = _embeddings("queries", queries, normalize), _embeddings("keys", keys, normalize)
    _same_width("queries", q, "keys", k)
    temperature = _temperature(temperature)
    if positives.ndim != 2 or len(positives) != 2:
        raise ValueError(f"positives must have shape (2, pairs), got {tuple(positives.shape)}.")
    _, sizes = sizes_of(k, group)
    pairs = torch.stack(
        [
            _indices("positives[0]", positives[0], positives.shape[1], len(q)),
            _indices("positives[1]", positives[1], positives.shape[1], sum(sizes)),
        ]
    )
    flat = (pairs[0] * sum(sizes) + pairs[1]).sort().values
    if values_visible(flat) and bool((flat.diff() == 0).any()):
        raise ValueError(f"positives must be given once, got {int((flat.diff() == 0).sum())} repeats.")
    runs = listed(torch.stack([flat // sum(sizes), flat % sum(sizes)]), len(q))
    count = runs.counts()
    rows = count_up((count > 0).sum(), group)
    weight = 1 / (rows.clamp(min=1) * count.clamp(min=1)).to(q.dtype)
    columns = gather(k, sizes, group)
    return add_up(_kernel(q).decoupled(q / temperature, columns, runs, weight), group)


def sigmoid_contrastive(
    view_a: Float[Tensor, "batch d"],
    view_b: Float[Tensor, "batch d"],
    scale: float | Float[Tensor, ""] = 10.0,
    bias: float | Float[Tensor, ""] = -10.0,
    *,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Every pair is a decision of its own (SigLIP): -1/batch sum_ij log sigmoid(z_ij (scale cos_ij + bias)).

    z_ij is 1 where i = j and -1 elsewhere. `scale` and `bias` may be tensors that learn (the paper learns
    log scale).

    Pays: on a CPU from about 256 pairs, in memory always.

    Raises: ValueError for wrong shapes or dtypes, or an empty batch.

    Source: Zhai, Mustafa, Kolesnikov, Beyer, arXiv:2303.15343, algorithm 1.
    """
    _same_shape(view_a, view_b)
    a, b = _embeddings("view_a", view_a, normalize), _embeddings("view_b", view_b, normalize)
    _same_width("view_a", a, "view_b", b)
    rank, sizes = sizes_of(a, group)
    bias = torch.as_tensor(bias, dtype=a.dtype, device=a.device)
    positives = one_each(torch.arange(len(a), device=a.device) + sum(sizes[:rank]))
    loss = _kernel(a).sigmoid(a * scale, gather(b, sizes, group), bias, positives)
    return add_up(loss, group) / sum(sizes)


def weighted_contrastive(
    views: Sequence[Float[Tensor, "batch d"]] | Float[Tensor, "views batch d"],
    *,
    positive_sharpness: float = 1.0,
    negative_sharpness: float = 1.0,
    attraction: float = 1.0,
    repulsion: float = 1.0,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Contrastive attraction and contrastive repulsion (CACR): distant positives and close negatives weigh
    more. Costs are squared distances c of embeddings scaled to unit length.

    Attraction: each view against the same sample's K other views, sum_k a_k c_k with
    a = softmax_k(positive_sharpness c_k). Repulsion: for each ordered pair of views, a sample's one view
    against the other view of every other sample, -sum_j b_j c_j with b = softmax_j(-negative_sharpness c_j).
    The result is attraction x the first + repulsion x the second, each averaged over samples and views or
    pairs of views. Weights carry gradient. Sharpness 0 weighs all alike; with two views a is 1. A batch of
    one sample has no repulsion.

    Pays: on a CPU from about 256 samples, in memory always.

    Raises: ValueError for fewer than two views, wrong shapes or dtypes, an empty batch, or a sharpness that
    is negative.

    Source: Zheng et al., arXiv:2105.03746.
    """
    if len(views) < 2:
        raise ValueError(f"there must be at least two views, got {len(views)}.")
    if min(positive_sharpness, negative_sharpness) < 0:
        raise ValueError(
            f"sharpness must not be negative, got {positive_sharpness} (positive) "
            f"and {negative_sharpness} (negative)."
        )
    for view in views[1:]:
        _same_shape(views[0], view)
    z = torch.stack([_embeddings("views", v, True) for v in views])
    rank, sizes = sizes_of(z[0], group)
    total, own = sum(sizes), torch.arange(z.shape[1], device=z.device) + sum(sizes[:rank])
    kernel = _kernel(z)
    pull = push = z.new_zeros(())
    for u, others in enumerate(z):
        rest = [v for v in range(len(z)) if v != u]
        cost = (others - z[rest]).square().sum(2)
        pull = pull + (torch.softmax(positive_sharpness * cost, 0) * cost).sum() / len(z)
        columns = gather(others, sizes, group)
        for v in rest:
            push = push + kernel.repulsion(z[v], columns, own, negative_sharpness) / (len(z) * len(rest))
    return add_up(attraction * pull + repulsion * push, group) / total


def multi_similarity(
    embeddings: Float[Tensor, "batch d"],
    labels: Int[Tensor, " batch"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Multi-similarity loss over all pairs (no mining), averaged over the batch.

    mean_i log(1 + sum_{p in P_i} exp(-alpha (s_ip - base))) / alpha
         + log(1 + sum_{n: y_n != y_i} exp(beta (s_in - base))) / beta, s = cos. An anchor without positives
    (negatives) has 0 for the first (second) term. The defaults are pytorch-metric-learning's.

    Pays: on a CPU from about 256 rows, in memory always.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, or alpha or beta that is not positive.

    Source: Wang, Han, Huang, Dong, Scott, arXiv:1904.06627.
    """
    check_positive(alpha=alpha, beta=beta)
    z = _embeddings("embeddings", embeddings, normalize)
    columns, positives = _batch(z, _labels(labels, z), group)
    loss = _kernel(z).multi_similarity(z, columns, positives, alpha, beta, base)
    return add_up(loss, group) / len(columns)


def all_triplets(
    embeddings: Float[Tensor, "batch d"],
    labels: Int[Tensor, " batch"],
    *,
    margin: float = 0.05,
    normalize: bool = True,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Triplet margin loss over all triplets, averaged over those that are not zero.

    Sum over anchors a, positives p, negatives n of max(0, d_ap - d_an + margin), divided by the number of
    terms above 0; d is the Euclidean distance. 0 if there are none. Each anchor's few positives are sorted
    and each negative finds its place among them: O(batch^2 log batch) instead of O(batch^3).

    A triplet counts when d_ap + margin > d_an strictly; one exactly at the margin has loss and gradient 0. A
    distance of 0 (duplicates) has gradient 0. Distances are accurate to 2e-6 of the embeddings' length, also
    where embeddings nearly coincide. Of millions of triplets a few lie within float32's rounding of the
    margin and count or not, which moves the gradient by up to 1e-4 of its largest entry.

    Pays: always on a CPU.

    Raises: ValueError for wrong shapes or dtypes, an empty batch, or a margin that is not finite.

    Source: Schroff, Kalenichenko, Philbin, arXiv:1503.03832; Hermans, Beyer, Leibe, arXiv:1703.07737 (mean
    over non-zero).
    """
    if not abs(margin) < float("inf"):
        raise ValueError(f"margin must be finite, got {margin}.")
    z = _embeddings("embeddings", embeddings, normalize)
    columns, positives = _batch(z, _labels(labels, z), group)
    total, count = _kernel(z).triplets(z, columns, positives, margin)
    return add_up(total, group) / count_up(count, group).clamp(min=1)


def _kernel(x: Tensor) -> ModuleType:
    return implementation(
        reference, x, cpu=True if x.dtype == torch.float32 else f"it computes in float32, not {x.dtype}"
    )


def _batch(z: Tensor, labels: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Positives]:
    """All ranks' embeddings, sorted by label, and this rank's positives among them."""
    rank, sizes = sizes_of(z, group)
    positives, order = same_label(labels, gather(labels, sizes, group), sum(sizes[:rank]))
    return gather(z, sizes, group).index_select(0, order), positives


def _embeddings(name: str, x: Tensor, normalize: bool) -> Tensor:
    try:
        x = check_features(x)
    except ValueError as error:
        raise ValueError(str(error).replace("features", name, 1)) from None
    return unit(x) if normalize else x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _same_width(name_x: str, x: Tensor, name_y: str, y: Tensor) -> None:
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(
            f"{name_x} and {name_y} must have the same width and dtype, got {tuple(x.shape)} {x.dtype} "
            f"and {tuple(y.shape)} {y.dtype}."
        )


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"views must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}.")


def _labels(labels: Tensor, z: Tensor) -> Tensor:
    if labels.shape != z.shape[:1]:
        raise ValueError(f"labels must have shape ({len(z)},) to match the batch, got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    return labels.long().contiguous()


def _indices(name: str, x: Tensor, count: int, below: int) -> Tensor:
    if x.shape != (count,) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} must be ({count},) integers, got {tuple(x.shape)} {x.dtype}.")
    if count and values_visible(x) and (int(x.min()) < 0 or int(x.max()) >= below):
        raise ValueError(f"{name} must lie in [0, {below}), got {int(x.min())} to {int(x.max())}.")
    return x.long()


def _temperature(temperature: float | Tensor) -> float | Tensor:
    if not isinstance(temperature, Tensor):
        check_positive(temperature=temperature)
    elif temperature.numel() != 1:
        raise ValueError(f"temperature must be one number, got shape {tuple(temperature.shape)}.")
    elif values_visible(temperature):
        check_positive(temperature=temperature.item())
    return temperature
