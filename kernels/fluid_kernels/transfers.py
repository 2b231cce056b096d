"""Copies from the host that do not make it wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Start the copy of a host tensor to a device. From pageable memory, the host would wait for everything before it.

    The pinned copy may be dropped at once: its allocator keeps the memory until the device has read it.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
