import math

import torch

from logitkit.ops import draw_normal, draw_uniform, log_odds_against


def test_log_odds_are_those_of_the_softmax():
    logits, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    p = logits.softmax(-1)[torch.arange(6), y]
    torch.testing.assert_close(log_odds_against(logits, y), (1 / p - 1).log())


def test_log_odds_keep_their_digits_where_the_softmax_rounds_to_one():
    u = log_odds_against(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(u, torch.tensor([math.log(2.0) - 50.0]))


def test_draws_do_not_depend_on_the_precision():
    for draw in (draw_normal, draw_uniform):
        g = torch.Generator()
        single = draw((40,), torch.zeros(1), g.manual_seed(1))
        double = draw((40,), torch.zeros(1, dtype=torch.float64), g.manual_seed(1))
        assert double.dtype == torch.float64
        assert torch.equal(single.double(), double)
        torch.manual_seed(1)
        assert torch.equal(draw((40,), torch.zeros(1)), single)
