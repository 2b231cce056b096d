"""Conditioners of imported families: prompts in, what their backbones are conditioned on out."""
