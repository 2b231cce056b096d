"""Choosing the path of the head's loop, and rejecting paths that cannot run here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from fluid_kernels.heads import HeadPathError, choose_path, make_head
from fluid_kernels.ops.linear import ROWS_OF_ONE_ORDER
from model.checkpoint import load_checkpoint
from model.inference.heads.chains import embed_conditions, make_chains
from model.inference.load import SHIPPED
from tests.kernels import test_head_loop as small

CPU = torch.device("cpu")


@pytest.mark.parametrize("path", ["auto", "torch", "triton"])
def test_all_paths_sample_the_same_tokens(path: str) -> None:
    """On a CPU, auto means torch; the other paths are interpreted (tests/kernels/conftest.py)."""
    head = small.make_head("v")
    weights, chains = HeadWeights.from_head(head), make_chains(head, (5,))
    rows, _, _ = small.make_rows(head, 3, [1], [0, 0, 0])
    assert choose_path(path, CPU) == ("torch" if path == "auto" else path)
    found = make_head(weights, torch.float32, path)(rows, chains, "v", 3.0)
    torch.testing.assert_close(found, head_loop_ref(weights, rows, chains, "v", 3.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_every_float32_product_of_the_head_has_rows_for_one_order(
    prediction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one to three rows made another image of a seed in a batch than alone, with bfloat16."""
    plain, seen = F.linear, list[int]()

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.extend([len(x)] if x.dtype == torch.float32 else [])
        return plain(x, weight, bias)

    head = small.make_head(prediction)
    chains, (rows, _, _) = make_chains(head, (5,)), small.make_rows(head, 2, [1], [0, 0])
    monkeypatch.setattr(F, "linear", linear)
    make_head(HeadWeights.from_head(head), dtype, "torch")(rows, chains, prediction, 3.0)
    z = torch.randn(3, head.config.width, generator=torch.Generator().manual_seed(0))
    embed_conditions(head, z, rows.guided, rows.guidance)
    assert len(seen) > 10 and all(count % ROWS_OF_ONE_ORDER == 0 for count in seen)


@pytest.mark.parametrize("path", ["cuda", "persistent"])  # the second was one until it had been measured
def test_an_unknown_path_is_rejected_with_the_known_ones(path: str) -> None:
    with pytest.raises(HeadPathError, match=f"kernels '{path}' is not one of auto, torch, triton$"):
        choose_path(path, CPU)


def test_auto_is_triton_on_a_gpu() -> None:
    pytest.importorskip("triton")
    assert choose_path("auto", torch.device("cuda")) == "triton"


@pytest.mark.parametrize("version", ["3.5.1", "2.1.0+rocm"])
def test_an_old_triton_is_not_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch depends on a version of Triton; the oldest supported torch brings one that is too old for the kernels."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    assert choose_path("auto", torch.device("cuda")) == "torch"
    with pytest.raises(HeadPathError, match=r"need triton 3\.6 or newer; install it, or use auto or torch"):
        choose_path("triton", torch.device("cuda"))


def test_kernels_without_a_gpu_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(HeadPathError, match=r"need a GPU, and the model is on cpu; use auto or torch"):
        choose_path("triton", CPU)


@pytest.mark.slow
def test_the_shipped_head_samples_the_same_on_every_path() -> None:
    """Trained weights instead of random ones, with the guidance that the model is served with."""
    model = load_checkpoint(SHIPPED / "atlas-128").model.eval().requires_grad_(False)
    head, count = model.head, 3
    z = torch.randn(2 * count, model.config.width, generator=torch.Generator().manual_seed(0))
    every = torch.arange(count)
    rows = Rows(
        condition=head.embed_condition(z), guided=every, chain=torch.tensor([0, 0, 1]), position=every, seed=every,
        guidance=torch.full((count,), 3.0), temperature=torch.tensor([1.0, 0.7, 0.5]),
    )  # fmt: skip
    weights, chains = HeadWeights.from_head(head), make_chains(head, (6, 4))
    settings = model.config.prediction, model.config.clamp
    expected = head_loop_ref(weights, rows, chains, *settings)
    found = make_head(weights, torch.float32, "triton")(rows, chains, *settings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=9), guided=st.sets(st.integers(0, 8)),
    prediction=st.sampled_from(["eps", "v", "flow"]),
)  # fmt: skip
@settings(max_examples=8)
def test_rows_of_any_schedules_share_a_loop(lengths: list[int], guided: set[int], prediction: str) -> None:
    """Every row, guided or not, has its own number of steps."""
    head = small.make_head(prediction, width=128, depth=1)
    counts = sorted(set(lengths), reverse=True)
    chain = sorted(counts.index(length) for length in lengths)
    rows, _, _ = small.make_rows(head, len(chain), sorted(guided & set(range(len(chain)))), chain)
    weights, chains = HeadWeights.from_head(head), make_chains(head, counts)
    rule = head.config.update_rule
    expected = head_loop_ref(weights, rows, chains, rule, 3.0)
    found = make_head(weights, torch.float32, "triton")(rows, chains, rule, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
