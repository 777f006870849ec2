"""Turn pictures, in a folder, an archive or Parquet files, into shards that training reads."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.data.prepare import PrepareConfig, prepare


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Decode pictures once, in parallel, and write them as shards with an index.

    The same command goes on where it was interrupted. What cannot be used is passed over and listed
    in OUT/skipped.jsonl. The source is only read.

    Args:
        source: a folder of pictures, a zip, an uncompressed tar, or Parquet files.
        out: folder of the shards.
        config: how.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PrepareConfig
    )


def run() -> None:
    """Read the command line, prepare, print where the results are."""
    jax.config.update("jax_platforms", "cpu")  # nothing here is for an accelerator
    args = tyro.cli(Prepare)
    print(*prepare(args.source, args.out, args.config), sep="\n")


if __name__ == "__main__":
    cli.main(run)
