"""The loop of fused operations against the definition, interpreted: a graph's launches without the graph."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fluid_kernels.head_loop import HeadWeights, head_loop_ref
from fluid_kernels.loops import fused_loop
from fluid_kernels.loops.fused_loop import TritonHead, bucket_size
from model.inference.heads.chains import make_chains
from tests.kernels import test_head_loop as small


@pytest.mark.parametrize(("prediction", "clamp"), [("eps", 3.0), ("v", 0.0)])
@pytest.mark.parametrize(("count", "guided"), [(1, []), (1, [0]), (7, [1, 5])])
def test_the_loop_matches_the_definition(count: int, guided: list[int], prediction: str, clamp: float) -> None:
    """Float32; two chains, the second of which begins while the first runs."""
    head = small.make_head(prediction, depth=2)
    chains = make_chains(head, (6, 3))
    rows, _, _ = small.make_rows(head, count, guided, [0] * (count - count // 2) + [1] * (count // 2))
    weights = HeadWeights.from_head(head)
    expected = head_loop_ref(weights, rows, chains, prediction, clamp)
    found = TritonHead(weights, torch.float32)(rows, chains, prediction, clamp)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_chunks_and_buckets_change_nothing(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five evaluations hoisted at a time and rows that join in larger buckets; then again on the used buffers."""
    monkeypatch.setattr(fused_loop, "HOISTED_ROWS", 5)
    head = small.make_head(prediction, depth=1)
    weights = HeadWeights.from_head(head)
    loop = TritonHead(weights, torch.float32)
    for counts, chain, guided in (((7, 5, 2), [0, 1, 1, 2, 2, 2], [0, 1, 4]), ((3,), [0, 0], [])):
        chains = make_chains(head, counts)
        rows, _, _ = small.make_rows(head, len(chain), guided, chain)
        expected = head_loop_ref(weights, rows, chains, prediction, 2.0)
        torch.testing.assert_close(loop(rows, chains, prediction, 2.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_bfloat16_is_close(prediction: str) -> None:
    """This includes a chain's first step, which magnifies bfloat16's rounding errors: it is done in float32."""
    head = small.make_head(prediction, width=64, depth=2)
    chains = make_chains(head, (4, 1))
    rows, _, _ = small.make_rows(head, 4, [0, 3], [0, 0, 0, 1])
    weights = HeadWeights.from_head(head)
    exact = head_loop_ref(weights, rows, chains, prediction, 3.0)
    found = TritonHead(weights, torch.bfloat16)(rows, chains, prediction, 3.0)
    assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_buffers_made_in_inference_mode_serve_outside_of_it() -> None:
    """Tensors made in inference mode cannot be written outside of it, as when an engine and a test share a head."""
    head = small.make_head("v", depth=1)
    weights, chains = HeadWeights.from_head(head), make_chains(head, (3,))
    rows, _, _ = small.make_rows(head, 2, [1], [0, 0])
    loop = TritonHead(weights, torch.float32)
    with torch.inference_mode():
        inside = loop(rows, chains, "v", 3.0).clone()
    torch.testing.assert_close(loop(rows, chains, "v", 3.0), inside)


def test_unsorted_rows_are_rejected() -> None:
    head = small.make_head("v")
    rows, _, _ = small.make_rows(head, 2, [], [1, 0])
    with pytest.raises(ValueError, match="most steps first"):
        TritonHead(HeadWeights.from_head(head), torch.float32)(rows, make_chains(head, (9, 5)), "v", 0.0)


def test_a_bucket_holds_the_rows_it_was_chosen_for() -> None:
    assert [bucket_size(n) for n in (0, 1, 3, 17, 4096, 4097)] == [0, 1, 4, 24, 4096, 8192]
