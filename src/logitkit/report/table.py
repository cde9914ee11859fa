"""The ranking as a table."""

from __future__ import annotations

import math

from logitkit.report.markup import breakable, esc, scroller, swatch
from logitkit.report.numbers import (
    COSTS,
    MEANING,
    NONE,
    QUANTITIES,
    SHORT,
    decimals,
    interval,
    mean_of,
    name_of,
    number,
    p_value,
    text,
)
from logitkit.report.study import Arm, Study

# verdict -> CSS class, sign
SIGNS = {
    "better": ("better", "▲"),
    "worse": ("worse", "▼"),
    "no difference shown": ("none", "○"),
    "too few runs": ("none", "…"),
    "reference": ("reference", "●"),
}


def ranking_table(study: Study) -> str:
    """One row per arm, best first: what it scored, whether that differs from the reference, what it cost."""
    others = study.other_metrics
    costs = [key for key in COSTS if any(key in arm.row["means"] for arm in study.arms)]
    mean_places = decimals([arm.mean for arm in study.arms])
    shift_places = decimals([v for arm in study.arms for v in arm.difference])
    places = {
        key: decimals([mean_of(arm.row["means"], key) for arm in study.arms]) for key in (*others, *costs)
    }
    places["parameters"] = 0
    compared = len(study.arms) > 1
    head = [
        '<th scope="col" class="rank"><span aria-hidden="true">#</span><span class="hidden">rank</span></th>',
        f'<th scope="col" class="name">{esc(study.noun())}</th>',
        _head(name_of(study.metric), "mean, 95% interval", study.better_is_higher),
    ]
    if compared:
        head += [
            _head("difference", f"from {study.reference.name}"),
            _head("p", "Holm"),
            '<th scope="col" class="words">verdict</th>',
        ]
    directions = study.about["metrics"]
    head += [_head(SHORT.get(key, name_of(key)), "mean", directions[key]) for key in others]
    head += [_head(SHORT[key], QUANTITIES[key][1] or "count") for key in costs]
    head.append(_head("runs", "with a result"))
    body = []
    for arm in study.arms:
        means = arm.row["means"]
        cells = [
            f'<td class="rank">{arm.row["rank"]}</td>',
            f'<th scope="row" class="name"><span>{swatch(arm)}<span>{breakable(arm.name)}</span></span></th>',
            _estimate(arm.mean, *arm.limits, mean_places),
        ]
        if compared:
            cells += [
                _estimate(*arm.difference, shift_places, sign=True),
                f"<td>{p_value(number(arm.row['p']))}</td>",
                f"<td class='words'>{_verdict(arm)}</td>",
            ]
        cells += [f"<td>{text(mean_of(means, key), places[key])}</td>" for key in (*others, *costs)]
        cells.append(f"<td>{_runs(arm, study)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    table = (
        f'<table class="ranking" style="--longest:{max(len(arm.name) for arm in study.arms)}ch">'
        f'<caption class="hidden">Ranking by {esc(name_of(study.metric))}, best first</caption>'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    meanings = "; ".join(
        f"<b>{esc(SHORT.get(key, name_of(key)))}</b> {esc(MEANING[key])}"
        for key in (*others, *costs)
        if key in MEANING
    )
    note = f'<p class="note">{meanings}.</p>' if meanings else ""
    return scroller(table, "Ranking table; scrolls sideways") + note


def _head(name: str, under: str, higher: bool | None = None) -> str:
    arrow = ""
    if higher is not None:
        word = "higher is better" if higher else "lower is better"
        sign = "↑" if higher else "↓"
        arrow = f' <span title="{word}" aria-hidden="true">{sign}</span><span class="hidden">, {word}</span>'
    return f'<th scope="col">{esc(name)}{arrow}<small>{esc(under)}</small></th>'


def _estimate(mean: float, low: float, high: float, places: int, sign: bool = False) -> str:
    if not math.isfinite(mean):
        return f"<td>{NONE}</td>"
    return f"<td>{text(mean, places, sign)}<small>{interval(low, high, places, sign)}</small></td>"


def _verdict(arm: Arm) -> str:
    word = arm.verdict
    if not arm.done and not arm.is_reference:
        word = "no result"
    kind, sign = SIGNS.get(word, ("none", "…"))
    return f'<span class="verdict {kind}"><span aria-hidden="true">{sign}</span> {esc(word)}</span>'


def _runs(arm: Arm, study: Study) -> str:
    diverged = arm.row["diverged"]
    note = f"<small>{diverged} diverged</small>" if diverged else ""
    return f"{len(arm.done)} of {study.seeds}{note}"
