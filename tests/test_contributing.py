"""CONTRIBUTING.md's recipe for a new part, followed to the letter in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"`(?P<path>[\w/.]+)`\n```(?P<kind>python|diff)\n(?P<body>.*?)```", re.DOTALL)
COMMAND = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def test_following_the_recipe_works(tmp_path):
    for name in ("src", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == 4
    for block in blocks:
        path = tmp_path / block["path"]
        if block["kind"] == "python":
            assert not path.exists()
            path.write_text(block["body"])
        else:
            added = "".join(
                line[1:] for line in block["body"].splitlines(keepends=True) if line.startswith("+")
            )
            path.write_text(path.read_text() + added)
    commands = [line.split("#")[0].strip() for found in COMMAND.findall(text) for line in found.splitlines()]
    assert len(commands) == 4
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "LOGITKIT_NO_SKIP": "0"}
    for command in commands:
        program, *words = command.split()
        module = {"python": [], "logitkit": ["-m", "logitkit"]}[Path(program).name]
        if words[0] == "compare":
            words += ["seeds=2", "epochs=2"]
        if words[0] == "verify":
            words += ["--quick"]
        done = subprocess.run(
            [sys.executable, *module, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-2000:])
        if "pytest" in words:
            assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 14
        if words[0] == "compare":
            assert "loss=poly" in done.stdout
