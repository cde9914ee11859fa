"""What each row is made of, and how to get it again."""

from __future__ import annotations

import json
from typing import Any

from logitkit.report.markup import code, esc, scroller, swatch
from logitkit.report.study import Arm, Study

FROM_PYTHON = "logitkit.compare("  # how a study that was not started by a command begins its `command`


def recipe_details(study: Study) -> str:
    """Every arm's recipe, folded; what varies is marked, and tuned values follow, seed by seed."""
    return "".join(_one(arm, study) for arm in study.arms)


def _one(arm: Arm, study: Study) -> str:
    tuned = _tuned(arm) if study.tune else ""
    return (
        f'<details class="recipe"><summary><span class="rank">{arm.row["rank"]}</span>{swatch(arm)}'
        f"<span>{esc(arm.name)}</span></summary>"
        f'<div class="recipe-body"><pre tabindex="0" aria-label="Recipe of {esc(arm.name)}"><code>'
        f"{_yaml(arm, study)}</code></pre>{tuned}</div></details>"
    )


def _yaml(arm: Arm, study: Study) -> str:
    import yaml

    lines = []
    for key, value in arm.recipe.items():
        line = yaml.safe_dump({key: value}, default_flow_style=False, width=10**6, allow_unicode=True).strip()
        lines.append(f"<mark>{esc(line)}</mark>" if key in study.varied else esc(line))
    return "\n".join(lines)


def _tuned(arm: Arm) -> str:
    if not arm.runs:
        return ""
    names = list(dict.fromkeys(name for run in arm.runs for name in run["tuned"]))
    if not names:
        return '<p class="about">Tuning found nothing better than the recipe as written, on any seed.</p>'
    head = "".join(f'<th scope="col">seed {run["seed"]}</th>' for run in arm.runs)
    rows = "".join(
        f'<tr><th scope="row">{esc(name)}</th>'
        + "".join(
            f"<td>{esc(_value(run['tuned'][name])) if name in run['tuned'] else 'as written'}</td>"
            for run in arm.runs
        )
        + "</tr>"
        for name in names
    )
    table = (
        f'<table class="plain"><thead><tr><th scope="col">tuned</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return scroller(table, f"Tuned values of {arm.name}")


def _value(value: Any) -> str:
    return (
        f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )


def reproduce(study: Study) -> str:
    """The command again, and the lines that put the winner to use."""
    command = study.about["command"]
    again = python_call(study) if command.startswith(FROM_PYTHON) else command
    blocks = [f"<h3>Run it again</h3>{code(again, 'the comparison')}"]
    winner = study.about["winner"]
    if winner:
        blocks.append(
            f"<h3>Use the winner</h3>{code(use_winner(study, winner), 'the lines that use the winner')}"
        )
    return "".join(blocks)


def python_call(study: Study) -> str:
    """The call of `logitkit.compare` that makes this study, for one that was not started by a command."""
    from logitkit.engine.recipe import Recipe

    by_index = sorted(study.arms, key=lambda arm: arm.index)
    usual = Recipe.of().model_dump(mode="json")
    settings: dict[str, Any] = {}
    for key, value in by_index[0].recipe.items():
        if key in study.varied:
            settings[key] = list({json.dumps(arm.recipe[key]): arm.recipe[key] for arm in by_index}.values())
        elif value != usual.get(key) or key in ("data", "loss"):
            settings[key] = value
    settings |= {"seeds": study.seeds, **({"tune": study.tune} if study.tune else {}), "metric": study.metric}
    lines = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    return f"import logitkit\n\nlogitkit.compare(\n{lines})"


def use_winner(study: Study, folder: str) -> str:
    """Three lines of Python."""
    from logitkit.engine.tasks import TASKS

    own_code = ":" in str(study.arms[0].recipe["model"]).partition("(")[0]
    trust = ", trust_code=True" if own_code else ""
    method = "predict_proba" if TASKS[study.task].classes else "predict"
    return f'import logitkit\n\nmodel = logitkit.load({json.dumps(folder)}{trust})\nmodel.{method}("new.csv")'
