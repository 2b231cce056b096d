"""One operation per file: formula, definition in torch, Triton kernel, wrapper."""
