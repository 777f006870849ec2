"""Turn pictures, in a folder, an archive or Parquet files, into shards that training reads."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.interop import load_autoencoder
from odelt_eqx.latents import prepare_latents


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Decode pictures once, in parallel, and write them as shards with an index.

    The same command goes on where it was interrupted. What cannot be used is passed over and listed
    in OUT/skipped.jsonl. The source is only read.

    Args:
        source: a folder of pictures, a zip, an uncompressed tar, or Parquet files.
        out: folder of the shards.
        config: how.
        latents: write latents, of an autoencoder as diffusers publishes it: a folder, a
            `.safetensors` file or hub:OWNER/NAME. The source may be shards of pictures.
        batch_size: pictures that the autoencoder is shown at once.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PrepareConfig
    )
    latents: str | None = None
    batch_size: int = 16


def run() -> None:
    """Read the command line, prepare, print where the results are."""
    args = tyro.cli(Prepare)
    if args.latents is None:
        jax.config.update("jax_platforms", "cpu")  # nothing here is for an accelerator
        paths = prepare(args.source, args.out, args.config)
    else:
        network = load_autoencoder(args.latents)
        paths = prepare_latents(args.source, args.out, args.config, network, args.batch_size)
    print(*(paths or ["the other parts are yet to be done"]), sep="\n")


if __name__ == "__main__":
    cli.main(run)
