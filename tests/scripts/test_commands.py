"""`odelt` and the scripts of a clone are the same commands."""

import pkgutil
import shutil
import subprocess
import sys

import pytest

import odelt_eqx as odelt
from odelt_eqx import commands
from odelt_eqx.commands import COMMANDS
from odelt_eqx.entry import typed
from tests.scripts.conftest import SCRIPTS

BARE = """
import sys
from odelt_eqx.commands import main
sys.argv[1:] = {words}
main()
assert not {{"jax", "numpy", "tyro"}} & set(sys.modules)
"""
COMPLETE = """
source /dev/stdin
COMP_WORDS=(odelt {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_tyro_odelt
echo "${{COMPREPLY[*]}}"
"""


def test_every_command_is_a_module_and_has_a_script():
    assert {module.name for module in pkgutil.iter_modules(commands.__path__)} == set(COMMANDS)
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*COMMANDS, "tour"} - {"completion"}


@pytest.mark.slow
def test_the_tour_runs_from_its_first_cell_to_its_last(tmp_path):
    subprocess.run([sys.executable, SCRIPTS / "tour.py"], cwd=tmp_path, check=True)
    pictures = {path.stem for path in (tmp_path / "runs" / "tour").glob("*.png")}
    assert pictures == {"dials", "guidance", "inversion", "own-network"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_a_command_and_its_script_have_the_same_help(command, name):
    status, text, _ = command("odelt", name, "--help")
    script = command(f"{name}.py", "--help")[1]
    assert status == 0
    assert text.startswith(f"usage: odelt {name} ")
    lines = lambda text: text.partition("\n\n")[2]  # the usage may be wrapped elsewhere
    assert lines(text) == lines(script)


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["trian"]], ids=str)
def test_what_needs_no_arrays_loads_no_library_of_them(words):
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(words=words)],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
    )
    if words == ["trian"]:
        error = "error: no command is called 'trian'; did you mean train?\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", error)
        return
    assert done.returncode == 0, done.stderr
    if words == ["--version"]:
        assert done.stdout == f"odelt_eqx {odelt.__version__}\n"
    else:
        assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_a_command_is_named_as_it_was_typed(monkeypatch):
    """By the script's way where a script runs; by `odelt` there and in any other program."""
    for program, expected in {
        str(SCRIPTS / "train.py"): f"python {SCRIPTS / 'evaluate.py'} 'a run'",
        "/somewhere/bin/odelt": "odelt evaluate 'a run'",
        "train.py": "odelt evaluate 'a run'",
        "": "odelt evaluate 'a run'",
    }.items():
        monkeypatch.setattr(sys, "argv", [program, "train"])
        assert typed("evaluate", "a run") == expected
    monkeypatch.chdir(SCRIPTS.parent)
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    assert typed("evaluate", "run") == "python scripts/evaluate.py run"


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
def test_commands_and_options_are_completed(command):
    status, script, _ = command("odelt", "completion", "bash")
    assert status == 0
    for words, found in {
        "ev": "evaluate",
        "train digits --model.hid": "--model.hidden-size",
        "sample runs/digits --cou": "--count",
        "convert sit-b --lay": "--layout",
    }.items():
        asked = ["bash", "-c", COMPLETE.format(words=words)]
        done = subprocess.run(asked, input=script, capture_output=True, text=True, check=True)
        assert done.stdout == f"{found}\n"


def test_public_names_are_loaded_when_they_are_asked_for():
    assert {"sample", "train", "DiT", "__version__"} <= set(dir(odelt))
    with pytest.raises(AttributeError, match="module 'odelt_eqx' has no attribute 'sampel'"):
        odelt.sampel  # noqa: B018
