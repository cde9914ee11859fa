"""Batches of clusters: permutations, sizes, planted groups."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from logitkit.data import load, split
from logitkit.engine import Prepared, Recipe, Trainer
from logitkit.ops import balanced_clusters
from logitkit.train import NGAMESampler


def draw(n, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "size"), [(1, 1), (7, 1), (64, 8), (100, 8), (103, 4), (5, 8), (1000, 16)])
def test_clusters_have_the_size_and_hold_every_row_once(n, size):
    clusters = balanced_clusters(draw(n), size, torch.Generator().manual_seed(1))
    assert torch.cat(clusters).sort().values.tolist() == list(range(n))
    sizes = [len(rows) for rows in clusters]
    assert sizes == [size] * (n // size) + [n % size] * (n % size > 0)


def test_planted_clusters_are_found():
    g = torch.Generator().manual_seed(2)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    y = torch.arange(128) % 16
    x = 10 * centres[y] + torch.randn(128, 16, generator=g)
    for rows in balanced_clusters(x, 8, g):
        assert len(y[rows].unique()) == 1


def test_clusters_of_the_official_code():
    """cluster_balance with b_kmeans_dense of xclib/utils/clustering.py in github.com/kunaldahiya/pyxclib,
    which ngame/libs/shortlist.py of github.com/Extreme-classification/ngame calls; seeds 0-19 end here."""
    t = torch.arange(16).double()
    cloud = torch.stack(
        [torch.ones(16).double(), 0.9 * (1.3 * t).sin(), 0.35 * (2.1 * t).cos(), 0.25 * (3.3 * t + 1).sin()],
        1,
    )
    angle = 2.2 * (0.61803398875 * torch.arange(32).double() % 1)
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    halves = [[0, 3, 4, 8, 9, 12, 13, 14], [1, 2, 5, 6, 7, 10, 11, 15]]
    quarters = [[0, 5, 10, 13, 18, 23, 26, 31], [1, 6, 9, 14, 17, 22, 27, 30], [2, 4, 7, 12, 15, 20, 25, 28],
                [3, 8, 11, 16, 19, 21, 24, 29]]  # fmt: skip
    for x, expected in ((cloud, halves), (arc, quarters)):
        for seed in range(5):
            clusters = NGAMESampler(len(x), 8, cluster_size=8, seed=seed).update(x).clusters
            assert sorted(sorted(rows) for rows in clusters.tolist()) == expected


def test_a_cut_separates_what_lies_apart_better_than_chance():
    x = draw(512, 2)
    angle = torch.atan2(x[:, 1], x[:, 0])
    clusters = balanced_clusters(x, 64, torch.Generator().manual_seed(3))
    spread = torch.stack([torch.stack([angle[r].cos(), angle[r].sin()]).mean(1).norm() for r in clusters])
    assert float(spread.min()) > 0.8  # 1 where all directions are the same, 0.12 for random rows


def test_each_epoch_is_a_permutation_in_batches_of_whole_clusters():
    sampler = NGAMESampler(100, 24, cluster_size=8, seed=5)
    before = list(sampler)
    assert len(before) == len(sampler) == 5
    sampler.update(draw(100))
    whole = {frozenset(rows.tolist()) for rows in sampler.clusters}
    epochs = [list(sampler) for _ in range(2)]
    assert epochs[0] != epochs[1]
    for batches in (before, *epochs):
        assert sorted(row for batch in batches for row in batch) == list(range(100))
        assert [len(batch) for batch in batches] == [24] * 4 + [4]
    for batches in epochs:
        pieces = {frozenset(batch[i : i + 8]) for batch in batches[:4] for i in (0, 8, 16)}
        assert pieces == whole
    x = draw(100)
    loader = DataLoader(TensorDataset(x), batch_sampler=sampler)
    assert torch.equal(torch.cat([rows for (rows,) in loader]).sort(0).values, x.sort(0).values)


def test_clusters_of_one_are_random_batches():
    sampler = NGAMESampler(4000, 400, cluster_size=1)
    sampler.update(torch.stack([torch.linspace(0, 3, 4000).cos(), torch.linspace(0, 3, 4000).sin()], 1))
    batch = torch.tensor(next(iter(sampler))).double()
    assert float(batch.mean()) == pytest.approx(2000, abs=4 * 1155 / 20)


def test_a_sampler_says_what_does_not_fit():
    with pytest.raises(ValueError, match="multiple of cluster_size, got 10 and 4"):
        NGAMESampler(100, 10, cluster_size=4)
    with pytest.raises(ValueError, match="100 rows, got 99"):
        NGAMESampler(100, 8).update(draw(99))


def test_the_engine_embeds_and_clusters_when_it_is_due():
    recipe = Recipe.of(
        data="extreme:n=200,classes=20,groups=5,dim=8,most=3", head="normalized_softmax(temperature=1.0)",
        loss="triplet_ohnm(k=3)", algorithm="ngame(cluster_size=4, refresh=2)", epochs=4, batch_size=20,
    )  # fmt: skip
    trainer = Trainer(recipe, Prepared.of(split(load(recipe.data), 0)))
    asked = []
    embeddings = trainer.embeddings
    trainer.embeddings = lambda: asked.append(trainer.progress.step) or embeddings()
    trainer.run()
    assert asked == [6, 18]  # after one random epoch of six steps, then every second
    assert trainer.progress.curve[-1]["loss"] < trainer.progress.curve[0]["loss"]
