"""Fewer diffusion steps: a trained flow head learns the mean of its guided velocity over the steps that sampling takes.

A head that predicts the velocity u(x_t, t) needs many Euler steps, since the path of a token bends, and each of them
twice for guidance. Here a copy of it also reads the length of its step, the guidance scale w and the condition without
the prompt, and learns

    mean u(x_t, t, s; w) = (x_t - x_s) / (t - s)      x_s: where the first head's own path, guided by w, is at time s

which a step of any length follows exactly, in one evaluation. Mean velocities are that of mean flows (arXiv 2505.13447)
and shortcut models (arXiv 2410.12557), reading w is that of guided distillation (arXiv 2210.03142); but a head is so
small beside its backbone that its paths can be integrated outright, without their bootstraps and derivatives. The
backbone stays as it is.
"""
