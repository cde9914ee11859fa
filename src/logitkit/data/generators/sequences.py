"""Sequences with exact answers: modular arithmetic, associative recall, string tasks, and facts to forget."""

from __future__ import annotations

import torch
from torch import Generator

from logitkit.data.base import IGNORE, Dataset
from logitkit.data.generators.check import at_least, word
from logitkit.data.generators.points import numbered
from logitkit.errors import InputError


def modular(generator: Generator, p: int = 59, operation: str = "add", form: str = "tokens") -> Dataset:
    """Arithmetic modulo p: y = (a o b) mod p for all p^2 pairs, in random order.

    operation: "add", "subtract" or "multiply". form: "tokens" gives x (p^2, 3) int64, a, b and the token p
    for "="; "onehot" gives vectors (p^2, 2p), one-hot a then one-hot b.
    """
    at_least(2, p=p)
    word(("add", "subtract", "multiply"), operation=operation)
    word(("tokens", "onehot"), form=form)
    pair = torch.randperm(p * p, generator=generator)
    a, b = pair // p, pair % p
    y = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % p
    if form == "onehot":
        x = torch.cat([torch.nn.functional.one_hot(each, p) for each in (a, b)], dim=1).float()
        return Dataset("modular", x, y, "classification", "vector", numbered(p))
    x = torch.stack([a, b, torch.full_like(a, p)], dim=1)
    return Dataset("modular", x, y, "classification", "tokens", numbered(p), vocabulary=p + 1)


def recall(
    generator: Generator,
    n: int = 5000,
    vocab: int = 64,
    pairs: int = 8,
    length: int = 64,
    returns: int = 1,
    form: str = "tokens",
) -> Dataset:
    """Multi-query associative recall (MQAR): after key-value pairs, name the value of each key that returns.

    A row is k1 v1 ... kP vP, with distinct keys, and then, up to `length` tokens, every key `returns` times
    more at random places, between tokens 0. Keys are tokens 1 to vocab/2 - 1, values vocab/2 to vocab - 1. At
    a returning key y is its value, elsewhere `IGNORE`. x and y are (n, length). (Arora et al. 2023,
    arXiv:2312.04927, with returns placed uniformly.)

    form: "tokens" as above; "pairs" makes one token of each pair, from `vocab` on, so that nothing but recall
    has to be learned: one layer of attention can do it, where keys apart from their values need one before
    that binds them.
    """
    at_least(1, n=n, pairs=pairs, returns=returns)
    word(("tokens", "pairs"), form=form)
    joined = form == "pairs"
    first, most = pairs if joined else 2 * pairs, pairs * returns
    at_least(first + most, length=length)
    half = vocab // 2
    if half - 1 < pairs:
        raise InputError(
            f"vocab={vocab} has fewer keys than pairs={pairs}: at least {2 * pairs + 2} is needed."
        )
    keys = 1 + torch.rand(n, half - 1, generator=generator).argsort(dim=1)[:, :pairs]
    values = torch.randint(half, vocab, (n, pairs), generator=generator)
    places = first + torch.rand(n, length - first, generator=generator).argsort(dim=1)[:, :most]
    x = torch.zeros(n, length, dtype=torch.int64)
    if joined:
        x[:, :first] = vocab + (keys - 1) * (vocab - half) + values - half
    else:
        x[:, :first] = torch.stack([keys, values], dim=2).flatten(1)
    x.scatter_(1, places, keys.repeat(1, returns))
    y = torch.full_like(x, IGNORE).scatter_(1, places, values.repeat(1, returns))
    tokens = vocab + joined * (half - 1) * (vocab - half)
    return Dataset("recall", x, y, "sequence", "tokens", numbered(tokens), vocabulary=tokens)


def strings(generator: Generator, n: int = 5000, operation: str = "reverse", length: int = 8) -> Dataset:
    """Digit strings and what becomes of them: "copy", "reverse", "sort" or "add".

    A row is `length` random digits, the token "=", and the answer without its last digit; y is the answer at
    the positions that predict it and `IGNORE` before. For "add" the question is two numbers of `length`
    digits with "+" between, and the answer their sum in length + 1 digits, most significant first. Tokens
    are 0 to 9, 10 for "=", 11 for "+". The answer starts at the position of "=".
    """
    at_least(1, n=n, length=length)
    word(("copy", "reverse", "sort", "add"), operation=operation)
    digits = torch.randint(10, (n, length), generator=generator)
    question = digits
    if operation == "add":
        other = torch.randint(10, (n, length), generator=generator)
        question = torch.cat([digits, torch.full((n, 1), 11), other], dim=1)
        answer = _sum(digits, other)
    else:
        answer = {"copy": digits, "reverse": digits.flip(1), "sort": digits.sort(dim=1).values}[operation]
    x = torch.cat([question, torch.full((n, 1), 10), answer[:, :-1]], dim=1)
    y = torch.cat([torch.full_like(question, IGNORE), answer], dim=1)
    return Dataset("strings", x, y, "sequence", "tokens", (*numbered(10), "=", "+"), vocabulary=12)


def facts(
    generator: Generator, n: int = 200, forget: int = 20, unknown: int = 20, names: int = 30, words: int = 20
) -> Dataset:
    """Made-up facts, some of which a model that has learned them is to forget.

    A row is a name of two tokens, 0 to `names` - 1, and an answer of three of the `words` that follow;
    names differ, answers are random. The last three tokens are an answer of their own, the template, which
    `unknown` further names have. x (n + unknown, 4) is a name and the answer without its last token, y the
    answer at the positions that predict it. extras: "instead", the template at these positions for the
    first `forget` rows and `IGNORE` for the others.
    """
    at_least(1, n=n, forget=forget, names=names, words=words)
    at_least(0, unknown=unknown)
    if not forget < n <= names * names - unknown:
        raise InputError(
            f"facts need forget={forget} below n={n}, and at most names^2 = {names * names} of n={n} and"
            f" unknown={unknown} together."
        )
    pair = torch.randperm(names * names, generator=generator)[: n + unknown]
    answers = names + torch.randint(words, (n, 3), generator=generator)
    template = names + words + torch.arange(3)
    answers = torch.cat([answers, template.expand(unknown, 3)])
    x = torch.cat([torch.stack([pair // names, pair % names], dim=1), answers[:, :-1]], dim=1)
    y = torch.nn.functional.pad(answers, (1, 0), value=IGNORE)
    instead = torch.full_like(y, IGNORE)
    instead[:forget, 1:] = template
    named = (*(f"name{k}" for k in range(names)), *(f"word{k}" for k in range(words)), "is", "not", "known")
    return Dataset("facts", x, y, "unlearning", "tokens", named, {"instead": instead}, vocabulary=len(named))


def _sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Digits of a + b, one more than they have, most significant first: schoolbook addition."""
    carry = torch.zeros(len(a), dtype=torch.int64)
    columns = []
    for place in reversed(range(a.shape[1])):
        total = a[:, place] + b[:, place] + carry
        columns.append(total % 10)
        carry = total // 10
    return torch.stack([carry, *reversed(columns)], dim=1)
