"""Fewer diffusion steps: a trained flow head learns the mean velocity over the steps that sampling takes.

A head that predicts the velocity u(x_t, t) needs many Euler steps, since the path of a token bends. Here a copy of it
also reads the length of its step and learns

    mean u(x_t, t, s) = (x_t - x_s) / (t - s)        x_s: the end of the first head's own path from x_t, t down to s

which one step of any length follows exactly. Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), shortcut
models (arXiv 2410.12557) and mean flows (arXiv 2505.13447) have the same aim. A head is so small beside its backbone
that its paths can be integrated outright, without their bootstraps and derivatives. The backbone stays as it is.
"""
