"""The generated pages are current, the README's example runs, and every part of a paper has its claim."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from logitkit import catalog
from logitkit.claims import all_claims

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_current(name):
    assert (ROOT / "docs" / name).read_text() == generate.PAGES[name](), "run `make docs`"


def test_every_paper_has_a_claim_and_evidence():
    main = {(c.room, c.name) for c in catalog.cards() if not c.reference and c.companion_of is None}
    assert {(c.room, c.part) for c in all_claims()} == main
    recorded = {(p.parent.name, p.stem) for p in (ROOT / "evidence").glob("*/*.json")}
    assert recorded == main


def test_evidence_comes_from_full_runs_on_every_seed():
    for claim in all_claims():
        found = json.loads((ROOT / "evidence" / claim.room / f"{claim.part}.json").read_text())
        assert not found["quick"]
        assert found["seeds"] == list(claim.seeds)
        assert found["statement"] == claim.statement
        assert found["holds"] == all(c["holds"] for c in found["checks"])
        assert found["holds"] or found["note"], f"{claim.part} does not hold and does not say why it may not"


def test_every_part_has_its_own_test():
    for card in catalog.cards():
        assert (ROOT / "tests" / card.room / f"test_{card.name}.py").is_file(), f"{card.room}/{card.name}"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "setosa" in capsys.readouterr().out


def test_the_readmes_links_lead_somewhere():
    """Links in the README point to files that exist."""
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (ROOT / target).exists(), target
