"""The cross-encoder against its network on concatenated features, in pieces and whole."""

import pytest
import torch
from torch import nn

from logitkit.heads import CrossHead, cross


def head():
    torch.manual_seed(0)
    return CrossHead(5, torch.randn(7, 4), dim=3, hidden=6).double(), torch.randn(2, 5, dtype=torch.float64)


def test_a_network_on_the_concatenation_of_each_pair():
    each, x = head()
    whole = nn.Sequential(each.both, nn.ReLU(), each.out)
    for i, q in enumerate(each.query(x)):
        for j, g in enumerate(each.document(each.documents)):
            expected = whole(torch.cat([q, g, q * g])).item()
            assert each(x)[i, j].item() == pytest.approx(expected)


def test_scores_of_some_documents_are_those_of_all_in_pieces_or_not(monkeypatch):
    each, x = head()
    everything = each(x)
    rows = torch.tensor([[3, 3, 0], [6, 1, 2]])
    torch.testing.assert_close(each.score(x, rows), everything.gather(1, rows))
    torch.testing.assert_close(each.score(x, rows[:1]), everything[:, rows[0]])
    monkeypatch.setattr(cross, "PAIRS", 6)  # three documents at a time
    torch.testing.assert_close(each(x), everything)


def test_it_is_no_product_of_vectors():
    """What a dual encoder scores has at most the rank of its vectors; this has more."""
    each, _ = head()
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.linalg.matrix_rank(each(x)) > 4
