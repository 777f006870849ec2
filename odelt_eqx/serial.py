"""Typed values to and from what JSON can hold; nothing but the types asked for can come out."""

from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union

from odelt_eqx.ode.plan import Adaptive, FixedSteps


def converter(*unions: Any) -> cattrs.Converter:
    """Return a converter of dataclasses for which unknown fields are errors.

    Args:
        *unions: unions of dataclasses; each member is written with the name of its type. That of
            the two plans is always among them.
    """
    made = cattrs.Converter(forbid_extra_keys=True)
    for union in (FixedSteps | Adaptive, *unions):
        configure_tagged_union(union, made, tag_name="type")
    return made
