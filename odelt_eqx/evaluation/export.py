"""Files of samples, written batch by batch: arrays, PNG files in folders, ADM's NPZ file."""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odelt_eqx.array_files import write_arrays
from odelt_eqx.errors import InputError
from odelt_eqx.files import atomic_folder, atomic_write
from odelt_eqx.images import rgb, to_bytes

Write = Callable[[Mapping[str, np.ndarray]], None]
"""Writes a batch of arrays by name, among them `images` in [-1, 1] and `labels`."""
NO_CLASS = "none"
"""Folder of images that were asked for without a class."""


@contextmanager
def arrays_file(path: Path, **constants: Any) -> Iterator[Write]:
    """Yield a function that collects arrays; on success an NPZ file of all appears.

    The first axis is that of the batch, of `states` the second. `constants` are arrays as well.
    """
    batches: list[Mapping[str, np.ndarray]] = []
    yield batches.append
    arrays = {
        name: np.concatenate([batch[name] for batch in batches], axis=int(name == "states"))
        for name in batches[0]
    }
    write_arrays(path, arrays | constants)


@contextmanager
def png_folder(folder: Path, shape: tuple[int, ...], class_names: Sequence[str]) -> Iterator[Write]:
    """Yield a function that writes images as PNG files; on success their folder appears.

    A file is `CLASS/000123.png`, numbered over all classes; without classes, `000123.png`. Where
    names of classes cannot be names of folders, they are numbers. What was asked for without a
    class, by the label that follows theirs, is in `none`.

    Raises:
        InputError: the folder exists, or `shape` is not that of images.
    """
    _check_images(shape)
    if folder.exists():
        raise InputError(f"{folder} exists; choose another by --out, or move it away")
    folders, count = _folder_names(class_names), 0
    with atomic_folder(folder) as partial:

        def write(arrays: Mapping[str, np.ndarray]) -> None:
            nonlocal count
            for pixels, label in zip(to_bytes(arrays["images"]), arrays["labels"], strict=True):
                path = partial / folders[label] / f"{count:06d}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
                count += 1

        yield write


@contextmanager
def adm_file(path: Path, count: int, shape: tuple[int, ...]) -> Iterator[Write]:
    """Yield a function that writes images to an NPZ file; on success the file appears.

    It has `arr_0`, bytes (count, height, width, 3), grey levels repeated, and the labels `arr_1`.
    Images go to the file as they come, so memory holds one batch.

    Source: the sample files of github.com/openai/guided-diffusion, which its evaluator reads.

    Raises:
        InputError: `shape` is not that of images.
    """
    _check_images(shape)
    head, labels = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape[:2], 3)}, []
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, head)

            def write(arrays: Mapping[str, np.ndarray]) -> None:
                member.write(rgb(to_bytes(arrays["images"])).tobytes())
                labels.append(arrays["labels"])

            yield write
        with archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, np.concatenate(labels))


def _check_images(shape: tuple[int, ...]) -> None:
    """Raise an InputError unless samples of `shape` are images of 1 or 3 channels."""
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(
            "the formats png and adm hold images of 1 or 3 channels; got samples of shape "
            f"{shape}: if these are latents, the option autoencoder names the weights that decode "
            "them"
        )


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Return the name of the folder of each label; an empty one for the only class.

    The last one is that of no class.
    """
    if len(class_names) == 1:
        return ["", NO_CLASS]
    fit = all(re.fullmatch(r"\w([\w .+-]{0,98}[\w+-])?", name) for name in class_names)
    if fit and len({name.lower() for name in (*class_names, NO_CLASS)}) > len(class_names):
        return [*class_names, NO_CLASS]
    width = len(str(len(class_names) - 1))
    return [*(f"{label:0{width}d}" for label in range(len(class_names))), NO_CLASS]
