"""The benchmarks run and measure what they claim; speed is not asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import batching, edits, exact, growth, head
from benchmarks.fast import kernel_distance
from benchmarks.machine import without_zero_init
from model.config import KlConfig, MarConfig
from model.inference.engine import Engine
from model.inference.heads.chains import make_chains
from model.inference.load import load_engine
from model.inference.prompts import LabelPrompts
from model.inference.requests import Request, Sampling
from model.inference.row_state import Snapshot
from model.networks.mar import Mar


def test_traces_are_the_same_for_both_sides() -> None:
    assert batching.make_trace(5, 2.0, 1) == batching.make_trace(5, 2.0, 1)
    gaps = [a.at for a in batching.make_trace(400, 10.0, 0)]
    assert gaps == sorted(gaps) and gaps[-1] == pytest.approx(40, rel=0.2)


@pytest.mark.slow
def test_every_side_of_batching_completes_each_request_after_its_arrival() -> None:
    engine = load_engine("atlas-128", batching.ROWS, "cpu")
    trace = batching.make_trace(10, 50.0, 3)
    for side in (batching.continuous, batching.static, batching.static_padded):
        done = side(engine, trace)
        assert all(end > arrival.at for end, arrival in zip(done, trace, strict=True))
        assert not engine.engine._rows


@pytest.mark.slow
def test_growth_writes_its_plot(tmp_path: Path) -> None:
    result = growth.run(quick=True, plot=tmp_path / "growth.png")
    assert set(result) == {"rows", "tokens", "parameters"} and (tmp_path / "growth.png").stat().st_size > 5000


def test_the_official_names_round_trip(tmp_path: Path) -> None:
    """Our importer reads the weights of the official side back unchanged: all sides have the same weights."""
    from model.conversion.import_mar import read_mar

    config = MarConfig(
        image_size=8, width=48, heads=4, encoder_depth=1, decoder_depth=1, buffer=4, classes=3, head_width=32,
        head_depth=1, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
    )  # fmt: skip
    model = without_zero_init(Mar(config))
    torch.save({"model_ema": exact.official_state(model)}, tmp_path / "mar.pth")
    again = read_mar(tmp_path / "mar.pth", KlConfig(widths=(32, 32), layers=1, latent_channels=4), heads=4)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.slow
def test_the_eager_chain_samples_from_the_distribution_of_the_engine() -> None:
    """Both sides of the speed comparison use the same formulas: mean and spread of many tokens agree."""
    config = MarConfig(
        image_size=16, width=32, heads=4, encoder_depth=1, decoder_depth=1, buffer=2, classes=2, head_width=32,
        head_depth=2, clamp=0.0, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
    )  # fmt: skip
    torch.manual_seed(0)
    model = without_zero_init(Mar(config))
    engine = Engine(model, LabelPrompts(model, ["a", "b"]), 1)
    sampling = Sampling(1, exact.DIFFUSION_STEPS, exact.GUIDANCE)
    samples = []
    for seed in range(60):
        row = engine.restore(Snapshot(Request("a", seed, sampling), 0, torch.zeros(64, 4)))
        engine.step()
        samples.append(engine.peek(row))
        engine.release(row)
    z = model.backbone(
        torch.zeros(2, 64, 4), torch.zeros(2, 64, dtype=torch.bool),
        engine._null.stack([engine.conditioner("a"), engine._null]),
    ).flatten(0, 1)  # fmt: skip
    chains = make_chains(model.head, (exact.DIFFUSION_STEPS,))
    eager = torch.stack([exact._eager_chain(model, z, chains) for _ in range(60)])
    ours = torch.stack(samples)
    scale = ours.std()
    assert (eager.mean(0) - ours.mean(0)).abs().mean() < 0.25 * scale
    assert eager.std().item() == pytest.approx(ours.std().item(), rel=0.1)


def test_the_counted_flops_of_a_pass_include_attention() -> None:
    """PyTorch's counter gives none for the attention of CPUs, so the backbone's share of the peak came out too low."""
    query, weight = torch.zeros(2, 3, 5, 4), torch.zeros(4, 7)

    def work() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, query[:, :, :2], query[:, :, :2])
        query.view(30, 4) @ weight

    with torch.inference_mode():
        assert head.count_flops(work) == 2 * (2 * 2 * 3 * 5 * 2 * 4) + 2 * 30 * 4 * 7


def test_kernel_distance_is_zero_on_average_and_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1) for _ in range(2))
    shifted = torch.nn.functional.normalize(b + 0.3, dim=1)
    assert abs(kernel_distance(a, b)) < 0.02 < kernel_distance(a, shifted)


def test_a_seam_is_measured_only_at_the_edge_of_the_mask() -> None:
    """A hole of another shade in a fine chequerboard has its step in the seam; noise everywhere has no seam."""
    mask = edits.box_mask((64, 64))
    board = np.where(np.asarray(mask) > 0, 50, 20) + np.indices((64, 64)).sum(0) % 2
    found = edits.gradients(board[None, :, :, None].repeat(3, axis=3).astype(np.uint8), mask)
    assert (found["inside"], found["outside"]) == (1, 1)
    assert 29 <= found["seam"] <= 31
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    assert abs(edits.gradients(noise, mask)["visible"] - 1) < 0.03
