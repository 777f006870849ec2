"""Turn pictures, in a folder, an archive or Parquet files, into shards that training reads."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.latents import LatentConfig, encode_shards


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Decode pictures once, in parallel, and write them as shards with an index; or encode these.

    The same command goes on where it was interrupted. What cannot be used is passed over and listed
    in OUT/skipped.jsonl. The source is only read.

    Args:
        source: a folder of pictures, a zip, an uncompressed tar, or Parquet files; with `latents`,
            shards of pictures.
        out: folder of the shards.
        config: how.
        latents: weights of Stable Diffusion's autoencoder, a file, a folder or hub:OWNER/NAME:
            write the latents of the pictures, and of their mirror images, on all devices.
        batch_size: pictures encoded at once.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PrepareConfig
    )
    latents: str | None = None
    batch_size: int = 32


def run() -> None:
    """Read the command line, prepare, print where the results are."""
    args = tyro.cli(Prepare)
    if args.latents is not None:
        encoding = LatentConfig(args.latents, args.batch_size, args.config.part)
        cli.tell(*encode_shards(args.source, args.out, encoding))
        return
    jax.config.update("jax_platforms", "cpu")  # nothing here is for an accelerator
    cli.tell(*prepare(args.source, args.out, args.config))


if __name__ == "__main__":
    cli.main(run)
