"""Train a preset and evaluate it over a grid of time steps and depths."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("train")
