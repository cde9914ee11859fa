"""What the commands print."""

from __future__ import annotations

import inspect
import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from logitkit import catalog
from logitkit.comparison.result import Comparison, Row, rank
from logitkit.registry import ROOMS

SHOWN = {
    "classification": ("nll", "ece", "ood_auroc", "noise_accuracy"),
    "regression": ("mae", "r2", "noise_rmse"),
    "depth": ("abs_rel", "delta1", "noise_rmse"),
    "ordinal": ("rps", "kappa", "accuracy", "noise_mae"),
    "retrieval": ("r@1", "r@10", "hubness", "noise_map"),
    "sequence": ("accuracy", "perplexity", "exact", "map_exact"),
    "unlearning": ("retained", "known", "template"),
    "crowd": ("nll", "ece", "ood_auroc", "noise_accuracy"),
    "bags": ("nll", "ece", "ood_auroc", "noise_accuracy"),
    "multilabel": ("p@5", "ndcg@5", "psp@5", "noise_p@1"),
    "oneclass": ("eer", "fpr95", "noise_auroc"),
    "segmentation": ("miou@5", "miou"),
    "boxes": ("ap50", "ap75"),
    "search": ("r@1", "r@5", "r@100", "calls", "noise_mrr@10"),
}
COLOURS = {"better": "green", "worse": "red", "reference": "bold"}


