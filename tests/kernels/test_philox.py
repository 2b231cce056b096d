"""Random numbers: known answers, statistics, and agreement with Triton."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from fluid_kernels.philox import CATEGORY, CHOICE, STEP, gumbel_ref, normal_ref, philox

TRITON_CHECK = """
import torch
from fluid_kernels.philox import STEP, normal_ref
from fluid_kernels.ops.philox_triton import normal
g = torch.Generator().manual_seed(0)
for count, channels in ((1, 16), (100, 16), (65, 6), (64, 1)):
    seed = torch.randint(0, 2**63 - 1, (count,), generator=g)
    place, step = (torch.randint(0, high, (count,), generator=g) for high in (4096, 1001))
    worst = (normal(seed, STEP, place, step, channels) - normal_ref(seed, STEP, place, step, channels)).abs().max()
    assert worst < 1e-6, (count, channels, worst)
print("equal")
"""


def _words(key: int, counter: int) -> list[int]:
    word = torch.full((1,), counter, dtype=torch.int64)
    return [int(w) for w in philox(torch.tensor([key]), word, word, word, word)]


def test_known_answers() -> None:
    """The published test vectors of Philox4x32-10 (Random123): all zeros and all ones."""
    assert _words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert _words(-1, 0xFFFF_FFFF) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_normal_numbers_are_normal_and_independent_of_shape() -> None:
    """Independent to the bit: in float32 a number's last bit occasionally depended on its place in the tensor."""
    seed, place, step = torch.tensor(7), torch.arange(500)[:, None], torch.arange(20)[None]
    numbers = normal_ref(seed, STEP, place, step, 16)
    assert numbers.shape == (500, 20, 16)
    assert abs(numbers.mean().item()) < 0.01 and abs(numbers.std().item() - 1) < 0.01
    flat = numbers.flatten().double()
    assert abs((flat**4).mean().item() - 3) < 0.1  # kurtosis
    assert abs((flat[:-1] * flat[1:]).mean().item()) < 0.01  # neighbours do not correlate
    one = normal_ref(seed, STEP, torch.tensor(123), torch.tensor(9), 16)
    assert torch.equal(one, numbers[123, 9])
    fewer = normal_ref(seed, STEP, torch.tensor(123), torch.tensor(9), 5)
    assert torch.equal(fewer, one[:5])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_generates_the_same_numbers() -> None:
    """They are interpreted in a separate process: TRITON_INTERPRET must be set before kernels are defined."""
    done = subprocess.run(
        [sys.executable, "-c", TRITON_CHECK], capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr


def test_gumbel_numbers_have_the_distribution_and_are_finite() -> None:
    """Mean γ, variance π²/6; a shorter row is the beginning of a longer one, and purposes do not overlap."""
    seed, position, step = torch.arange(2000), torch.tensor(3), torch.tensor(0)
    numbers = gumbel_ref(seed, CATEGORY, position, step, 50)
    assert numbers.shape == (2000, 50) and numbers.isfinite().all()
    assert numbers.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert numbers.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert torch.equal(gumbel_ref(seed, CATEGORY, position, step, 7), numbers[:, :7])
    assert not torch.equal(gumbel_ref(seed, CHOICE, position, step, 50), numbers)
