"""Turn images, or latents that other repositories stored, into shards that training reads."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("prepare")
