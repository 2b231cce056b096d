"""Kernels of the diffusion head, each with its plain-torch definition beside it."""
