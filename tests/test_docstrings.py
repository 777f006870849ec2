"""Every public name has an example in its docstring, and what it prints is true."""

import dataclasses
import doctest
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odelt_eqx as odelt
import odelt_eqx.public
from odelt_eqx.evaluation.grid import GridConfig
from odelt_eqx.evaluation.report import evaluate
from tests.conftest import GOLDEN, Golden
from tests.interop.test_sit import CONFIG as SIT

pytestmark = pytest.mark.thorough

NAMES = sorted(
    name
    for name, value in vars(odelt_eqx.public).items()
    if getattr(value, "__module__", "").startswith("odelt_eqx.")
)


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """A folder with what the examples read: a run that was evaluated, files of other programs."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(tiny_run, folder / "runs" / "digits")
    evaluate(
        folder / "runs" / "digits", GridConfig(steps=(1,), depths=(2,), count=20, batch_size=20)
    )
    shutil.copy(GOLDEN / "small.reference.pkl", folder / "reference.pkl")
    shutil.copy(GOLDEN / "sit_tiny.training.pt", folder / "SiT.pt")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs(name, folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    known = {"odelt": odelt, "jax": jax, "jnp": jnp, "np": np, "optax": optax}
    known |= {"dataclasses": dataclasses, "model": model, "labels": jnp.arange(10)}
    known |= {"noise": jax.random.normal(jax.random.key(0), (10, 8, 8, 1))}
    known |= {"reference_config": Golden("small").config, "sit_config": SIT}
    tests = doctest.DocTestFinder(recurse=False).find(getattr(odelt, name), name, globs=known)
    examples = [example for test in tests for example in test.examples]
    assert examples, f"the docstring of {name} has no example"
    said = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
