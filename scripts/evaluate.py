"""Measure the grid of a run over time steps and depths, and its held-out losses."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("evaluate")
