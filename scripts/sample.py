"""Generate samples of a run, with any solver on either axis."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("sample")
