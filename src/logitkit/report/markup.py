"""Small pieces of HTML. Whatever may come from a user passes through `esc` exactly once."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

from logitkit.report.palette import ARMS_LIGHT, dash, symbol
from logitkit.report.study import Arm

if TYPE_CHECKING:
    import plotly.graph_objects as go

# plotly's markers as paths in a 16 x 16 box
SHAPES = {
    "circle": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "square": "M3.5 3.5h9v9h-9z",
    "diamond": "M8 1.8L14.2 8L8 14.2L1.8 8z",
    "triangle-up": "M8 2.5L14 13H2z",
    "triangle-down": "M8 13.5L14 3H2z",
    "x": "M3 5.1L5.1 3L8 5.9L10.9 3L13 5.1L10.1 8L13 10.9L10.9 13L8 10.1L5.1 13L3 10.9L5.9 8z",
    "cross": "M6.3 2h3.4v4.3H14v3.4H9.7V14H6.3V9.7H2V6.3h4.3z",
    "star": "M8 1.5l1.9 4.3 4.6.5-3.5 3.1 1 4.6L8 11.7 4 14l1-4.6L1.5 6.3l4.6-.5z",
}
STROKES = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}


def esc(value: Any) -> str:
    """Text, safe between tags and in a quoted attribute."""
    return html.escape(str(value), quote=True)


def breakable(name: str) -> str:
    """A name, safe, that may break after `_`, `(` and the like rather than inside a word."""
    return re.sub(r"([_(,:/+=])", r"\1<wbr>", esc(name))


def as_json(value: Any) -> str:
    """JSON that nothing can break out of inside a `<script>`."""
    return in_script(json.dumps(value, allow_nan=False))


def in_script(text: str) -> str:
    """JSON text with the characters escaped that could end or confuse a `<script>`."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def swatch(arm: Arm, line: bool = False) -> str:
    """The arm's mark in its colour, as in the plots: its symbol, or its line style."""
    tint = f"var(--arm-{arm.index % len(ARMS_LIGHT)})"
    if line:
        stroke = STROKES[dash(arm.index)]
        dashes = f' stroke-dasharray="{stroke}"' if stroke else ""
        return (
            '<svg class="swatch wide" viewBox="0 0 24 16" aria-hidden="true">'
            f'<path d="M1 8h22" fill="none" stroke="{tint}" stroke-width="3"{dashes}/></svg>'
        )
    shape = SHAPES[symbol(arm.index)]
    return (
        f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true"><path d="{shape}" fill="{tint}"/></svg>'
    )


def plot(figure: go.Figure, description: str) -> str:
    """A place for the figure, which the page's script draws, and the figure itself as JSON beside it."""
    height = figure.layout.height
    return (
        f'<div class="plot" role="img" aria-label="{esc(description)}" style="min-height:{height}px"></div>'
        f'<script type="application/json" class="plot-data">{in_script(figure.to_json())}</script>'
    )


def section(key: str, heading: str, *content: str, about: str = "") -> str:
    """A part of the page; `about` is what its reader should know before looking. `content` is HTML."""
    note = f'<p class="about">{about}</p>' if about else ""
    body = "\n".join(filter(None, content))
    return (
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{esc(heading)}</h2>{note}\n{body}\n'
        "</section>"
    )


def scroller(content: str, label: str) -> str:
    """A box that scrolls sideways on its own, by keyboard too."""
    return f'<div class="scroller" role="region" tabindex="0" aria-label="{esc(label)}">{content}</div>'


def code(text: str, label: str) -> str:
    """Lines to copy."""
    return (
        f'<div class="code"><pre tabindex="0" aria-label="{esc(label)}"><code>{esc(text)}</code></pre>'
        f'<button type="button" class="copy" aria-label="Copy {esc(label)}">Copy</button></div>'
    )
