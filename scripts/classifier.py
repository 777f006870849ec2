"""Train a small classifier on a data set, whose features compare samples of it."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("classifier")
