"""Describe a run from its folder, while it trains or later."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("info")
