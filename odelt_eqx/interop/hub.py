"""Repositories of the Hugging Face Hub: files downloaded once, folders uploaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odelt_eqx.errors import InputError, reason

PREFIX = "hub:"
"""What the name of a repository starts with where a path may stand: `hub:OWNER/NAME`."""


def is_on_hub(path: str | Path) -> bool:
    """Whether a path is the name of a repository."""
    return str(path).startswith(PREFIX)


def download(path: str | Path, files: Sequence[str]) -> Path:
    """Return the local folder with those of `files` that a repository has.

    Raises:
        InputError: huggingface_hub is not installed, or the repository cannot be read.
    """
    try:
        return Path(_hub(path).snapshot_download(_name(path), allow_patterns=list(files)))
    except InputError:
        raise
    except Exception as error:  # the client's errors share no base class
        raise InputError(f"{path} cannot be downloaded: {reason(error)}") from None


def upload(folder: Path, path: str | Path) -> None:
    """Write the files of a folder to a repository, which is made if there is none.

    Raises:
        InputError: huggingface_hub is not installed, or the repository cannot be written.
    """
    try:
        api = _hub(path).HfApi()
        api.create_repo(_name(path), exist_ok=True)
        api.upload_folder(repo_id=_name(path), folder_path=str(folder))
    except InputError:
        raise
    except Exception as error:  # the client's errors share no base class
        raise InputError(f"{path} cannot be written: {reason(error)}") from None


def _hub(path: str | Path) -> Any:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"{path} needs huggingface_hub: pip install 'odelt-eqx[hub]', or give a local file"
        ) from None
    return huggingface_hub


def _name(path: str | Path) -> str:
    """Return OWNER/NAME."""
    owner, _, name = (text := str(path).removeprefix(PREFIX)).partition("/")
    if not owner or not name or "/" in name:
        raise InputError(f"{path} is not a repository: write {PREFIX}OWNER/NAME")
    return text
