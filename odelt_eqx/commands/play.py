"""Play with the dials of a run on a page in the browser."""

import dataclasses
from pathlib import Path

import tyro

from odelt_eqx import cli
from odelt_eqx.errors import check_range
from odelt_eqx.play.player import Player
from odelt_eqx.play.server import check_installed, listen, serve


@dataclasses.dataclass(frozen=True)
class Play:
    """Serve a page on which the dials of a run are turned, on this machine alone.

    Args:
        run: run folder.
        port: port of the page on 127.0.0.1; 0 for any that is free.
        count: samples that are shown; 20 images or 1,000 vectors by default.
        autoencoder: weights of the autoencoder that decodes latents, see
            `odelt_eqx.interop.load_autoencoder`; None if samples are images or vectors.

    Raises:
        InputError: a number is out of range.
    """

    run: tyro.conf.Positional[Path]
    port: int = 8642
    count: int | None = None
    autoencoder: str | None = None

    def __post_init__(self) -> None:
        check_range(self, "port", least=0, most=65535)
        check_range(self, "count", least=1)


def run(words: list[str]) -> None:
    """Read the arguments, serve the page, print its address."""
    args = cli.arguments(Play, words)
    check_installed()
    with listen(args.port) as listener:
        serve(Player(args.run, args.count, args.autoencoder), listener)
