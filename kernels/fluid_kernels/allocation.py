"""Memory of tensors: allocations that fail, reported by other errors on each device, and what becomes of freed ones."""

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MAPPED_FROM = 32 << 20  # bytes, the most that glibc takes; larger tensors are given back as ever
KEPT = 256 << 20  # most bytes of freed memory that are kept at the end of a heap
ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def is_out_of_memory(error: Exception) -> bool:
    """True for the out-of-memory errors of GPU and CPU; only its message identifies a CPU's RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones; return True if it will.

    Otherwise it gives them back to the kernel and maps them anew, and every page of every activation faults once a
    step: up to a fifth of a CPU worker's time (docs/log.md, 2026-11-29). Nothing is done where the environment has
    settings of its own for the allocator, nor without glibc.
    """
    if any(name in os.environ for name in ENVIRONMENT) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, macOS
        return False
    # Both: one alone fixes the other at 128 KiB, which makes it worse.
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) and mallopt(M_TRIM_THRESHOLD, KEPT))
