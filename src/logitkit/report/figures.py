"""The report's plots. Each is a plotly figure in the light theme; the page's script recolours it for dark.

`layout.meta["narrow"]` holds what changes on a narrow screen, as `path.into.the.layout` -> value. A trace's
`meta["arm"]` is the arm that it shows. `meta["choices"]`, of the layout and of its traces, holds what changes
with the button that the reader presses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from logitkit.report.numbers import (
    COSTS,
    bounds,
    decimals,
    interval,
    mean_of,
    name_of,
    number,
    text,
    with_unit,
)
from logitkit.report.palette import LIGHT, colour, dash, symbol
from logitkit.report.pooling import mean_curve, pooled_histogram, pooled_reliability, unit_scale
from logitkit.report.study import Arm, Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LONGEST = {"wide": 34, "narrow": 42}  # characters of a label beside and above its row


def ranking_figure(results: Mapping[str, Any]) -> go.Figure:
    """The arms from best to worst: mean of the primary metric, its 95 % interval, and every seed as a dot.

    results: what `Comparison.to_dict()` returns.
    """
    return ranking(Study(results))


def ranking(study: Study) -> go.Figure:
    """As `ranking_figure`, of a study already read."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout())
    arms, metric = study.ranked, study.metric
    places = decimals([v for arm in arms for v in arm.values(metric)])
    for position, arm in enumerate(arms):
        shade = colour(arm.index)
        low, high = within(arm.limits, metric)
        if math.isfinite(low) and high > low:
            figure.add_scatter(
                x=[low, high], y=[position, position], mode="lines", hoverinfo="skip",
                line={"color": shade, "width": 2.5}, meta={"arm": arm.index},
            )  # fmt: skip
        done = [run for run in arm.done if math.isfinite(number(run["metrics"].get(metric)))]
        done = done if len(done) > 1 else []  # a single seed is its own mean
        figure.add_scatter(
            x=[run["metrics"][metric] for run in done], y=[position + 0.24] * len(done), mode="markers",
            marker={"color": shade, "size": 5.5, "opacity": 0.7}, meta={"arm": arm.index},
            hovertemplate="%{text}<extra></extra>",
            text=[
                f"{_plain(arm.name)}<br>seed {run['seed']}: {text(run['metrics'][metric], places)}"
                for run in done
            ],
        )  # fmt: skip
        figure.add_scatter(
            x=[arm.mean], y=[position], mode="markers", meta={"arm": arm.index},
            marker={"color": shade, "size": 12, "symbol": symbol(arm.index), "line": _outline()},
            hovertemplate="%{text}<extra></extra>",
            text=[f"{_plain(arm.name)}<br>mean {text(arm.mean, places)} {interval(*arm.limits, places)}"],
        )  # fmt: skip
    if study.reference.done and len(arms) > 1:
        figure.add_vline(
            x=study.reference.mean, layer="below", line={"color": LIGHT["soft"], "width": 1, "dash": "dot"}
        )
    rows = list(range(len(arms)))
    label = _name if len(study.arms) > 1 else attrgetter("name")
    figure.update_xaxes(title_text=with_unit(metric), range=_span(study), showgrid=True)
    figure.update_yaxes(
        tickmode="array", tickvals=rows, range=[len(arms) - 0.4, -0.6], showgrid=False, zeroline=False,
        ticktext=[_cut(label(arm), LONGEST["wide"]) + "  " for arm in arms],
        automargin=True, tickfont={"size": 13}, fixedrange=True,
    )  # fmt: skip
    height = 86 + 38 * len(arms)
    above = [
        {"x": 0, "xref": "paper", "xanchor": "left", "y": row - 0.38, "yanchor": "middle", "showarrow": False,
         "text": _cut(label(arm), LONGEST["narrow"]), "font": {"size": 12}, "align": "left"}
        for row, arm in zip(rows, arms, strict=True)
    ]  # fmt: skip
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 16, "t": 8, "b": 46},
        meta={
            "narrow": {
                "yaxis.showticklabels": False, "annotations": above, "height": 96 + 50 * len(arms),
                "yaxis.range": [len(arms) - 0.45, -0.75], "xaxis.nticks": 5,
            }
        },
    )  # fmt: skip
    return figure


