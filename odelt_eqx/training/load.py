"""What a run folder holds: its networks, averages, config and data."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odelt_eqx.condition import learns_null_only
from odelt_eqx.config import TrainConfig, load_config
from odelt_eqx.data.source import Contents
from odelt_eqx.errors import InputError
from odelt_eqx.files import read_json
from odelt_eqx.interop.named import check_finite
from odelt_eqx.nn import unstacked
from odelt_eqx.nn.groups import network_template
from odelt_eqx.serialize import from_dict
from odelt_eqx.training.average import combine
from odelt_eqx.training.checkpoint import (
    CHECKPOINTS,
    CONFIG,
    SNAPSHOTS,
    AnyNetwork,
    Checkpoints,
    Weights,
)

CONTENTS = "data.json"
INEXACT = 0.05
"""The error of an average's profile from which on it is said."""


def load(run: str | Path, weights: Weights = "ema") -> AnyNetwork:
    """Return the network in the newest checkpoint of a run folder, unstacked.

    Args:
        run: a folder that training wrote.
        weights: the EMA weights, "ema", or the trained ones, "model".

    Raises:
        InputError: the folder is not a run, has no checkpoint yet, or weights that are not finite.

    Example:
        >>> network = odelt.load("runs/digits")
        >>> network.shape
        (8, 8, 1)
    """
    template = network_template(run_config(run).model)
    with _open_checkpoints(run) as checkpoints:
        return check_finite(unstacked(checkpoints.restore_weights(weights, template)), run)


def load_average(run: str | Path, width: float, step: int | None = None) -> AnyNetwork:
    """Return a run's power-function average of any width, made of its snapshots, unstacked.

    It is the combination of them whose profile is nearest to that of the width; a warning says if
    that is not near, see `TrainConfig.snapshot_every`. Source: arXiv 2312.02696, section 3.2.

    Args:
        run: a folder that training wrote, with `snapshot_every`.
        width: standard deviation of the steps that count, as a share of all that were taken.
        step: one with a snapshot, at which the average ends; None for the last one.

    Raises:
        InputError: the folder is not a run or has no such snapshot, one cannot be read, there is
            no average of such a width, or weights are not finite.

    Example:
        >>> network = odelt.load_average("runs/digits", width=0.1)
        >>> network.shape
        (8, 8, 1)
    """
    template = network_template(run_config(run).model)
    if not (Path(run) / SNAPSHOTS).is_dir():
        raise InputError(f"{run} has no snapshots of averages: train with --snapshot-every STEPS")
    with _open_checkpoints(run, snapshots=True) as checkpoints:
        profiles = checkpoints.profiles()
        last = max(profiles, default=None) if step is None else step
        if last not in profiles:
            known = ", ".join(map(str, profiles)) or "none"
            raise InputError(f"{run} has no snapshot of step {last}; there are those of {known}")
        profiles = {k: profile for k, profile in profiles.items() if k <= last}
        shares, error = combine(list(profiles.values()), width)
        if error > INEXACT:
            warnings.warn(
                f"the average of width {width:g} differs by {error:.1%} from what the "
                f"{len(profiles)} snapshots of {run} make of it",
                stacklevel=2,
            )
        total: Any = jax.tree.map(lambda leaf: np.zeros(leaf.shape), template)
        for (each, profile), row in zip(profiles.items(), shares, strict=True):
            if row.any():
                averages = checkpoints.restore_snapshot(each, profile.widths, template)
                add = lambda sum, *leaves: sum + np.tensordot(row, np.stack(leaves), 1)  # noqa: B023
                total = jax.tree.map(add, total, *averages)
    network = jax.tree.map(lambda sum, leaf: jnp.asarray(sum, leaf.dtype), total, template)
    return check_finite(unstacked(network), run)


def load_teacher(run: str | Path) -> AnyNetwork | None:
    """Return the teacher of a run, or None where the EMA teaches; raises as `load` does."""
    with _open_checkpoints(run) as checkpoints:
        return checkpoints.restore_teacher()


def latest_step(run: str | Path) -> int:
    """Return the step of a run's newest checkpoint; raises as `load` does."""
    with _open_checkpoints(run) as checkpoints:
        assert checkpoints.latest is not None  # for the type checker: it has been checked
        return checkpoints.latest


def run_config(run: str | Path) -> TrainConfig:
    """Return the config of a run folder; an InputError if it is not a run of this version."""
    path = Path(run) / CONFIG
    if not path.is_file():
        raise InputError(f"{run} is not a run folder: it has no {CONFIG}")
    return load_config(path)


def load_contents(run: str | Path) -> Contents | None:
    """Return what a run remembers of the data that it began with; None if it does not.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(run) / CONTENTS
    if not path.is_file():
        return None
    return from_dict(read_json(path, "a description of data"), Contents, str(path))


def other_examples(run: str | Path, contents: Contents) -> str | None:
    """Say how the training examples differ from those that a run began with; None if not at all.

    Raises:
        InputError: they have other classes, and its network has learned them.
    """
    known = load_contents(run)
    if known is None or known == contents:
        return None
    kind = run_config(run).model.condition_type
    if known.class_names == contents.class_names or kind is None or learns_null_only(kind):
        change = f"{known.count:,} of them, now {contents.count:,}"
        if known.count == contents.count:
            change = f"{known.count:,} of other names or labels"
        return f"{run} was begun with other training examples, {change}"
    old, new = set(known.class_names), set(contents.class_names)
    changes = {"is new": new - old, "is gone": old - new}
    listed = [f"{min(names)!r} {what}" for what, names in changes.items() if names]
    raise InputError(
        f"{run} was begun with other classes: {', '.join(listed) or 'their order differs'}; "
        "labels would mean something else"
    )


def can_resume(run: Path) -> bool:
    """Whether a run folder has a checkpoint of training, not of weights alone."""
    return any(run.glob(f"{CHECKPOINTS}/[0-9]*/optimizer"))


@contextmanager
def _open_checkpoints(run: str | Path, snapshots: bool = False) -> Iterator[Checkpoints]:
    """Open the checkpoints of a run; an InputError if it has none."""
    if (Path(run) / CHECKPOINTS).is_dir():
        with Checkpoints(Path(run), write=False, snapshots=snapshots) as checkpoints:
            if checkpoints.latest is not None:
                yield checkpoints
                return
    raise InputError(f"{run} has no checkpoint yet")
