"""The README's commands and its Python run as printed, with few steps and small networks."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.thorough
def test_the_python_runs_from_top_to_bottom(tiny_run, tmp_path):
    code = "".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    for printed, small in {
        "runs/digits": str(tiny_run),
        "runs/short": str(tmp_path / "short"),
        "steps=400": "steps=2, batch_size=16, model=ANYTIME",
        "depth=6": "depth=2",
        "range(1000)": "range(2)",
    }.items():
        assert printed in code
        code = code.replace(printed, small)
    names: dict = {"ANYTIME": dataclasses.replace(TINY, length_embedding="none")}
    exec(code, names)
    for name in ("fast", "fine", "free", "velocity", "images"):
        assert names[name].shape == (10, 8, 8, 1)
    assert names["moons"].shape == (500, 2)


@pytest.mark.thorough
def test_the_first_command_trains_samples_and_measures(tmp_path):
    command = re.search(r"<!-- main -->\n```bash\n(.*?)\n```", README, flags=re.DOTALL)[1]
    python, *words = shlex.split(command.split(" && ")[-1])
    assert python == ".venv/bin/python"
    small = shlex.split("--steps 2 --model.hidden-size 16 --model.num-heads 2 --model.depth 2")
    run = subprocess.run(
        [sys.executable, *words, *small, "--run", str(tmp_path / "digits")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    written = [Path(line) for line in run.stdout.splitlines()]
    assert "report.html" in {path.name for path in written}
    assert all(path.is_file() for path in written)


def test_the_readme_is_a_page_or_two():
    assert README.count("\n") <= 200
