"""Kernels run here by Triton's interpreter, which must be asked for before the first kernel is defined."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
