"""The figures of a run, one JSON object a line."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

from odelt_eqx.files import replacing

METRICS = "metrics.jsonl"


class MetricsLog(AbstractContextManager):
    """Appends figures to a run's `metrics.jsonl`; a context manager."""

    def __init__(self, run: Path, done: int = 0):
        """Open the log of `run`, forgetting what lies after step `done`: it will come again."""
        path = run / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with replacing(path) as beside:
            beside.write_text("".join(line for line in lines if _is_before(line, done)))
        self._file = path.open("a")

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def write(self, step: int, **figures: float) -> None:
        """Write one line and hand it to the operating system at once."""
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()


def _is_before(line: str, done: int) -> bool:
    """Whether a line is whole and of a step that is kept."""
    try:
        return json.loads(line)["step"] <= done
    except (json.JSONDecodeError, KeyError):
        return False
