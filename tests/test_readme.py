"""The README's Python runs as printed."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(tiny_run):
    code, devices, _ = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code.replace("runs/digits", str(tiny_run)), names)
    exec(devices, names)
    assert names["images"].shape == (10, 8, 8, 1)
    for name in ("fast", "fine", "free", "velocity"):
        assert names[name].shape == (10, 8, 8, 1)
