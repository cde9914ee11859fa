"""A valid call of theory: `fit(...)`, then `predict(x)`."""

from __future__ import annotations

from typing import Any

import torch

from contract.samples import Sample


def make(card, batch, normal, g, build, dtype, device) -> Sample:
    if "regression" in card.tasks:
        return regression(batch, normal, build)
    if "concepts" in card.tasks:
        return spins(batch, normal, build)
    if "sequence" in card.tasks:
        return sequences(batch, normal, build, labels="binary" in card.tasks)
    if "reranking" in card.tasks:
        return shares(batch, normal, build)
    if "binary" in card.tasks:
        return regression(batch, normal, build, labels=True)
    return ratings(batch, g, build, device)


def ratings(batch, g, build, device) -> Sample:
    """`fit(table)` of subject, item, judge and level, `predict(rows)` of the first three."""
    subject, item, judge = torch.meshgrid(torch.arange(20), torch.arange(3), torch.arange(4), indexing="ij")
    rows = torch.stack([subject, item, judge], dim=-1).view(-1, 3)
    level = torch.randint(3, (len(rows), 1), generator=g)
    table = torch.cat([rows, level], dim=1).to(device)
    rows = rows.to(device)

    def fitted() -> Any:
        return build().fit(table)

    bad = {
        "rows of another rank": lambda p: p.predict(rows[0]),
        "float rows": lambda p: p.predict(rows.double()),
        "no rows": lambda p: p.predict(rows[:0]),
        "an unknown subject": lambda p: p.predict(rows + 100),
        "an empty table to fit": lambda p: p.fit(table[:0]),
        "a table without levels to fit": lambda p: p.fit(rows),
        "negative levels to fit": lambda p: p.fit(table - 1),
    }
    chosen = rows[torch.randint(len(rows), (batch,), generator=g).to(device)]
    return Sample(fitted, (chosen,), lambda part, rows: part.predict(rows), bad)


def regression(batch, normal, build, labels=False) -> Sample:
    """`fit(x, y)`, `predict(x)`; the responses are linear, so that any start finds the same fit. y are
    numbers, or labels -1 and 1."""
    width = 4 if labels else 3
    x, noise = normal(200, width), normal(200)
    y = x @ x.new_tensor([1.0, -0.5, 0.25, 0.1][:width]) + 0.1 * noise
    y = y.sign() if labels else y
    bad = {
        "inputs of another rank": lambda p: p.predict(x[0]),
        "inputs of another width": lambda p: p.predict(x[:, :-1]),
        "integer inputs": lambda p: p.predict(x.long()),
        "NaN": lambda p: p.predict(x * float("nan")),
        "an empty batch to fit": lambda p: p.fit(x[:0], y[:0]),
        "responses of another length": lambda p: p.fit(x, y[:-1]),
        "NaN responses": lambda p: p.fit(x, y * float("nan")),
    }
    return Sample(lambda: build().fit(x, y), (normal(batch, width),), lambda part, x: part.predict(x), bad)


def spins(batch, normal, build) -> Sample:
    """`fit(patterns)`, `predict(states)`, of -1 and 1."""
    patterns, states = normal(3, 30).sign(), normal(batch, 30).sign()
    bad = {
        "states of another rank": lambda p: p.predict(states[0]),
        "states of another width": lambda p: p.predict(states[:, :-1]),
        "integer states": lambda p: p.predict(states.long()),
        "NaN": lambda p: p.predict(states * float("nan")),
        "an empty batch": lambda p: p.predict(states[:0]),
        "states between 1 and -1": lambda p: p.predict(states / 2),
        "no patterns to fit": lambda p: p.fit(patterns[:0]),
        "NaN patterns": lambda p: p.fit(patterns * float("nan")),
    }
    return Sample(lambda: build().fit(patterns), (states,), lambda part, x: part.predict(x), bad)


def sequences(batch, normal, build, labels) -> Sample:
    """`fit(x, y)`, `predict(x)` of rows of several tokens; y are numbers, or labels -1 and 1."""
    x = normal(60, 4, 3)
    y = x[:, 1:].mean(1) @ x.new_tensor([1.0, -0.5, 0.25])
    y = y.sign() if labels else y
    bad = {
        "inputs of another rank": lambda p: p.predict(x[0]),
        "inputs of another width": lambda p: p.predict(x[..., :-1]),
        "integer inputs": lambda p: p.predict(x.long()),
        "NaN": lambda p: p.predict(x * float("nan")),
        "an empty batch to fit": lambda p: p.fit(x[:0], y[:0]),
        "responses of another length": lambda p: p.fit(x, y[:-1]),
        "NaN responses": lambda p: p.fit(x, y * float("nan")),
    }
    return Sample(lambda: build().fit(x, y), (normal(batch, 4, 3),), lambda part, x: part.predict(x), bad)


def shares(batch, normal, build) -> Sample:
    """`fit(a, b)`, `predict(a)`; shares of rows that linear scores give exactly."""
    a = normal(40, 3)
    b = (a @ a.new_tensor([1.0, -0.5, 0.25])).softmax(dim=0)
    bad = {
        "rows of another rank": lambda p: p.predict(a[0]),
        "rows of another width": lambda p: p.predict(a[:, :-1]),
        "integer rows": lambda p: p.predict(a.long()),
        "NaN": lambda p: p.predict(a * float("nan")),
        "an empty batch to fit": lambda p: p.fit(a[:0], b[:0]),
        "shares of another length": lambda p: p.fit(a, b[:-1]),
        "NaN shares": lambda p: p.fit(a, b * float("nan")),
    }
    return Sample(lambda: build().fit(a, b), (normal(batch, 3),), lambda part, a: part.predict(a), bad)
