"""Imported families, scaled down with random weights, against the code that they come from; one thread.

amused    against diffusers' pipeline; part of `python -m benchmarks`
nova      against the released pipeline, of which it needs a clone
"""
