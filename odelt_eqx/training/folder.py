"""A run folder: what may be done with it, and how it begins."""

import errno
import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from odelt_eqx.config import TrainConfig, flat, save_config
from odelt_eqx.errors import InputError
from odelt_eqx.files import beside, replacing
from odelt_eqx.training.checkpoint import CHECKPOINTS, CONFIG, can_resume, run_config

LOCK = ".lock"
READING = ("data.folder", "data.path", "loading.threads", "loading.workers", "loading.buffer")
FREE = ("watch.", "sharding", *READING)
"""Fields of a config that may change when a run goes on."""
REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG),
}


def check_folder(config: TrainConfig, run: Path, resume: bool, overwrite: bool) -> None:
    """Raise an InputError unless `run` may be used as asked."""
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other; give one of them")
    with writing(run):
        _check_state(config, run, resume, overwrite)


def _check_state(config: TrainConfig, run: Path, resume: bool, overwrite: bool) -> None:
    if resume:
        _check_same(config, run)
        if not can_resume(run):
            raise InputError(f"{run} has no checkpoint to resume; use --overwrite to start again")
    elif run.exists() and (not run.is_dir() or _contents(run)):
        if not overwrite:
            raise InputError(
                f"{run} exists; use --resume to go on with it, --overwrite to start again, or "
                "another folder"
            )
        run_config(run)  # raises unless it is a run: nothing else is ever deleted


def begin_folder(config: TrainConfig, run: Path) -> None:
    """Make a run folder that holds the config alone.

    Of a run that is overwritten, all checkpoints go in one move and the old config last, as the new
    one takes its place: whenever this is cut short, the folder is a run without checkpoints, which
    may be overwritten, or empty.
    """
    if dead := config.model.dead_blocks:
        print(f"note: the last {dead} blocks belong to no full group: not run", file=sys.stderr)
    run.mkdir(parents=True, exist_ok=True)
    if (run / CHECKPOINTS).exists():
        (run / CHECKPOINTS).rename(_fresh(run / f".{CHECKPOINTS}.overwritten"))
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (CONFIG, LOCK):
            path.unlink()
    write_config(config, run)


def write_config(config: TrainConfig, run: Path) -> None:
    """Write the config that a run goes on with: what may change may have."""
    with replacing(run / CONFIG) as partial:
        save_config(config, partial)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Turn a file system's refusal to take what belongs into `run` into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise InputError(
            f"{run} cannot be written: {error}; what was saved before is as it was, --resume goes "
            "on from there"
        ) from error


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in `run`; an InputError if one does already.

    The lock is the system's: it ends with the process, however that ends.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training in {run}; wait for it or end it"
            ) from None
        yield


def _contents(run: Path) -> set[str]:
    """Return what is in a folder, but for what a start that was cut short leaves."""
    return {path.name for path in run.iterdir()} - {LOCK, beside(run / CONFIG).name}


def _fresh(path: Path) -> Path:
    """Return `path` with nothing there."""
    if path.exists():
        shutil.rmtree(path)
    return path


def _check_same(config: TrainConfig, run: Path) -> None:
    """Raise an InputError that names the first fields in which `config` is not the run's.

    What is watched, how devices share the work, where the data lie and how they are read ahead may
    change: they are nothing of the run.
    """
    asked, saved = map(flat, (config, run_config(run)))
    different = [
        f"{name} is {asked.get(name)}, was {saved.get(name)}"
        for name in sorted(asked.keys() | saved.keys())
        if asked.get(name) != saved.get(name) and not name.startswith(FREE)
    ]
    if different:
        raise InputError(f"{run} was started with another config: {'; '.join(different[:5])}")
