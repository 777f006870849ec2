"""A page on which the dials of a trained network are turned."""
