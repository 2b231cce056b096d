"""Checkpoints made from weights that others published."""
