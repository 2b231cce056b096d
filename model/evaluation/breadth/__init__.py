"""Scores of single named things, of which a model may know thousands."""
