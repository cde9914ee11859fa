"""The report as one HTML file that needs nothing else: styles, script, plotly and numbers are all inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from logitkit.engine.checkpoint import write_atomically
from logitkit.engine.tasks import TASKS
from logitkit.report import figures
from logitkit.report.markup import as_json, esc, plot, section, swatch
from logitkit.report.numbers import COSTS, QUANTITIES, count, decimals, mean_of, name_of, text
from logitkit.report.palette import css_variables, dark_of
from logitkit.report.pooling import pooled_reliability
from logitkit.report.recipes import recipe_details, reproduce
from logitkit.report.study import Arm, Study
from logitkit.report.summary import summarise, title
from logitkit.report.table import ranking_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

MANY = 10  # from so many arms on, curves start with the best few and small plots are folded after the first
FIRST = 6


def write_report(results: Mapping[str, Any], path: Path) -> Path:
    """Write the report of a comparison to `path` and return it.

    results: what `Comparison.to_dict()` returns, or the same read back from JSON.

    Raises InputError when the file cannot be written; what was there before is kept.
    """
    write_atomically(path, render(Study(results)).encode())
    return path


def render(study: Study) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    parts = [part for part in _sections(study) if part[2]]
    page = Template(_asset("report.html"))
    return page.substitute(
        title=esc(title(study)),
        kicker=esc(_kicker(study)),
        summary=_summary(study),
        contents="".join(f'<li><a href="#{key}">{esc(heading)}</a></li>' for key, heading, _ in parts),
        sections="\n".join(content for _, _, content in parts),
        version=esc(study.about["versions"].get("logitkit", "")),
        variables=css_variables(),
        style=_asset("report.css"),
        settings=as_json({"dark": dark_of()}),
        plotly=get_plotlyjs(),
        script=_asset("report.js"),
    )


def _asset(name: str) -> str:
    return files("logitkit.report").joinpath(name).read_text(encoding="utf-8")


def _kicker(study: Study) -> str:
    recipes = count(len(study.arms), "recipe", "recipes")
    runs = f"{study.about['runs_finished']:,} of {count(study.about['runs_planned'], 'run', 'runs')}"
    return f"{recipes} · {count(study.seeds, 'seed', 'seeds')} · {runs} finished · {name_of(study.metric)}"


def _summary(study: Study) -> str:
    said = summarise(study)
    verdict = f"<strong>{esc(said.verdict)}</strong>"
    rest = map(esc, (said.detail, said.leader, said.caveats))
    return " ".join(filter(None, (esc(said.compared), verdict, *rest)))


def _sections(study: Study) -> list[tuple[str, str, str]]:
    """Key, heading and HTML of each section; the HTML is empty where there is nothing to show."""
    makers: list[tuple[str, str, Callable[[Study], str]]] = [
        ("ranking", "Ranking" if len(study.arms) > 1 else "Result", _ranking),
        ("cost", "Quality against cost", _cost),
        ("curves", "Learning curves", _curves),
        ("reliability", "Reliability", _reliability),
        ("ood", "Out-of-distribution scores", _ood),
        ("recipes", "Recipes", recipe_details),
        ("reproduce", "Reproduce", reproduce),
        ("method", "Method and provenance", _method),
    ]
    found = []
    for key, heading, make in makers:
        content = make(study)
        about = _ABOUT[key](study) if key in _ABOUT else ""
        found.append((key, heading, section(key, heading, content, about=about) if content else ""))
    return found


def _ranking(study: Study) -> str:
    table = ranking_table(study)
    if not study.ranked:
        return table
    words = figures.describe_ranking(study.ranked, study.metric)
    return (
        f'{table}<figure class="chart">{plot(figures.ranking(study), words)}'
        f"<figcaption>{esc(_ranking_caption(study))}</figcaption></figure>"
    )


def _ranking_caption(study: Study) -> str:
    several = [arm for arm in study.ranked if len(arm.done) > 1]
    if several:
        said = ["Large marks are means, lines their 95% intervals, small dots single seeds."]
    else:
        said = ["Each mark is a single run, so there are no intervals."]
    if study.reference.done and len(study.arms) > 1:
        said.append(f"The dotted line is the mean of {study.reference.name}, the reference.")
    if any(figures.within(arm.limits, study.metric) != arm.limits for arm in several):
        said.append(f"Intervals are cut at what {name_of(study.metric)} can be.")
    if several and len(study.arms) > 1:
        said.append(
            "Verdicts come from differences paired by seed: two intervals may overlap and still differ."
        )
    return " ".join(said)


def _cost(study: Study) -> str:
    if len(study.ranked) < 2 or not TASKS[study.task].trains:
        return ""
    figure = figures.cost(study)
    costs = {key: [mean_of(arm.row["means"], key) for arm in study.ranked] for key in COSTS}
    costs = {key: values for key, values in costs.items() if key in figure.layout.meta["choices"]}
    if not costs:
        return ""
    # a cost that is the same for all tells nothing on an axis: it is said in words
    same = [
        key
        for key, values in costs.items()
        if len(values) > 1 and max(values) - min(values) < 0.02 * max(values)
    ]
    options = [key for key in costs if key not in same] or list(costs)[:1]
    buttons = _switch({key: name_of(key).capitalize() for key in options}, "Cost on the horizontal axis")
    note = "".join(f" {_same(key, costs[key])}" for key in same if key not in options)
    several = any(len(arm.done) > 1 for arm in study.ranked)
    what = "Means over seeds; vertical lines are 95% intervals." if several else "One run each."
    words = (
        f"Mean {name_of(study.metric)} of each recipe against its {name_of(options[0])};"
        " the numbers are in the table."
    )
    return (
        f'<figure class="chart">{buttons}{_legend(study.ranked, [])}{plot(figure, words)}'
        f"<figcaption>{what}{note}</figcaption></figure>"
    )


def _curves(study: Study) -> str:
    figure = figures.curves(study)
    if not figure.data or not TASKS[study.task].trains:
        return ""
    drawn = {trace.meta["arm"] for trace in figure.data}
    arms = [arm for arm in study.arms if arm.index in drawn]
    hidden = [] if len(arms) <= MANY else [arm for arm in arms[FIRST:] if not arm.is_reference]
    score = figures.validation_score(study)[1]
    words = f"{score[0].upper()}{score[1:]} and training loss of each recipe by training step."
    names = {"scaled": "Losses on one scale", "recorded": "Losses as recorded"}
    buttons = _switch(names, "Scale of the training loss") if figure.layout.meta["choices"] else ""
    note = "Press a recipe to hide or show it." if len(arms) > 1 else ""
    if hidden:
        note += f" The first {FIRST} of the ranking and the reference are on at the start."
    if buttons:
        note += " On one scale, each training loss runs from 1 at its first point to 0 at its lowest."
    return (
        f'<figure class="chart">{buttons}{_legend(arms, hidden, line=True)}{plot(figure, words)}'
        f"<figcaption>{note}</figcaption></figure>"
    )


def _same(key: str, values: list[float]) -> str:
    places = 0 if key == "parameters" else decimals(values)
    low, high = text(min(values), places), text(max(values), places)
    unit = f" {QUANTITIES[key][1]}".rstrip()
    amount = f"{low}{unit} for all" if low == high else f"{low} to {high}{unit}, too close to plot"
    return f"{name_of(key).capitalize()}: {amount}."


def _switch(names: Mapping[str, str], label: str) -> str:
    """Buttons of which one is pressed, the first at the start; none where there is no choice."""
    if len(names) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-choice="{key}" aria-pressed="{_bool(position == 0)}">'
        f"{esc(name)}</button>"
        for position, (key, name) in enumerate(names.items())
    )
    return f'<div><div class="switch" role="group" aria-label="{esc(label)}">{buttons}</div></div>'


def _legend(arms: list[Arm], hidden: list[Arm], line: bool = False) -> str:
    """Buttons that show and hide arms in the plot of the same figure; none for a single arm."""
    if len(arms) < 2:
        return ""
    chips = "".join(
        f'<button type="button" class="chip" data-arm="{arm.index}"'
        f' aria-pressed="{_bool(arm not in hidden)}">{swatch(arm, line)}<span>{esc(arm.name)}</span></button>'
        for arm in arms
    )
    every = (
        '<button type="button" class="chip all" data-every="true">Show all</button>'
        '<button type="button" class="chip all" data-every="false">Hide all</button>'
        if len(arms) > MANY
        else ""
    )
    return f'<div class="legend" role="group" aria-label="Recipes shown">{every}{chips}</div>'


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _reliability(study: Study) -> str:
    def words(arm: Arm) -> str:
        return f"Reliability diagram of {arm.name}: accuracy against confidence in 15 bins."

    bins = [b for arm in study.arms if (b := pooled_reliability(figures.reliability_bins(arm)))]
    most = max((max(b["count"]) for b in bins), default=1.0)
    make = partial(figures.reliability, most=most)
    return _small_plots(study, make, "ece", "calibration error", words)


def _ood(study: Study) -> str:
    def words(arm: Arm) -> str:
        return f"Histograms of the abnormality score of {arm.name}, in and out of distribution."

    return _small_plots(study, figures.ood, "ood_auroc", "AUROC", words)


def _small_plots(
    study: Study,
    make: Callable[[Arm], go.Figure | None],
    metric: str,
    metric_name: str,
    words: Callable[[Arm], str],
) -> str:
    """One small plot per arm that has one; beyond `MANY`, those after the first few are folded."""
    cards = []
    for arm in study.arms:
        figure = make(arm)
        if figure is None:
            continue
        value = mean_of(arm.row["means"], metric)
        score = f"{metric_name} {text(value, decimals([value]))}"
        cards.append(
            f'<figure class="card"><figcaption title="{esc(arm.name)}">{swatch(arm)}'
            f"<span>{esc(arm.name)}<small>{esc(score)}</small></span></figcaption>"
            f"{plot(figure, f'{words(arm)} Mean {score}.')}</figure>"
        )
    if not cards:
        return ""
    shown, folded = (cards, []) if len(cards) <= MANY else (cards[:FIRST], cards[FIRST:])
    grid = f'<div class="cards">{"".join(shown)}</div>'
    if folded:
        grid += (
            f'<details class="more"><summary>{len(folded)} more, in order of rank</summary>'
            f'<div class="cards">{"".join(folded)}</div></details>'
        )
    return grid


def _method(study: Study) -> str:
    data, about = study.data, study.about
    facts = {
        "Data": f"{data['name']}, {count(data['rows'], 'row', 'rows')}, {data['task']}",
        "Data fingerprint": data["fingerprint"],
        "Runs": f"{about['runs_finished']} of {about['runs_planned']} finished",
        "Test rows to training rows": f"{about['test_to_train']:.3f}",
        "Machine": about["machine"],
        "Versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    }
    rows = "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _about_ranking(study: Study) -> str:
    if len(study.arms) == 1:
        return ""
    better = "higher" if study.better_is_higher else "lower"
    return (
        f"By mean {esc(name_of(study.metric))} on test rows ({better} is better); differences are from"
        f" {esc(study.reference.name)}, the first recipe named."
    )


def _about_ood(study: Study) -> str:
    detectors = list(dict.fromkeys(str(arm.recipe["detect"]) for arm in study.arms))
    which = f"{detectors[0]} score" if len(detectors) == 1 else "score of each recipe's detector"
    return (
        f"The {esc(which)}, higher being more abnormal, of test rows (filled) and of rows from elsewhere"
        " (outlined). Seeds are added up on common bins across the range of all of them, each old bin divided"
        " by overlap. The axes differ from recipe to recipe."
    )


_ABOUT: dict[str, Callable[[Study], str]] = {
    "ranking": _about_ranking,
    "cost": lambda study: "What each recipe scores for what it costs: further left is cheaper.",
    "curves": lambda study: (
        "Means over the seeds that reached a step."
        + (
            " Different losses have different scales, so their training curves say how fast each falls, not"
            " which is best."
            if "loss" in study.varied
            else ""
        )
    ),
    "reliability": lambda study: (
        "How often predictions of a given confidence are right, over the test rows of all seeds. On the"
        " dotted diagonal confidence can be taken at its word; below it the model is overconfident. Bars"
        " count the predictions in each bin, on a logarithmic scale."
    ),
    "ood": _about_ood,
    "recipes": lambda study: (
        "Everything that determines each model besides its seed."
        + (f" What varies is marked: {esc(', '.join(study.varied))}." if study.varied else "")
    ),
    "method": lambda study: (
        "Differences from the reference are paired by seed and tested with the variance-corrected resampled"
        " t-test (Nadeau and Bengio, 2003), since runs on overlapping splits of one data set are not"
        " independent; the 95% intervals carry the same correction. P‑values are adjusted for the number of"
        " comparisons by Holm’s procedure (1979), which keeps the chance of any false call at 5% or less; the"
        " intervals are not adjusted."
    ),
}
