"""Results that are kept by the settings they were measured under, so that none is made twice."""

import json
from pathlib import Path
from typing import Any

from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing

ROWS = "rows.jsonl"


class Store:
    """Rows of a file of JSON lines: settings, and what was measured under them."""

    def __init__(self, path: Path):
        """Read what is there.

        Raises:
            InputError: the file holds something else.
        """
        self._path = path
        self._rows: dict[str, Any] = {}
        try:
            for line in path.read_text().splitlines() if path.exists() else ():
                row = json.loads(line)
                self._rows[_text(row["settings"])] = row["measured"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} holds no measured rows ({error}); move it away to measure anew"
            ) from None

    def __contains__(self, settings: dict[str, Any]) -> bool:
        return _text(settings) in self._rows

    def __getitem__(self, settings: dict[str, Any]) -> Any:
        """Return what was measured under these settings."""
        return self._rows[_text(settings)]

    def __setitem__(self, settings: dict[str, Any], measured: Any) -> None:
        """Keep what was measured; the file is whole at every moment."""
        self._rows[_text(settings)] = measured
        lines = [
            json.dumps({"settings": json.loads(key), "measured": value}, allow_nan=False)
            for key, value in self._rows.items()
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as beside:
            beside.write_text("\n".join(lines) + "\n")


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
