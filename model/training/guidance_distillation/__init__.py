"""Guidance in the weights: a model learns the velocity that guidance makes of its own two halves.

    u(c; w) = u(∅) + w (u(c) − u(∅))      what classifier-free guidance with a scale of w follows

takes two passes, with the prompt c and without, of which the second is as expensive as the first. The copy that learns
u(c; w) as its own conditional velocity needs one (Meng et al. 2022, arXiv 2210.03142, here for one scale). Without a
prompt it stays as it was, so guidance still acts, on top: a scale of s then is one of s·w of the first model,

    u(∅) + s (u(c; w) − u(∅)) = u(∅) + s w (u(c) − u(∅)).

Targets are computed, not drawn: unlike those of training they have no noise, and minutes are enough.
"""
