"""Whole answers that a sequence model gives to its prompts, drawn from left to right, and what they score."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from logitkit.data.base import IGNORE, following

DRAWN = 16  # answers drawn for each prompt, besides the likeliest tokens
PROMPTS = 16  # prompts that are answered at once

Scores = Callable[[Tensor], Tensor]
"""Tokens (rows, tokens) to the scores (rows * tokens, vocabulary) of the next."""


class Candidates(NamedTuple):
    """Of answers (rows, candidates): their log-probabilities, -inf for one that came before in its row, how
    many tokens they have, and which of them is the reference."""

    utilities: Tensor
    lengths: Tensor
    right: Tensor


@torch.no_grad()
def candidates(
    scores: Scores, x: Tensor, y: Tensor, generator: Generator, with_reference: bool = False
) -> Candidates:
    """Distinct answers to the prompts of x (rows, tokens), at the positions that y (rows, tokens) labels: the
    likeliest token each time, 16 drawn at random and, `with_reference` and then first, y itself."""
    found = [
        _of_some(scores, *some, generator, with_reference)
        for some in zip(x.split(PROMPTS), y.split(PROMPTS), strict=True)
    ]
    return Candidates(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _of_some(scores: Scores, x: Tensor, y: Tensor, generator: Generator, with_reference: bool) -> Candidates:
    rows, length = x.shape
    said = (y != IGNORE).repeat_interleave(1 + DRAWN, dim=0)
    answer = torch.full_like(said, IGNORE, dtype=torch.int64)
    greedy = torch.arange(len(said)) % (1 + DRAWN) == 0
    for place in range(length):
        here = said[:, place].nonzero().flatten()
        if len(here) == 0:
            continue
        # what was said so far is often the same, and read once
        read, copies = following(x.repeat_interleave(1 + DRAWN, dim=0), answer)[here].unique(
            dim=0, return_inverse=True
        )
        p = scores(read).view(len(read), length, -1)[:, place].double().softmax(1)[copies]
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0]
        answer[here, place] = torch.where(greedy[here], p.argmax(1), drawn)
    answers = answer.view(rows, 1 + DRAWN, length)
    if with_reference:
        answers = torch.cat([y[:, None], answers], dim=1)
    same = (answers[:, :, None] == answers[:, None]).all(dim=3)
    first = ~same.tril(-1).any(dim=2)
    utilities = torch.full(first.shape, -torch.inf, dtype=torch.float64)
    row, _ = first.nonzero(as_tuple=True)
    utilities[first] = _log_probability(scores, x[row], answers[first])
    return Candidates(utilities, (answers != IGNORE).sum(dim=2), (answers == y[:, None]).all(dim=2) & first)


def _log_probability(scores: Scores, x: Tensor, y: Tensor) -> Tensor:
    """log p of each row's answer y, token by token given those before."""
    log_p = scores(following(x, y)).double().log_softmax(dim=1).view(*y.shape, -1)
    said = y != IGNORE
    return (log_p.gather(2, y.where(said, 0)[:, :, None])[:, :, 0] * said).sum(dim=1)
