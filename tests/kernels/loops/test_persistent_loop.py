"""The loop in one kernel against the definition, interpreted."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fluid_kernels.head_loop import HeadWeights, head_loop_ref
from fluid_kernels.loops import persistent_loop
from fluid_kernels.loops.persistent_loop import PersistentHead
from model.inference.heads.chains import make_chains
from tests.kernels import test_head_loop as small

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("prediction", "clamp"), [("eps", 3.0), ("v", 0.0)])
@pytest.mark.parametrize(("count", "guided"), [(1, []), (3, [0, 2]), (18, [5]), (11, list(range(11)))])
def test_the_loop_matches_the_definition(count: int, guided: list[int], prediction: str, clamp: float) -> None:
    """Float32, teams of two; several tiles, tiles that are not full, rows that begin while others run."""
    head = small.make_head(prediction, width=128, depth=1)
    chains = make_chains(head, (4, 2))
    rows, _, _ = small.make_rows(head, count, guided, [0] * (count - count // 2) + [1] * (count // 2))
    weights = HeadWeights.from_head(head)
    expected = head_loop_ref(weights, rows, chains, prediction, clamp)
    found = PersistentHead(weights, torch.float32)(rows, chains, prediction, clamp)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_chunks_change_nothing_and_a_width_need_not_be_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent_loop, "HOISTED_ROWS", 8)
    head = small.make_head("v", width=384, depth=2)
    weights, chains = HeadWeights.from_head(head), make_chains(head, (5, 3))
    rows, _, _ = small.make_rows(head, 3, [0], [0, 1, 1])
    expected = head_loop_ref(weights, rows, chains, "v", 2.0)
    found = PersistentHead(weights, torch.float32)(rows, chains, "v", 2.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close() -> None:
    head = small.make_head("eps", width=128, depth=2)
    weights, chains = HeadWeights.from_head(head), make_chains(head, (4, 1))
    rows, _, _ = small.make_rows(head, 4, [0, 3], [0, 0, 0, 1])
    exact = head_loop_ref(weights, rows, chains, "eps", 3.0)
    found = PersistentHead(weights, torch.bfloat16)(rows, chains, "eps", 3.0)
    assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_an_interpreter_that_cannot_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 with numpy 2.4 failed inside the kernel with a TypeError about 0-dimensional arrays."""
    monkeypatch.setattr(persistent_loop.triton, "__version__", "3.6.0")
    monkeypatch.setattr(persistent_loop.np, "__version__", "2.4.6")
    weights = HeadWeights.from_head(small.make_head("v", width=128, depth=1))
    with pytest.raises(ValueError, match=r"install triton 3\.7 or newer"):
        PersistentHead(weights, torch.float32)
    monkeypatch.setattr(persistent_loop.np, "__version__", "2.3.5")
    PersistentHead(weights, torch.float32)


@pytest.mark.parametrize("width", [64, 192, 2048])
def test_unsupported_widths_are_rejected(width: int) -> None:
    head = small.make_head("v", width=width, depth=1)
    with pytest.raises(ValueError, match=f"not {width}; use triton"):
        PersistentHead(HeadWeights.from_head(head), torch.float32)
