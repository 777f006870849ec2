"""Convert a checkpoint of the reference, SiT or REPA to a run folder, or any to safetensors."""

from odelt_eqx.commands import main

if __name__ == "__main__":
    main("convert")
