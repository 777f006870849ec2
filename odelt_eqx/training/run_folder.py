"""A run folder: what may be done with it, and how it starts."""

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path

from odelt_eqx.config import TrainConfig, flat, save_config
from odelt_eqx.data.source import Contents
from odelt_eqx.errors import InputError
from odelt_eqx.files import lock, remove, temporary_path, write_errors, write_json
from odelt_eqx.parallel import on_main_process
from odelt_eqx.serialize import to_dict
from odelt_eqx.training.checkpoint import CHECKPOINTS, CONFIG, DAMAGED, SNAPSHOTS, Checkpoints
from odelt_eqx.training.load import (
    CONTENTS,
    can_resume,
    other_examples,
    run_config,
)
from odelt_eqx.training.logging import METRICS, PREVIEWS

LOCK = ".lock"
HINT = "any checkpoint in it is intact, and --resume continues from the newest"
READING = ("data.folder", "data.path", "loading.threads", "loading.workers", "loading.buffer")
TIMES = ("log_every", "eval_every", "save_every", "keep", "keep_every")
MUTABLE = (
    "logging.",
    "sample.",
    "sharding",
    "accumulate",
    "model.attention",
    "optimizer.max_skipped",
    *READING,
    *TIMES,
)
"""Fields of a config that may change when a run is resumed: none affects the weights.

`steps` may be raised as well, which moves the end of the schedule, unless the objective has stages.
"""


WRITTEN = (
    *(CHECKPOINTS, SNAPSHOTS, DAMAGED, f".{CHECKPOINTS}.overwritten", CONTENTS),
    *(METRICS, PREVIEWS, "tensorboard", "wandb", "wandb-id.txt"),
    *("samples", "samples.npz", "samples.png", "samples-strip.png"),
    *("grid.png", "grid.md", "grid.json", "rows.jsonl", "curves.png", "report.html", "search"),
    *("validation.md", "validation.json", "validation.png", "length.png", "density.png"),
    *(".measuring", ".*.partial*"),
)
"""Names of what training, sampling and evaluation write into a run folder, besides its config.

Nothing else is deleted when a run is overwritten, nor are images that were written as PNG files.
"""


def check_run_folder(config: TrainConfig, run: Path, resume: bool, overwrite: bool) -> None:
    """Raise an InputError unless the run can be started, resumed or overwritten as asked."""
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other; give one of them")
    with write_errors(run, HINT):
        if resume:
            _check_same(config, run)
            if not can_resume(run):
                raise InputError(f"{run} has no checkpoint to resume; use --overwrite to restart")
        elif overwrite and _in_use(run):
            run_config(run)  # raises unless it is a run: nothing else is ever deleted
        elif _in_use(run):
            raise InputError(
                f"{run} exists; use --resume to continue it, --overwrite to restart, or another "
                "folder"
            )


@contextmanager
def open_run(
    config: TrainConfig, run: Path, resume: bool, overwrite: bool, contents: Contents
) -> Iterator[Checkpoints]:
    """Lock the run folder, start it unless it is resumed, and open its checkpoints.

    Raises:
        InputError: another process holds the lock or has changed the folder since it was checked,
            or the run was begun with other data.
    """
    with write_errors(run, HINT), ExitStack() as stack:

        def prepare() -> None:
            with write_errors(run, HINT):
                stack.enter_context(lock(run / LOCK, "training", "or stop it"))
                check_run_folder(config, run, resume, overwrite)  # another process may have trained
                if resume:
                    _check_contents(run, contents)
                    _note_steps(config, run)
                    save_config(config, run / CONFIG)  # mutable fields may have changed
                else:
                    start_run(config, run)
                write_json(run / CONTENTS, to_dict(contents))

        on_main_process(prepare)
        kept = {"keep": config.keep, "keep_every": config.keep_every}
        snapshots = config.snapshot_every is not None
        yield stack.enter_context(Checkpoints(run, snapshots=snapshots, **kept))


def start_run(config: TrainConfig, run: Path) -> None:
    """Make a run folder that holds only the config, besides what is not of a run.

    Of an overwritten run, all checkpoints go first, in one rename, and the old config last, as the
    new one replaces it. Whenever this is interrupted, the folder is empty or a run without
    checkpoints, which can be overwritten.
    """
    if config.optimizer.warmup > config.steps // 10:
        short = f"optimizer.warmup is a tenth of the run, {config.steps // 10} steps"
        print(f"note: {short}, not {config.optimizer.warmup}", file=sys.stderr)
    if dead := config.model.dead_blocks:
        print(f"note: the last {dead} blocks are in no full group: not run", file=sys.stderr)
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINTS).exists():
        discarded = run / f".{CHECKPOINTS}.overwritten"
        if discarded.exists():
            shutil.rmtree(discarded)
        (run / CHECKPOINTS).rename(discarded)
    for path in run.iterdir():
        if any(fnmatch(path.name, name) for name in WRITTEN):
            remove(path)
    save_config(config, run / CONFIG)


def _in_use(run: Path) -> bool:
    """Whether a path holds anything but what an interrupted start leaves."""
    if not run.is_dir():
        return run.exists()
    return bool({path.name for path in run.iterdir()} - {LOCK, temporary_path(run / CONFIG).name})


def _check_contents(run: Path, contents: Contents) -> None:
    """Raise an InputError if the data have other classes or examples than when the run began."""
    if difference := other_examples(run, contents):
        raise InputError(
            f"{difference}: bring them back, or begin another run with --init-from {run}"
        )


def _check_same(config: TrainConfig, run: Path) -> None:
    """Raise an InputError that names the first immutable fields that differ from the run's."""
    begun = run_config(run)
    if begun.steps < config.steps and not config.objective.has_stages:
        begun = dataclasses.replace(begun, steps=config.steps)
    asked, saved = flat(config), flat(begun)
    different = [
        f"{name} is {asked.get(name)}, was {saved.get(name)}"
        for name in sorted(asked.keys() | saved.keys())
        if asked.get(name) != saved.get(name) and not name.startswith(MUTABLE)
    ]
    if different:
        raise InputError(f"{run} was started with another config: {'; '.join(different[:5])}")


def _note_steps(config: TrainConfig, run: Path) -> None:
    """Say so if a run that is resumed has more steps than it had."""
    if (before := run_config(run).steps) < config.steps:
        print(
            f"note: the run now has {config.steps} steps, it had {before}: the learning rate stays "
            "until the last tenth of them",
            file=sys.stderr,
        )
