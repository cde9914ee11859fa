"""Colours, said once for the page and its plots: each role in the light theme and in the dark one.

An arm keeps its colour and its symbol in every plot. Colour and symbol step at different paces, so that 64
arms differ in at least one of them. The eight hues were spread apart for normal, deuteranopic and
protanopic sight (at least 0.11 between any two in OKLab) and stand 3:1 or more off their background.
"""

from __future__ import annotations

LIGHT = {
    "page": "#ffffff",
    "raised": "#f5f6f8",
    "ink": "#1d232b",
    "soft": "#5a6472",
    "line": "#d9dde3",
    "grid": "#e8eaee",
    "accent": "#0a5bc4",
    "better": "#00694f",
    "better-tint": "#dcf3ea",
    "worse": "#9c3a06",
    "worse-tint": "#fcebe0",
    "mark": "#fdf0b8",
    "bar": "#c2c9d2",
}
DARK = {
    "page": "#13161b",
    "raised": "#1c2128",
    "ink": "#e7eaef",
    "soft": "#a3adba",
    "line": "#343b45",
    "grid": "#272d36",
    "accent": "#7fb4ff",
    "better": "#6bdcb3",
    "better-tint": "#10352a",
    "worse": "#ffa876",
    "worse-tint": "#43220f",
    "mark": "#4d4313",
    "bar": "#4a5360",
}
ARMS_LIGHT = ("#4b5563", "#283a9a", "#792306", "#3c8254", "#bc69a2", "#a39600", "#3495f2", "#814ad4")
ARMS_DARK = ("#c3cad5", "#516dfb", "#dd6104", "#75c078", "#e63e87", "#f5db58", "#188fb6", "#cf9efd")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")


def colour(arm: int) -> str:
    """The arm's colour in the light theme; `dark_of` has its dark counterpart."""
    return ARMS_LIGHT[arm % len(ARMS_LIGHT)]


def symbol(arm: int) -> str:
    """Plotly's name for the arm's marker."""
    return SYMBOLS[(arm + arm // len(ARMS_LIGHT)) % len(SYMBOLS)]


def dash(arm: int) -> str:
    """Plotly's name for the arm's line style: solid for the first eight."""
    return DASHES[arm // len(ARMS_LIGHT) % len(DASHES)]


def dark_of() -> dict[str, str]:
    """Every light colour that a plot may use -> its dark counterpart."""
    return dict(zip((*LIGHT.values(), *ARMS_LIGHT), (*DARK.values(), *ARMS_DARK), strict=True))


def css_variables() -> str:
    """The palette as custom properties; paper stays light."""

    def block(roles: dict[str, str], arms: tuple[str, ...]) -> str:
        named = {**roles, **{f"arm-{i}": c for i, c in enumerate(arms)}}
        return "".join(f"--{name}:{value};" for name, value in named.items())

    return (
        f":root{{{block(LIGHT, ARMS_LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme: dark){{:root{{{block(DARK, ARMS_DARK)}}}}}\n"
    )
