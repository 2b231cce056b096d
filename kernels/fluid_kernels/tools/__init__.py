"""Proofs without a GPU (aot) and numerics with one (check)."""
