"""The proto-triplet loss against loops over queries, episodes, and numbers of the authors' code."""

import pytest
import torch

from logitkit.contrast import EpisodeSampler, ProtoTripletLoss, episode_accuracy, prototypes


def official():
    """12 embeddings of three classes."""
    y = torch.arange(12) % 3
    return torch.sin(torch.arange(36).double() * 1.7).view(12, 3) + torch.nn.functional.one_hot(y, 3), y


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.36409197079819355), (1.5, 1.0790504500359035)])
def test_values_of_the_official_code(margin, expected):
    """proto_triplet_loss of github.com/maumruiz/FSL-Loss, two supports per class and two queries."""
    x, y = official()
    assert ProtoTripletLoss(margin, shots=2)(x, y).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shots", [1, 2])
def test_loss_is_a_loop_over_queries_in_any_order_of_classes(shots):
    x, _ = official()
    y = torch.tensor([7, 3, 3, 7, 5, 7, 3, 5, 5, 7, 3, 9])  # class 9 is a prototype without queries
    rows = {c: [i for i in range(12) if y[i] == c] for c in (3, 5, 7, 9)}
    centre = {c: x[r[:shots]].mean(0) for c, r in rows.items()}

    def away(i, c):
        return ((x[i] - centre[c]).square().sum().item() + 1e-6) ** 0.5

    expected = torch.zeros(12, dtype=torch.float64)
    queries = [(i, c) for c, r in rows.items() for i in r[shots:]]
    for i, c in queries:
        expected[i] = max(0.0, away(i, c) - min(away(i, d) for d in rows if d != c) + 0.8)
    part = ProtoTripletLoss(margin=0.8, shots=shots, reduction="none")
    torch.testing.assert_close(part(x, y), expected)
    mean = ProtoTripletLoss(margin=0.8, shots=shots)(x, y).item()
    assert mean == pytest.approx(expected.sum().item() / len(queries))


def test_one_shot_prototypes_are_the_supports():
    x, y = official()
    centres, query = prototypes(x, y, shots=1)
    assert query.tolist() == [False] * 3 + [True] * 9
    torch.testing.assert_close(centres, x[:3].repeat(4, 1))


def test_collapsed_separated_classes_and_lone_ones_cost_nothing():
    y = torch.arange(12) % 3
    assert ProtoTripletLoss()(5 * torch.eye(3)[y], y) == 0
    x = torch.randn(4, 3, requires_grad=True)
    for labels in (torch.arange(4), torch.zeros(4).long()):  # no queries; one class
        loss = ProtoTripletLoss()(x, labels)
        loss.backward()
        assert loss == 0
    assert not x.grad.any()


def test_gradient_also_where_a_query_is_its_prototype():
    x, y = official()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: ProtoTripletLoss(1.5, shots=2)(e, y), x)
    same = torch.zeros(4, 2, requires_grad=True)
    ProtoTripletLoss()(same, torch.tensor([0, 1, 0, 1])).backward()
    assert torch.isfinite(same.grad).all()


def test_episodes_hold_disjoint_supports_and_queries():
    labels = torch.arange(100) % 10
    labels[90:] = 10  # ten rows of a further class
    sampler = EpisodeSampler(labels, ways=4, shots=2, queries=3, episodes=5, generator=torch.manual_seed(0))
    episodes = list(sampler)
    assert len(episodes) == len(sampler) == 5
    for rows in episodes:
        assert len(set(rows)) == 20
        support, query = labels[rows[:8]].view(4, 2), labels[rows[8:]].view(4, 3)
        assert len(support[:, 0].unique()) == 4
        assert (support == support[:, :1]).all()
        assert (query == support[:, :1]).all()
        _, is_query = prototypes(torch.zeros(20, 1), labels[rows], shots=2)
        assert is_query.tolist() == [False] * 8 + [True] * 12
    assert episodes[0] != episodes[1]
    with pytest.raises(ValueError, match="ways must lie in"):
        EpisodeSampler(labels, ways=12, shots=2, queries=3, episodes=5)


def test_episode_accuracy_by_hand():
    x = torch.tensor([[0.0], [10.0], [1.0], [9.0], [8.0], [4.0]])
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    assert episode_accuracy(x, y) == pytest.approx(50.0)


def test_bad_input():
    with pytest.raises(ValueError, match="margin"):
        ProtoTripletLoss(margin=0.0)
    with pytest.raises(ValueError, match="shots"):
        ProtoTripletLoss(shots=0)
    with pytest.raises(ValueError, match="NaN"):
        ProtoTripletLoss()(torch.full((3, 2), torch.nan), torch.arange(3))
