"""Reinforcement learning of a trained model from a judge's verdicts on its own images.

    u  = ε − x_0                    the velocity that a flow learns, x_0 a token that the model drew (model/flow.py)
    u* = u_old + s A (u − u_old)    the target: towards the image if its advantage A is positive, away from it if not

The mean squared error to u* is the objective of DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117) with r = (1 + A) / 2
and β = 1 / s: its positive and its negative policy, multiplied out. Nothing of the sampling is differentiated or
remembered, so any sampler will do; here it is the one that serves, with guidance. With A = 1 and s = 1 the target is u
itself, ordinary training; so images of the data, which share each batch and keep the model where it is, have that.
"""
