"""The contrastive losses over a process group: the union of all ranks' batches, as one process has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from logitkit.ops import (
    all_triplets,
    decoupled_softmax,
    info_nce,
    labelled_nt_xent,
    multi_similarity,
    nt_xent,
    sigmoid_contrastive,
    supervised_contrastive,
    use,
    weighted_contrastive,
)

BATCH, WIDTH = 42, 9
# Rows of each rank; a multiple of 2 for the losses of two views.
SHARDS = {2: [26, 16], 4: [14, 2, 20, 6]}


def draw():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, WIDTH, generator=g)
    return x, torch.randint(9, (BATCH,), generator=g)


class Model(nn.Module):
    """A layer before the loss, and the two numbers that some losses learn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(WIDTH, 7)
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x):
        # Parameters that a loss does not use must still take part for DistributedDataParallel.
        return self.layer(x) + 0 * (self.temperature + self.bias), self.temperature * 1, self.bias * 1


def losses(z, y, t, b, where, group=None):
    """Every loss on the rows in the slice `where` of the whole batch. Views lie next to each other."""
    first, second = z[::2], z[1::2]
    n = len(first)
    begin = where.start // 2
    near = torch.arange(BATCH // 2)[begin : begin + n]
    # Three keys each, anywhere in the union.
    pairs = torch.stack([torch.arange(n).repeat(3), torch.cat([near, (near + 5) % 21, (near * 4 + 2) % 21])])
    pairs = pairs.unique(dim=1)
    of = {"group": group}
    return {
        "info_nce": lambda: info_nce(first, second, temperature=t, symmetric=True, **of),
        "nt_xent": lambda: nt_xent(first, second, temperature=t, **of),
        "labelled_nt_xent": lambda: labelled_nt_xent(z, y, temperature=t, **of),
        "supervised_contrastive": lambda: supervised_contrastive(z, y, temperature=t, **of),
        "decoupled_softmax": lambda: decoupled_softmax(first, second, pairs, temperature=t, **of),
        "sigmoid_contrastive": lambda: sigmoid_contrastive(first, second, 5 * t, b, **of),
        "weighted_contrastive": lambda: weighted_contrastive([first, second], **of),
        "multi_similarity": lambda: multi_similarity(z, y, **of),
        "all_triplets": lambda: all_triplets(z, y, margin=0.2, **of),
    }


def work(rank, ranks, folder):
    """What one process of the group does: every loss on its rows, once by hand and once under DDP."""
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    x, y = draw()
    begin = sum(SHARDS[ranks][:rank])
    where = slice(begin, begin + SHARDS[ranks][rank])
    found = {}
    for name in losses(x, y, 1.0, 0.0, slice(0, BATCH)):
        for implementation in ("cpu", "reference"):
            with use(implementation):
                z = x[where].clone().requires_grad_()
                value = losses(z, y[where], torch.tensor(0.3), torch.tensor(-1.0), where, group)[name]()
                value.backward()
                model = DistributedDataParallel(Model())
                z2, t, b = model(x[where])
                losses(z2, y[where], t, b, where, group)[name]().backward()
            gradients = {n: p.grad for n, p in model.module.named_parameters()}
            found[f"{name}, {implementation}"] = (value.detach(), z.grad, gradients)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
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


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("name", list(losses(*draw(), 1.0, 0.0, slice(0, BATCH))))
def test_loss_and_gradients_are_those_of_one_process(name, implementation, shards):
    x, y = draw()
    whole = slice(0, BATCH)
    z = x.clone().requires_grad_()
    value = losses(z, y, torch.tensor(0.3), torch.tensor(-1.0), whole)[name]()
    value.backward()
    model = Model()
    features, t, b = model(x)
    losses(features, y, t, b, whole)[name]().backward()
    found = [shard[f"{name}, {implementation}"] for shard in shards]
    for each in found:
        close(each[0], value.detach())
    # Each rank's gradient is multiplied by the number of ranks ...
    close(torch.cat([gradient for _, gradient, _ in found]), len(shards) * z.grad)
    # ... which is what makes DistributedDataParallel's average the gradient of the loss.
    for each in found:
        for parameter, tensor in model.named_parameters():
            close(each[2][parameter], tensor.grad)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
