"""Search the settings of a run that no other beats in cost and quality."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("search")
