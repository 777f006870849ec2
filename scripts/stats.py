"""Write the statistics of a data set, to which Fréchet distances are taken."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("stats")
