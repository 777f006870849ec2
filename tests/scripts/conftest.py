"""Commands, run in the process of the tests."""

import runpy
import sys
from pathlib import Path

import pytest

from odelt_eqx.commands import main

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def command(monkeypatch, capfd):
    """Run a script, or `odelt`, in this process; return its exit status, output and errors."""

    def run(program, *words):
        path = str(SCRIPTS / program) if program != "odelt" else program
        monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
        status = 0
        try:
            main() if path == program else runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        return status, *capfd.readouterr()

    return run
