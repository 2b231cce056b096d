"""From prompt to pixels: generate is the plain definition, engine the batched form, serving the worker's interface."""