def cost(study: Study) -> go.Figure:
    """Quality against cost: one point per arm, for each cost that there is to choose from."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout())
    options = [
        key for key in COSTS if any(math.isfinite(mean_of(arm.row["means"], key)) for arm in study.arms)
    ]
    first = options[0] if options else "train_seconds"
    places = decimals([arm.mean for arm in study.ranked])
    for arm in reversed(study.ranked):
        low, high = within(arm.limits, study.metric)
        costs = {key: mean_of(arm.row["means"], key) for key in options}
        about = [f"{name_of(study.metric)} {text(arm.mean, places)} {interval(*arm.limits, places)}"]
        about += [f"{with_unit(key)} {text(value, decimals([value]))}" for key, value in costs.items()]
        figure.add_scatter(
            x=[_none(costs.get(first, math.nan))], y=[arm.mean], mode="markers",
            error_y={
                "type": "data", "symmetric": False, "width": 0, "thickness": 1.2, "color": colour(arm.index),
                "array": [high - arm.mean], "arrayminus": [arm.mean - low],
            } if math.isfinite(low) else None,
            marker={"color": colour(arm.index), "size": 12, "symbol": symbol(arm.index), "line": _outline()},
            text=["<br>".join([f"<b>{_plain(_name(arm))}</b>", *about])],
            hovertemplate="%{text}<extra></extra>",
            meta={
                "arm": arm.index, "choices": {key: {"x": [_none(value)]} for key, value in costs.items()},
            },
        )  # fmt: skip
    spans = {key: _cost_span([mean_of(arm.row["means"], key) for arm in study.ranked]) for key in options}
    figure.update_xaxes(title_text=with_unit(first), range=spans.get(first))
    figure.update_yaxes(title_text=with_unit(study.metric), title_standoff=10, range=_span(study))
    figure.update_layout(
        height=420,
        margin={"l": 76, "r": 16, "t": 12, "b": 50},
        meta={
            "choices": {
                key: {
                    "xaxis.title.text": with_unit(key),
                    "xaxis.uirevision": key,
                    "xaxis.range": spans[key],
                }
                for key in options
            },
            "narrow": {"height": 340, "xaxis.nticks": 5},
        },
    )
    return figure


def curves(study: Study) -> go.Figure:
    """Validation score and training loss by step, each the mean over the arm's finished runs.

    Where the loss varies, training losses can be read on one scale or as recorded.
    """
    from plotly.subplots import make_subplots

    key, score = validation_score(study)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    figure.update_layout(_layout())
    both = "loss" in study.varied
    for panel, column in enumerate((key, "loss"), start=1):
        for arm in reversed(study.arms):
            steps, values = mean_curve([run["curve"] for run in arm.done], column)
            if not steps:
                continue
            rescale = both and column == "loss"
            shown = unit_scale(values) if rescale else values
            choices = {"scaled": {"y": shown}, "recorded": {"y": values}} if rescale else {}
            figure.add_scatter(
                x=steps, y=shown, mode="lines" if len(steps) > 1 else "markers", row=panel, col=1,
                line={"color": colour(arm.index), "width": 2, "dash": dash(arm.index)},
                marker={"color": colour(arm.index), "symbol": symbol(arm.index), "size": 9},
                name=_cut(_name(arm), 40), meta={"arm": arm.index, "choices": choices},
                hovertemplate="%{fullData.name}<br>step %{x}: %{y:.4~g}<extra></extra>",
            )  # fmt: skip
    scaled = "training loss,<br>first to lowest"
    figure.update_yaxes(title_text=score, title_standoff=10, row=1, col=1)
    figure.update_yaxes(
        title_text=scaled if both else "training loss", title_standoff=10, row=2, col=1, rangemode="normal"
    )
    figure.update_xaxes(title_text="training step", row=2, col=1)
    switches = {
        "scaled": {"yaxis2.title.text": scaled, "yaxis2.uirevision": "scaled"},
        "recorded": {"yaxis2.title.text": "training loss", "yaxis2.uirevision": "recorded"},
    }
    figure.update_layout(
        height=560,
        margin={"l": 76, "r": 16, "t": 12, "b": 50},
        meta={
            "choices": switches if both else {},
            "narrow": {"height": 480, "xaxis.nticks": 5, "xaxis2.nticks": 5, "margin.l": 64},
        },
    )
    return figure


def validation_score(study: Study) -> tuple[str, str]:
    """The curve's column that validation is read from, and its name."""
    return {
        "regression": ("val_rmse", "validation RMSE"),
        "depth": ("val_rmse", "validation RMSE"),
        "ordinal": ("val_mae", "validation MAE"),
        "sequence": ("val_bits", "validation bits per token"),
        "unlearning": ("val_bits", "validation bits per token"),
        "multilabel": ("val_p@1", "validation P@1"),
        "bags": ("val_nll", "validation cross-entropy of bags"),
        "search": ("val_mrr@10", "validation MRR@10"),
    }.get(study.task, ("val_accuracy", "validation accuracy"))


