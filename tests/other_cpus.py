"""A different CPU from this one, simulated for a separate process."""

from __future__ import annotations

import os
import subprocess
import sys

# What AMD's EPYC before Zen 4 and most desktop CPUs have; where there is no AVX-512 anyway, this changes nothing.
WITHOUT_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def python_without_avx512(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with the arguments, as if on a CPU with AVX2 and nothing newer."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, env={**os.environ, **WITHOUT_AVX512, **environment},
    )  # fmt: skip
