"""Weights from elsewhere."""

from odelt_eqx.interop.reference import dit_from_reference as dit_from_reference
