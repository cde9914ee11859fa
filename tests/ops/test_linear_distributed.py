"""Linear cross-entropy with the vocabulary spread over processes: loss and gradients as in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from logitkit.ops import linear_cross_entropy, use

TOKENS, WIDTH, WORDS = 40, 12, 6007
# Words of each rank.
SHARDS = {2: [5000, 1007], 4: [2, 3500, 2000, 505]}
BF16 = "bfloat16"


def draw():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(TOKENS, WIDTH, generator=g), torch.randn(WORDS, WIDTH, generator=g)
    b, y = torch.randn(WORDS, generator=g), torch.randint(WORDS, (TOKENS,), generator=g)
    y[:6] = torch.tensor([0, 1, 2, WORDS - 1, -100, -100])
    return x, w, b, y


def weights(where):
    return torch.linspace(0.1, 2.0, WORDS)[where]


# Options of the loss; `where` are the words that a process has.
OPTIONS = {
    "plain": lambda where: {},
    "sum": lambda where: {"reduction": "sum"},
    "none": lambda where: {"reduction": "none"},
    "smoothing": lambda where: {"label_smoothing": 0.1},
    "softcap and z-loss": lambda where: {"softcap": 5.0, "z_loss": 1e-2},
    "class weights": lambda where: {"class_weight": weights(where)},
    "all": lambda where: {
        "label_smoothing": 0.2, "softcap": 8.0, "z_loss": 1e-3, "class_weight": weights(where),
        "token_weight": torch.linspace(0.0, 3.0, TOKENS), "return_lse": True, "return_z_loss": True,
    },
    "shift": lambda where: {"shift": True},
    BF16: lambda where: {},
}  # fmt: skip


def run(where, option, group=None):
    """Every number that the loss returns, and the gradients, on the words in the slice `where`."""
    x, w, b, y = draw()
    dtype = torch.bfloat16 if option == BF16 else torch.float32
    x = 0.2 * x if option == BF16 else x
    leaves = [t.to(dtype).clone().requires_grad_() for t in (x, w[where], b[where])]
    found = linear_cross_entropy(*leaves[:2], y, leaves[2], **OPTIONS[option](where), group=group)
    found = found if isinstance(found, tuple) else (found,)
    upstream = torch.linspace(-1.0, 2.0, TOKENS)
    sum((f * upstream[: f.numel()].view(f.shape)).sum() for f in found if f.requires_grad).backward()
    return [f.detach() for f in found], [leaf.grad for leaf in leaves]


def work(rank, ranks, folder):
    """What one process of the group does."""
    from torch import distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    begin = sum(SHARDS[ranks][:rank])
    where = slice(begin, begin + SHARDS[ranks][rank])
    found = {}
    for implementation in ("cpu", "reference"):
        with use(implementation):
            for option in OPTIONS:
                found[f"{option}, {implementation}"] = run(where, option, group)
    sent, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda x, *a, **k: sent.append(x.numel()) or all_reduce(x, *a, **k)
    run(where, "all", group)
    dist.all_reduce = all_reduce
    found["sent"] = sent
    x, w, _, y = draw()
    x.requires_grad_()
    messages = []
    for bad in (
        lambda: linear_cross_entropy(x[: TOKENS - rank], w[where], y[: TOKENS - rank], group=group),
        lambda: linear_cross_entropy(x, w[: 5 if rank else 1], y, group=group),
        lambda: linear_cross_entropy(x, w[where], y + WORDS, group=group),
        lambda: torch.autograd.grad(linear_cross_entropy(x, w[where], y, group=group), x, create_graph=True),
    ):
        try:
            bad()
        except (ValueError, RuntimeError) as error:
            messages.append(str(error))
    found["messages"] = messages
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def shards(request, tmp_path_factory):
    """What every rank found, for 2 and for 4 processes."""
    ranks, folder = request.param, tmp_path_factory.mktemp("group")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(ranks), str(folder)], env=environment)
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * ranks
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    order = 2.0 if found.dtype == torch.bfloat16 else torch.inf
    error = torch.linalg.vector_norm(found.double() - expected.double(), order)
    assert error <= tolerance * torch.linalg.vector_norm(expected.double(), order)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("option", OPTIONS)
def test_loss_and_gradients_are_those_of_one_process(option, implementation, shards):
    with use("reference"):
        values, (x, w, b) = run(slice(0, WORDS), option)
    tolerance = 2.0**-6 if option == BF16 else 1e-5
    found = [shard[f"{option}, {implementation}"] for shard in shards]
    for mine, _ in found:
        for value, expected in zip(mine, values, strict=True):
            close(value, expected, tolerance)
    for _, gradients in found:
        close(gradients[0], x, tolerance)
    close(torch.cat([gradients[1] for _, gradients in found]), w, tolerance)
    close(torch.cat([gradients[2] for _, gradients in found]), b, tolerance)


def test_what_ranks_exchange_does_not_grow_with_the_vocabulary(shards):
    for shard in shards:
        # Class weights of the labels and their total, the largest logits, three statistics, the gradient.
        assert shard["sent"] == [TOKENS, 1, TOKENS, 3 * TOKENS, TOKENS * WIDTH]


def test_what_does_not_fit_together_is_named_on_every_rank(shards):
    expected = ["the same features", "at least 2 rows", "expected labels in", "no second derivatives"]
    for shard in shards:
        assert len(shard["messages"]) == len(expected)
        for message, part in zip(shard["messages"], expected, strict=True):
            assert part in message


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
