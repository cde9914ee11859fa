"""The import arrows of docs/architecture.md hold, and importing logitkit is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import logitkit
from logitkit.registry import ROOMS

ROOT = Path(logitkit.__file__).parent

# Layers from the bottom up: a module may import its own layer's package and anything below.
LAYERS = [
    {"errors"},
    {"registry"},
    {"ops"},
    set(ROOMS),
    {"catalog", "data"},
    {"engine"},
    {"comparison", "claims", "report"},
    {"integrations", "bench", "cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
BUILDING_BLOCKS = {"attention", "layers", "softmax", "heads", "bottleneck"}


def imports_of(path: Path) -> set[str]:
    """Top-level logitkit packages that the file imports, lazily or not; type-only imports do not count."""
    tree = ast.parse(path.read_text())
    type_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("logitkit.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "logitkit":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
    return found


def violations(owner: str, found: set[str]) -> set[str]:
    """The packages that code in package `owner` must not import."""
    bad = set()
    for name in found & set(LEVEL) - {owner}:
        if name in ROOMS and owner in ROOMS:
            if not (owner in ("models", "generate") and name in BUILDING_BLOCKS):
                bad.add(name)
        elif LEVEL[name] > LEVEL[owner] or (LEVEL[name] == LEVEL[owner] and owner == "registry"):
            bad.add(name)
    return bad


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    owner = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not violations(owner, imports_of(path))


def test_the_rule_can_fail():
    assert violations("losses", {"heads"}) == {"heads"}
    assert violations("ops", {"losses"}) == {"losses"}
    assert violations("engine", {"comparison"}) == {"comparison"}
    assert violations("models", {"losses"}) == {"losses"}
    assert not violations("models", {"heads", "ops"})
    assert not violations("comparison", {"engine", "data", "losses", "report"})


def test_importing_logitkit_is_cheap_and_opens_no_room():
    code = (
        "import torch, sys, time; before = set(sys.modules); t = time.perf_counter(); import logitkit;"
        "new = set(sys.modules) - before; print(time.perf_counter() - t);"
        f"rooms = {set(ROOMS)!r};"
        "assert not [m for m in new if m.startswith('logitkit.') and m.split('.')[1] in rooms], new"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    ]
    assert min(times) < 0.3
