"""Fewer diffusion steps: a trained flow head learns the mean of its guided velocity over the steps that sampling takes.

A head that predicts the velocity u(x_t, t) needs many Euler steps, since the path of a token bends. Here a copy of it
also reads the length of its step and the guidance scale w, and learns

    mean u(x_t, t, s; w) = (x_t - x_s) / (t - s)      x_s: where the first head's own path, guided by w, is at time s

which a step of any length follows exactly. Mean velocities are those of mean flows (arXiv 2505.13447) and shortcut
models (arXiv 2410.12557), reading w is guided distillation's (arXiv 2210.03142); but a head is so small beside its
backbone that its paths can be integrated outright, without their bootstraps and derivatives. The copy starts as the
flow head, and the backbone stays as it is.
"""
