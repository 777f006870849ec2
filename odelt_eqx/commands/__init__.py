"""The commands, a module each, which is imported when that command is asked for.

A module has a dataclass of the command's name, its arguments, and `run(words)`, which reads them,
calls one function and prints where the result is.
"""

import sys
from importlib import import_module

import odelt_eqx
from odelt_eqx.entry import run_command
from odelt_eqx.errors import find_by_name

COMMANDS = {
    "train": "train a preset, or on images of your own, and evaluate it",
    "sample": "generate samples of a run",
    "evaluate": "measure a run over time steps and depths",
    "search": "search the settings of a run that no other beats in cost and quality",
    "play": "play with the dials of a run on a page in the browser",
    "info": "describe a run, while it trains or later",
    "prepare": "turn images or latents into shards that training reads",
    "convert": "convert weights of SiT, REPA or the reference, or a run's to safetensors",
    "classifier": "train a classifier whose features compare samples of its data",
    "stats": "write the statistics of data, to which Fréchet distances are taken",
    "completion": "complete all this in a shell, as `source <(odelt completion bash)`",
}
"""What each command does, a module of that name."""
OTHERS = """
odelt COMMAND --help   what a command takes
odelt --version        the version of the package"""


def main(*command: str) -> None:
    """Run the command that the first word names, or that a script gives, on the other words."""
    run_command(lambda: run([*command, *sys.argv[1:]]))


def run(words: list[str]) -> None:
    """Run a command, or say which there are.

    Raises:
        InputError: there is no such command; the message suggests the closest name.
    """
    name, *words = words or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"odelt_eqx {odelt_eqx.__version__}")
    else:
        find_by_name("command", name, COMMANDS)
        import_module(f"odelt_eqx.commands.{name}").run(words)


def usage() -> str:
    """Return the commands, a line each."""
    about = (odelt_eqx.__doc__ or "").splitlines()[0]
    lines = [f"  {name:12}{line}" for name, line in COMMANDS.items()]
    return "\n".join([f"usage: odelt COMMAND ...\n\n{about}\n\ncommands:", *lines, OTHERS])
