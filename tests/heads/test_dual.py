"""The dual encoder against loops, and its documents."""

import pytest
import torch

from logitkit.heads import DualHead


def head(documents=7, in_features=5, d=4):
    torch.manual_seed(0)
    return DualHead(in_features, torch.randn(documents, d), dim=3, hidden=6).double()


def test_loops_over_pairs():
    each, x = head(), torch.randn(2, 5, dtype=torch.float64)
    first, _, second = each.requires_grad_(False).document
    for i, row in enumerate(x):
        for j, document in enumerate(each.documents):
            hidden = [
                max(0.0, float(w @ document + b)) for w, b in zip(first.weight, first.bias, strict=True)
            ]
            g = second.weight @ torch.tensor(hidden, dtype=torch.float64) + second.bias
            expected = float((each.query.weight @ row + each.query.bias) @ g)
            assert each(x)[i, j].item() == pytest.approx(expected)


def test_scores_of_some_documents_are_those_of_all():
    each, x = head(), torch.randn(2, 5, dtype=torch.float64)
    everything = each(x)
    rows = torch.tensor([[3, 3, 0], [6, 1, 2]])
    torch.testing.assert_close(each.score(x, rows), everything.gather(1, rows))
    torch.testing.assert_close(each.score(x, rows[:1]), everything[:, rows[0]])
    torch.testing.assert_close(each.queries(x) @ each.encode().T, everything)


def test_documents_are_kept_and_no_parameter():
    documents = torch.randn(7, 4)
    each = DualHead(5, documents)
    other = DualHead(5, torch.zeros(7, 4))
    other.load_state_dict(each.state_dict())
    assert torch.equal(other.documents, documents)
    assert "documents" not in dict(each.named_parameters())


@pytest.mark.parametrize("documents", [torch.zeros(1, 4), torch.zeros(7), torch.zeros(7, 4).long()])
def test_refuses_what_is_no_collection(documents):
    with pytest.raises(ValueError, match="at least 2 rows"):
        DualHead(5, documents)
