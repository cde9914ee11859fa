"""The slippery grid of the histogram head's claim, against simulation and plain loops."""

import torch

from logitkit.claims.heads.histogram import ENDS, GAMMA, GOAL, LAKE, greedy_return, transitions


def test_steps_go_where_they_should() -> None:
    step = transitions(aside=0.1)
    assert torch.allclose(step.sum(-1), torch.ones(64, 4).double())
    # from row 2, column 2: right is column 3, with row 1 and row 3 to the sides
    assert step[18, 2, 19].item() == 0.8
    assert step[18, 2, [10, 26]].tolist() == [0.1, 0.1]
    # in the upper left corner, left and up stay
    assert step[0, 0].nonzero().flatten().tolist() == [0, 8]
    assert torch.isclose(step[0, 0, 0], torch.tensor(0.9).double())


def test_the_map() -> None:
    assert [len(row) for row in LAKE] == [8] * 8
    assert int(ENDS.sum()) == 11
    assert "".join(LAKE)[GOAL] == "G"


def test_the_return_is_what_episodes_give() -> None:
    """Against a step-by-step sum over time of the chance to arrive at the goal."""
    q = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    q[:, 2] += 1.5  # mostly to the right, so that some arrive
    step = transitions()
    total = 0.0
    for start in range(64):
        if ENDS[start]:
            continue
        here = torch.zeros(64).double()
        here[start] = 1
        for t in range(400):
            after = torch.zeros(64).double()
            for cell in here.nonzero().flatten().tolist():
                after += here[cell] * step[cell, int(q[cell].argmax())]
            total += GAMMA**t * float(after[GOAL])
            here = after.masked_fill(ENDS, 0.0)
            if here.sum() < 1e-9:
                break
    assert abs(total / 53 - greedy_return(q)) < 1e-6


def test_value_iteration_is_optimal() -> None:
    """No policy that differs in one cell returns more than value iteration's."""
    step = transitions()
    q = torch.zeros(64, 4).double()
    for _ in range(500):
        value = q.amax(1).masked_fill(ENDS, 0.0)
        q = step[:, :, GOAL] + GAMMA * step @ value
    optimum = greedy_return(q)
    assert abs(optimum - 0.43) < 0.005
    for cell in (~ENDS).nonzero().flatten().tolist():
        for action in range(4):
            other = q.clone()
            other[cell, action] = 10.0
            assert greedy_return(other) <= optimum + 1e-12
