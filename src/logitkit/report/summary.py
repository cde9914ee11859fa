"""The comparison in a few plain sentences, none of which says more than the verdicts do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from logitkit.report.numbers import count, decimals, name_of, text
from logitkit.report.study import Arm, Study

MOST_NAMES = 3  # named one by one; more are counted


@dataclass(frozen=True)
class Summary:
    """What was done; what the data support, in a sentence and then in detail; who ranks first; what to
    keep in mind."""

    compared: str
    verdict: str
    detail: str
    leader: str
    caveats: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.compared, self.verdict, self.detail, self.leader, self.caveats)))


def summarise(study: Study) -> Summary:
    """The summary of a study. Plain text: not escaped."""
    verdict, *detail = _verdict(study)
    return Summary(_compared(study), verdict, " ".join(detail), _leader(study), _caveats(study))


def title(study: Study) -> str:
    """The report's heading."""
    data = study.data["name"]
    if len(study.arms) == 1:
        return f"{study.arms[0].name} on {data}"
    return f"{study.noun(many=True).capitalize()} on {data}"


def _compared(study: Study) -> str:
    data = study.data
    size = count(data["rows"], study.examples.removesuffix("s"), study.examples)
    if data["classes"]:
        names = ("document", "documents") if study.task == "search" else ("class", "classes")
        size += f", {count(data['classes'], *names)}"
    what = count(len(study.arms), study.noun(), study.noun(many=True))
    verb = "was trained" if len(study.arms) == 1 else "were compared"
    budget = count(study.seeds, "seed", "seeds")
    if study.tune:
        each = "" if len(study.arms) == 1 else "each "
        budget += f", {each}tuned with {count(study.tune, 'trial', 'trials')} per seed on validation rows"
    judged = "judged" if len(study.arms) == 1 else "ranked"
    return (
        f"{what} {verb} on {data['name']} ({size}) with {budget}, and {judged} by {name_of(study.metric)}"
        " on held-out test rows."
    )


def _leader(study: Study) -> str:
    if not study.ranked:
        return ""
    first = study.ranked[0]
    places = decimals([arm.mean for arm in study.ranked])
    low, high = first.limits
    spread = (
        f" (95% interval {text(low, places)} to {text(high, places)})"
        if math.isfinite(low) and math.isfinite(high)
        else ""
    )
    mean = f"{text(first.mean, places)}{spread}"
    if len(study.arms) == 1:
        return f"Its mean {name_of(study.metric)} is {mean}."
    ties = [arm for arm in study.ranked if arm.mean == first.mean]
    extreme = "highest" if study.better_is_higher else "lowest"
    who = first.name + (", the reference," if first.is_reference else "")
    if len(ties) > 1:
        return f"{names(ties, study)} share the {extreme} mean {name_of(study.metric)}, {mean}."
    return f"{who} has the {extreme} mean {name_of(study.metric)}, {mean}."


def _verdict(study: Study) -> list[str]:
    """The headline, and what there is to add."""
    if not study.ranked:
        return ["No run has a result yet, so there is nothing to rank."]
    reference = study.reference
    if len(study.arms) == 1:
        return [f"There is nothing to compare {reference.name} with."]
    if not reference.done:
        return [f"{reference.name}, the reference, has no finished run, so no difference can be tested."]
    better, worse, unclear, untested = (
        [arm for arm in study.arms if arm.verdict == verdict and arm.done]
        for verdict in ("better", "worse", "no difference shown", "too few runs")
    )
    if not (better or worse or unclear):
        return [_nothing_tested(study)]
    where = f"on {study.data['name']} at {count(study.seeds, 'seed', 'seeds')}"
    contenders = better + worse + unclear
    found = []
    if better:
        found.append(f"{names(better, study)} {_is(better)} shown to beat {reference.name} {where}.")
        if len(better) > 1:
            found.append("Which of them is best is not tested.")
    elif contenders == unclear[:1]:
        found.append(f"{unclear[0].name} is not shown to beat {reference.name} {where}.")
    elif contenders != worse[:1]:
        found.append(f"No {study.noun()} is shown to beat {reference.name} {where}.")
    if worse:
        place = "" if found else f" {where}"
        found.append(f"{names(worse, study)} {_is(worse)} shown to be worse than {reference.name}{place}.")
    if unclear and len(contenders) == len(unclear):
        found.append("That is not evidence that they are equal.")
    elif unclear:
        found.append(f"For {names(unclear, study)} no difference is shown.")
    if untested:
        found.append(f"{names(untested, study)} could not be tested: fewer than 2 seeds to pair.")
    return found


def _nothing_tested(study: Study) -> str:
    reference = study.reference.name
    if study.seeds == 1:
        return (
            f"With 1 seed no difference from {reference} can be tested, so the order may be chance;"
            " 5 seeds are usual."
        )
    return f"No difference from {reference} can be tested: fewer than 2 seeds to pair."


def _caveats(study: Study) -> str:
    found = []
    planned, missing = study.about["runs_planned"], study.about["runs_planned"] - study.about["runs_finished"]
    if missing > 0:
        verb = "is" if missing == 1 else "are"
        found.append(
            f"This is a partial result: {missing} of {count(planned, 'run', 'runs')} {verb} not finished."
        )
    diverged = [arm for arm in study.arms if arm.row["diverged"]]
    if diverged:
        total = count(sum(arm.row["diverged"] for arm in diverged), "run", "runs")
        each = ", ".join(f"{arm.row['diverged']} of {arm.name}" for arm in diverged[:MOST_NAMES])
        more = f" and others of {len(diverged) - MOST_NAMES} more" if len(diverged) > MOST_NAMES else ""
        flattered = any(arm.done for arm in diverged)
        note = "; means leave these out, which flatters a recipe that fails often" if flattered else ""
        found.append(f"{total} diverged ({each}{more}){note}.")
    empty = [arm for arm in study.arms if not arm.done]
    if empty and study.ranked:
        have = "has" if len(empty) == 1 else "have"
        found.append(f"{names(empty, study)} {have} no result.")
    return " ".join(found)


def names(arms: Sequence[Arm], study: Study) -> str:
    """`a`, `a and b`, `a, b and c`; more than that are only counted: `12 losses`."""
    if len(arms) > MOST_NAMES:
        return f"{len(arms)} {study.noun(many=True)}"
    found = [arm.name for arm in arms]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"


def _is(arms: Sequence[Arm]) -> str:
    return "is" if len(arms) == 1 else "are"
