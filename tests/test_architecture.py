"""The package's shape: imports point one way, and every module class is abstract or final."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import equinox as eqx

import odelt_eqx

ROOT = Path(odelt_eqx.__file__).parent
ROOMS = [
    ("errors", "exceptions and the checks that raise them"),
    ("entry", "how a command is typed, and how it ends"),
    (
        "ode",
        "the idea: plans, the length ODE, the time ODE, and the wrapper that counts their cost",
    ),
    ("condition", "what a network is told: a class or a vector, and guidance by it"),
    ("inputs", "what a network is evaluated on: the arguments of a call, checked"),
    ("network", "what the rest knows of a network"),
    ("guidance", "its velocities put together, by condition and by depth"),
    ("parallel", "all of devices and processes"),
    ("files", "files written whole or not at all, read without trust"),
    ("array_files", "arrays in NumPy's files, read without trust"),
    ("progress", "progress bars"),
    ("noise", "standard normal draws"),
    ("images", "their size; laid out and written as PNG"),
    ("serialize", "values of declared types, also to and from JSON"),
    ("nn", "the networks: a transformer, an MLP on vectors, those that evaluation needs"),
    ("data", "sources, the stream of batches, preparation"),
    ("objective", "what training regresses on"),
    ("sampling", "noise to samples and back, likelihood"),
    ("interop", "foreign checkpoints, and the reference's faulty objectives"),
    ("config", "what a training run is"),
    ("presets", "named training runs"),
    ("training", "state, step, run folder, checkpoints, logging"),
    ("evaluation", "the grid that is measured, and its report"),
    ("play", "the page on which the dials of a run are turned"),
    ("public", "the names of `import odelt_eqx as odelt`, loaded when one is asked for"),
    ("cli", "the arguments of commands, and a training run that follows its data"),
    ("commands", "a module a command, loaded when it is asked for; scripts are three lines of it"),
]
"""The rooms of the package from the ground up: each imports from itself and from those before."""

DEVICE_FREE = ("ode", "nn", "objective", "condition", "inputs", "network", "guidance")
"""Rooms that compute on arrays and know no mesh and no process."""


def modules():
    for found in pkgutil.walk_packages([str(ROOT)], "odelt_eqx."):
        yield importlib.import_module(found.name)


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "odelt_eqx":
                names |= {f"odelt_eqx.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("odelt_eqx.")}


def test_every_part_of_the_package_is_a_room():
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == {room for room, _ in ROOMS}


def test_imports_point_one_way():
    floor = {room: index for index, (room, _) in enumerate(ROOMS)}
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported(path):
            assert floor[room_of(name)] <= floor[own], f"{relative} imports {name}"


def test_the_mathematics_knows_no_device_and_no_process():
    words = ("parallel", "sharding", "process_index", "jax.devices", "Mesh")
    for room in DEVICE_FREE:
        for path in [*ROOT.glob(f"{room}.py"), *ROOT.glob(f"{room}/*.py")]:
            found = [word for word in words if word in path.read_text()]
            assert not found, f"{path}: {found}"


def test_the_plain_solves_do_not_know_that_their_cost_can_be_counted():
    for name in ("plan", "blocks", "checks", "length", "time"):
        assert "odelt_eqx.ode.count" not in imported(ROOT / "ode" / f"{name}.py")


def test_objectives_and_samplers_know_no_particular_network():
    for room in ("objective", "sampling"):
        for path in (ROOT / room).glob("*.py"):
            assert not [name for name in imported(path) if name.startswith("odelt_eqx.nn")], path


def test_the_package_does_not_know_the_command_line():
    for path in ROOT.rglob("*.py"):
        command = path.name == "cli.py" or path.parent.name == "commands"
        assert "tyro" not in path.read_text() or command, path


def test_every_module_class_is_abstract_or_final():
    classes = {
        cls
        for module in modules()
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__.startswith("odelt_eqx.") and issubclass(cls, eqx.Module)
    }
    assert len(classes) > 10
    for cls in classes:
        for base in cls.__mro__[1:]:
            if base.__module__.startswith("odelt_eqx.") and issubclass(base, eqx.Module):
                assert inspect.isabstract(base) or base.__abstractmethods__, f"{cls} extends {base}"
                overridden = set(vars(cls)) & set(vars(base)) - base.__abstractmethods__
                methods = {n for n in overridden if inspect.isfunction(vars(base)[n])}
                assert not {m for m in methods if not m.startswith("__")}, f"{cls}: {methods}"
