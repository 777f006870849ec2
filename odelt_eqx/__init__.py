"""Flow and shortcut models whose cost is dialled on two axes: time steps and network depth.

The public names are those of `odelt_eqx.public`. They, and JAX with them, are loaded when the first
one is asked for, so that the command line answers at once what needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from odelt_eqx.public import *
else:

    def __getattr__(name: str) -> Any:
        found = vars(import_module("odelt_eqx.public")) | globals()  # whose modules it has loaded
        if name.startswith("_") or name not in found:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return found[name]

    def __dir__() -> list[str]:
        return sorted(globals().keys() | vars(import_module("odelt_eqx.public")))
