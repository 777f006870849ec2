"""What of a run can be followed in its folder: figures as JSON lines, pictures as PNG."""

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from odelt_eqx.files import replacing
from odelt_eqx.images import save_png

METRICS = "metrics.jsonl"
PICTURES = "pictures"


class RunFolder(AbstractContextManager):
    """Appends figures to a run's `metrics.jsonl` and adds to its `pictures`; a context manager."""

    def __init__(self, run: Path, done: int = 0):
        """Open the log of `run`, forgetting what lies after step `done`: it will come again."""
        path = run / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with replacing(path) as beside:
            beside.write_text("".join(line for line in lines if _is_before(line, done)))
        self._file = path.open("a")
        self._pictures = run / PICTURES

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def write(self, step: int, **figures: float) -> None:
        """Write one line, null for what is not finite, and hand it to the system at once."""
        # JSON has no number that is not finite
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        rounded = {n: v if v is None else float(f"{v:.6g}") for n, v in finite.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write `pictures/NAME/STEP.png`."""
        folder = self._pictures / name
        folder.mkdir(parents=True, exist_ok=True)
        save_png(image, folder / f"{step:07}.png")


def _is_before(line: str, done: int) -> bool:
    """Whether a line is whole and of a step that is kept."""
    try:
        return json.loads(line)["step"] <= done
    except (json.JSONDecodeError, KeyError):
        return False
