"""Checks of the kernels: compilation without a GPU (aot), numerics on one (check)."""
