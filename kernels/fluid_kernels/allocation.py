"""Failed allocations, which torch reports by other errors on each device."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """True for the out-of-memory errors of GPU and CPU; only its message identifies a CPU's RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
