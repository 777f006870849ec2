"""The package's shape: imports point one way, and every module class is abstract or final."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import equinox as eqx

import odelt_eqx

ROOT = Path(odelt_eqx.__file__).parent
LAYERS = {
    "errors": 0,
    "draws": 1,
    "files": 2,
    "progress": 2,
    "sharding": 1,
    "hosts": 1,
    "images": 3,
    "watching": 4,
    "ode": 2,
    "serial": 3,
    "nn": 3,
    "data": 3,
    "interop": 4,
    "latents": 4,
    "objective": 4,
    "sampling": 4,
    "config": 5,
    "presets": 6,
    "training": 6,
    "evaluation": 7,
    "cli": 7,
}
"""A layer may import from lower ones and from itself."""


def modules():
    for found in pkgutil.walk_packages([str(ROOT)], "odelt_eqx."):
        yield importlib.import_module(found.name)


def layer(module: str) -> str:
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


def test_every_part_of_the_package_has_a_layer():
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} == set(LAYERS)


def test_imports_point_one_way():
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imported(path):
            other = layer(name)
            assert other == own or LAYERS[other] < LAYERS[own], f"{relative} imports {name}"


def test_the_inner_layers_do_not_know_the_command_line():
    for path in ROOT.rglob("*.py"):
        assert "tyro" not in path.read_text(), path


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


def test_files_and_functions_stay_small():
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "scripts").glob("*.py")]:
        text = path.read_text()
        limit = 60 if path.parent.name == "scripts" else 300
        assert text.count("\n") <= limit, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path}: {node.name}"
