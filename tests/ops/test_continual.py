import pytest
import torch

from logitkit.ops import forgetting, incremental_accuracy

ACCURACIES = torch.tensor([[0.9, 0.7, 0.1], [0.95, 0.8, 0.2], [0.5, 0.6, 0.7]])


def test_three_tasks_by_hand():
    expected = [0.9, (0.95 + 0.8) / 2, (0.5 + 0.6 + 0.7) / 3]
    assert incremental_accuracy(ACCURACIES).tolist() == pytest.approx(expected)
    assert forgetting(ACCURACIES).item() == pytest.approx(((0.95 - 0.5) + (0.8 - 0.6)) / 2)


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        incremental_accuracy(ACCURACIES[:2])
    with pytest.raises(ValueError, match="at least 2 tasks, got 1"):
        forgetting(ACCURACIES[:1, :1])
