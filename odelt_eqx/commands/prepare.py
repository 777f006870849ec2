"""Turn images, or latents that other repositories stored, into shards that training reads."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import tyro

from odelt_eqx import cli
from odelt_eqx.data.latents import prepare_latents
from odelt_eqx.data.prepare import PrepareConfig, prepare
from odelt_eqx.interop import holds_latents, import_latents, load_autoencoder
from odelt_eqx.nn.autoencoder import PerChannel


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Decode images once, in parallel, and write them as shards with an index.

    The same command resumes where it was interrupted. Images that cannot be used are skipped and
    listed in OUT/skipped.jsonl. The source is only read. Latents in the layout of REPA, EDM2,
    fast-DiT (SiT) or LightningDiT, or in NumPy's files, are told from images by themselves.

    Args:
        source: a folder of images, a zip, an uncompressed tar, or Parquet files; or latents.
        out: folder of the shards.
        config: how to write them.
        latents: write latents of an autoencoder as diffusers publishes it: a folder, a
            `.safetensors` file or hub:OWNER/NAME. The source may be shards of images.
        batch_size: images that the autoencoder encodes at a time.
        scaling_factor: latents of a source of latents are (stored - shift_factor) * scaling_factor,
            each one number or one per channel; by default what the source says, or 0.18215 and 0
            for means and standard deviations of 4 channels.
        shift_factor: see scaling_factor, which it needs.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=PrepareConfig
    )
    latents: str | None = None
    batch_size: int = 16
    scaling_factor: PerChannel | None = None
    shift_factor: PerChannel = 0.0


def run(words: list[str]) -> None:
    """Read the arguments, prepare, print where the results are."""
    args = cli.arguments(Prepare, words)
    if args.latents is None:
        jax.config.update("jax_platforms", "cpu")  # decoding needs no accelerator
        if holds_latents(args.source):
            factors = args.scaling_factor, args.shift_factor
            paths = import_latents(args.source, args.out, args.config, *factors)
        else:
            paths = prepare(args.source, args.out, args.config)
    else:
        network = load_autoencoder(args.latents)
        paths = prepare_latents(args.source, args.out, args.config, network, args.batch_size)
    print(*(paths or ["other parts are unfinished"]), sep="\n")
