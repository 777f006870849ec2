"""Play with the dials of a run on a page in the browser."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("play")