def reliability(arm: Arm, most: float) -> go.Figure | None:
    """Accuracy against confidence in each bin, pooled over seeds, above how many examples each bin holds.

    most: the top of the count axis, which is the same for all arms.
    """
    import plotly.graph_objects as go

    pooled = pooled_reliability(reliability_bins(arm))
    if pooled is None:
        return None
    shade, x, y, count = colour(arm.index), pooled["confidence"], pooled["accuracy"], pooled["count"]
    figure = go.Figure(layout=_layout())
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        hoverinfo="skip",
        line={"color": LIGHT["soft"], "width": 1, "dash": "dot"},
    )
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", line={"color": shade, "width": 1}, meta={"arm": arm.index},
        marker={"color": shade, "opacity": 1, "line": _outline(),
                "size": [5 + 7 * math.sqrt(c / max(count)) for c in count]},
        text=[f"{c:,.0f} predictions<br>confidence {a:.3f}<br>accuracy {b:.3f}"
              for a, b, c in zip(x, y, count, strict=True)],
        hovertemplate="%{text}<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    figure.add_bar(
        x=pooled["middle"], y=count, yaxis="y2", width=0.056,
        marker={"color": shade, "opacity": 0.45, "line": {"width": 0}},
        hovertemplate="%{y:,} predictions<extra></extra>", meta={"arm": arm.index},
    )  # fmt: skip
    ticks = {"range": [0, 1.02], "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1]}
    top = math.ceil(math.log10(most) + 0.1)
    figure.update_layout(
        height=330,
        margin={"l": 52, "r": 10, "t": 6, "b": 44},
        xaxis={"title": {"text": "confidence"}, **ticks, "anchor": "y2"},
        yaxis={"title": {"text": "accuracy"}, **ticks, "domain": [0.33, 1]},
        yaxis2={**_axis(), "title": {"text": "count"}, "domain": [0, 0.25], "type": "log",
                "range": [-0.3, top], "tickvals": [10**k for k in range(0, top + 1, max(1, top // 2))],
                "tickformat": "~s"},
        meta={"narrow": {"height": 340}},
    )  # fmt: skip
    return figure


def reliability_bins(arm: Arm) -> list[Mapping[str, Sequence[float]]]:
    """What each finished run recorded for its reliability diagram."""
    return [run["details"]["reliability"] for run in arm.done if "reliability" in run["details"]]


def ood(arm: Arm) -> go.Figure | None:
    """Abnormality scores of test examples and of examples from elsewhere, pooled over seeds."""
    import plotly.graph_objects as go

    pooled = pooled_histogram([r["details"]["ood"] for r in arm.done if "ood" in r["details"]])
    if pooled is None:
        return None
    edges, inside, outside = pooled["edges"], pooled["inside"], pooled["outside"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    figure = go.Figure(layout=_layout())
    figure.add_bar(
        x=middles, y=inside, width=edges[1] - edges[0], meta={"arm": arm.index},
        marker={"color": colour(arm.index), "opacity": 0.6, "line": {"width": 0}},
        hovertemplate="in-distribution: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[edges[0], *(e for e in edges[1:-1] for _ in (0, 1)), edges[-1]],
        y=[v for v in outside for _ in (0, 1)], mode="lines",
        line={"color": LIGHT["ink"], "width": 1.8}, meta={"arm": arm.index},
        hovertemplate="out-of-distribution: %{y:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        height=250,
        margin={"l": 52, "r": 10, "t": 6, "b": 44},
        xaxis={"title": {"text": "abnormality score"}, "showgrid": False, "nticks": 6},
        yaxis={"title": {"text": "share"}, "tickformat": ".0%", "rangemode": "tozero", "nticks": 5},
        bargap=0,
    )
    return figure


def _layout() -> dict[str, Any]:
    """What all plots share. An empty template, so that no default theme travels with every figure."""
    return {
        "template": {},
        "paper_bgcolor": LIGHT["page"],
        "plot_bgcolor": LIGHT["page"],
        "font": {"family": FONT, "size": 13, "color": LIGHT["ink"]},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": LIGHT["raised"],
            "bordercolor": LIGHT["line"],
            "font": {"family": FONT, "size": 13, "color": LIGHT["ink"]},
            "align": "left",
        },
        "modebar": {"bgcolor": LIGHT["page"], "color": LIGHT["soft"], "activecolor": LIGHT["ink"]},
        "uirevision": "kept",
        "xaxis": _axis(),
        "yaxis": _axis(),
        "xaxis2": _axis(),
        "yaxis2": _axis(),
    }


def _axis() -> dict[str, Any]:
    return {
        "gridcolor": LIGHT["grid"],
        "linecolor": LIGHT["line"],
        "zeroline": False,
        "tickfont": {"size": 12, "color": LIGHT["soft"]},
        "title": {"font": {"size": 13, "color": LIGHT["soft"]}, "standoff": 8},
    }


def _outline() -> dict[str, Any]:
    return {"color": LIGHT["page"], "width": 1}


def _span(study: Study) -> list[float] | None:
    """Axis limits around every seed and interval, inside what the metric can be."""
    metric = study.metric
    values = [v for arm in study.ranked for v in (*arm.values(metric), *within(arm.limits, metric))]
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return None
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return [low - room, high + room]


def _cost_span(values: Sequence[float]) -> list[float] | None:
    """Axis limits around the costs, at least a tenth of the highest wide: trifles must look like it."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return None
    low, high = min(values), max(values)
    half = 0.55 * max(high - low, 0.1 * high)
    middle = (low + high) / 2
    return [max(0.0, middle - half), middle + half] if half else None


def within(limits: tuple[float, float], metric: str) -> tuple[float, float]:
    """An interval cut to the values that the metric can take; NaN stays NaN."""
    low, high = limits
    least, most = bounds(metric)
    return (max(low, least), min(high, most)) if math.isfinite(low) and math.isfinite(high) else limits


def _name(arm: Arm) -> str:
    return f"{arm.name} (reference)" if arm.is_reference else arm.name


def _cut(label: str, longest: int) -> str:
    """At most `longest` characters, the middle giving way; safe for plotly."""
    if len(label) > longest:
        head = (longest - 1) * 2 // 3
        label = f"{label[:head].rstrip()}…{label[len(label) - (longest - 1 - head) :].lstrip()}"
    return _plain(label)


def _plain(label: str) -> str:
    """Plotly reads a little HTML in every text: say the user's brackets as such."""
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def describe_ranking(arms: Sequence[Arm], metric: str) -> str:
    """The ranking plot in words."""
    places = decimals([arm.mean for arm in arms])
    rows = [f"{arm.name} {text(arm.mean, places)} {interval(*arm.limits, places)}".strip() for arm in arms]
    return f"Mean {name_of(metric)} with 95% interval, best first: {'; '.join(rows)}."