class LiveRanking:
    """The ranking and a progress bar, redrawn as results come in; on a pipe, a line per tenth of the way."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: Any = None
        self._live: Live | None = None
        self._started = time.monotonic()
        self._tenth = 0

    def __enter__(self) -> LiveRanking:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, status: Any) -> None:
        if not self.console.is_terminal:
            tenth = 10 * status.finished // status.total
            if tenth > self._tenth:
                self._tenth = tenth
                seconds = time.monotonic() - self._started
                self.console.print(f"{status.finished}/{status.total} runs, {seconds:.0f} s")
            return
        if self._live is None:
            self._task = self._bar.add_task("runs", total=status.total)
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        self._bar.update(self._task, completed=status.finished)
        table = fitting_table(self.console, status.plan, rank(status.plan, status.records))
        self._live.update(Group(table, self._bar))


def print_ranking(console: Console, result: Comparison) -> None:
    """The final ranking, with a sentence that says how to read it."""
    plan = result.plan
    # further metrics only where they do not squeeze the verdict
    more = SHOWN[plan.dataset.task] if console.width >= 130 else ()
    console.print(fitting_table(console, plan, result.ranking, more))
    seeds = f"{plan.seeds} seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    console.print(
        f"{plan.dataset.name}, {seeds}; differences from {escape(plan.labels[0])} with 95 %"
        " intervals, corrected for overlapping splits and, by Holm's method, for the number of comparisons.",
        style="dim",
        soft_wrap=True,
    )


def fitting_table(console: Console, plan: Any, rows: list[Row], more: tuple[str, ...] = ()) -> Table:
    """The ranking, without its seconds where the console is too narrow for them."""
    table = ranking_table(plan, rows, more)
    if table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum > console.width:
        table.columns.pop()
    return table


def ranking_table(plan: Any, rows: list[Row], more: tuple[str, ...] = ()) -> Table:
    """The ranking as a Rich table; `more` names further metrics to show."""
    percent = plan.metric in ("accuracy", "balanced_accuracy", "noise_accuracy")
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    unit = " %" if percent else ""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("", justify="right")
    table.add_column("recipe", no_wrap=True)
    table.add_column(f"{plan.metric}{unit}", justify="right", no_wrap=True)
    table.add_column("difference [95 %]", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in more:
        table.add_column(name, justify="right")
    table.add_column("seconds", justify="right")

    def number(value: float | None, scale: float = scale, digits: int = digits) -> str:
        return "-" if value is None or math.isnan(value) else f"{scale * value:.{digits}f}"

    for row in rows:
        effect = "-"
        if row.effect is not None:
            e = row.effect
            effect = (
                f"{scale * e.mean:+.{digits}f} [{scale * e.low:+.{digits}f}, {scale * e.high:+.{digits}f}]"
            )
        verdict = row.verdict + (f", {row.diverged} of {row.runs} diverged" if row.diverged else "")
        colour = COLOURS.get(row.verdict, "")
        cells = [
            str(row.rank), escape(row.label), number(row.mean), escape(effect),
            f"[{colour}]{verdict}[/]" if colour else verdict,
        ]  # fmt: skip
        cells += [number(row.means.get(name), 1.0, 3) for name in more]
        cells.append(number(row.means.get("train_seconds"), 1.0, 2))
        table.add_row(*cells)
    return table


def print_parts(console: Console, room: str | None) -> None:
    """One line per part."""
    found = catalog.cards(room)
    if not found:
        console.print(f"room {room} ({ROOMS[room or 'losses']}) has no parts yet.")
        return
    width = max(len(c.name) for c in found)
    last = None
    for card in found:
        if card.room != last:
            console.print(
                f"\n[bold]{card.room}[/]: {ROOMS[card.room]}"
                if last
                else f"[bold]{card.room}[/]: {ROOMS[card.room]}"
            )
            last = card.room
        number = f"{card.number:03d}" if card.number is not None else "  -"
        alias = f" (also {', '.join(card.aliases)})" if card.aliases else ""
        console.print(f"  {card.name:<{width}}  {number}  {escape(card.title)}{alias}", soft_wrap=True)


def print_part(console: Console, name: str, evidence: Path = Path("evidence")) -> None:
    """Card, signature, docstring and evidence of each part called `name`."""
    for card in catalog.find(name):
        console.print(f"[bold]{card.room}/{card.name}[/]  {escape(card.title)}")
        build = card.build
        console.print(f"  from logitkit.{card.room} import {build.__name__}", style="cyan")
        signature = inspect.signature(build)
        call = ", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}"
            for p in signature.parameters.values()
        )
        console.print(escape(f"  {build.__name__}({call})"), soft_wrap=True)
        facts = {
            "paper": card.paper if card.number is None else f"{card.paper}, number {card.number:03d}",
            "companion of": card.companion_of,
            "replaces": card.replaces,
            "tasks": ", ".join(sorted(card.tasks)),
            "needs": ", ".join(card.needs) or None,
            "tuned": ", ".join(f"{k} in {_space(s)}" for k, s in card.search_space.items()) or None,
        }
        for key, value in facts.items():
            if value:
                console.print(escape(f"  {key}: {value}"), soft_wrap=True)
        console.print()
        console.print(escape(inspect.getdoc(build) or ""), soft_wrap=True)
        main = card
        if card.companion_of is not None:  # whose claim may be of another room
            namesakes = catalog.find(card.companion_of)
            main = next(c for c in namesakes if c.number == card.number and c.companion_of is None)
        file = evidence / main.room / f"{main.name}.json"
        if file.is_file():
            console.print()
            print_evidence(console, json.loads(file.read_text()))
        elif not card.reference:
            console.print(
                f"\nNo evidence in {evidence}/ yet: `logitkit verify {main.name}` makes it.", style="dim"
            )


def _space(space: Any) -> str:
    if hasattr(space, "options"):
        return "{" + ", ".join(str(o) for o in space.options) + "}"
    return f"[{space.low:g}, {space.high:g}]" + (" log" if space.log else "")


def print_evidence(console: Console, evidence: Any, progress: str = "") -> None:
    """A claim's checks, one line each, after a word on how far the verification is."""
    found = evidence if isinstance(evidence, dict) else evidence.to_dict()
    name, took = f"{escape(progress)}{found['room']}/{found['part']}", f"{found['seconds']:.0f} s"
    if found["quick"]:
        console.print(f"{name}: runs, {took} (a quick run, which proves nothing)")
        return
    mark = "[green]holds[/]" if found["holds"] else "[red]does not hold[/]"
    console.print(f"{name}: {mark}, {took}")
    for check in found["checks"]:
        sign = "[green]+[/]" if check["holds"] else "[red]-[/]"
        measured = "nan" if check["measured"] is None else f"{check['measured']:.4g}"
        said = f"{escape(check['statement'])}: {measured} {check['relation']} {check['threshold']:g}"
        console.print(f"  {sign} {said}", soft_wrap=True)
    if found.get("note"):
        console.print(f"    {escape(found['note'])}", soft_wrap=True, style="dim")


def print_benchmark_case(console: Console, benchmark: str, case: dict[str, Any]) -> None:
    """The arms of one case, fastest first, and what became of its goals."""
    table = Table("arm", title=f"{benchmark}: {case['case']}", title_justify="left")
    for column in ("median ms", "ratio to ours", "extra MiB"):
        table.add_column(column, justify="right")
    times = case["median_ms"]
    ours = times.get("ours", next(iter(times.values())))
    for arm, ms in sorted(times.items(), key=lambda item: item[1]):
        extra = case["extra_mib"].get(arm)
        table.add_row(arm, f"{ms:,.2f}", f"{ms / ours:.3g}", "" if extra is None else f"{extra:,.0f}")
    console.print(table)
    for name, value in case["values"].items():
        console.print(f"  {name}: {value:.3g}", markup=False)
    for goal in case["goals"]:
        word = "[green]met[/]" if goal["met"] else "[red]not met[/]"
        measured = "failed" if goal["measured"] is None else f"{goal['measured']:.3g}"
        console.print(f"  {word}: {escape(goal['goal'])}; measured {measured}")
    if case["others"] > 0.2:
        console.print(
            f"  [yellow]Other processes used {case['others']:.1f} cores: run it again when it is quiet.[/]"
        )
