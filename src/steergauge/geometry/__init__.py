"""Geometry of a suffix measured on a model: what the output sees of a vector."""
