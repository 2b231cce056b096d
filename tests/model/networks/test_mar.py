"""MAR against a restatement that shares no code: conditioning, head, schedule, and the whole loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.config import KlConfig
from model.conversion.import_mar import read_mar
from model.diffusion import kept_timesteps, make_schedule
from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.orders import random_order
from model.inference.prompts import LabelPrompts, first_name, imagenet_labels
from model.inference.requests import Sampling
from model.networks.condition import PromptError
from model.networks.mar import ClassContext, Mar
from tests.model import mar_restated as plain
from tests.model.conftest import row_request, run_alone

HEADS = 4
TINY_KL = KlConfig(widths=(32, 32), latent_channels=4, layers=1)
LABELS = ["tench, Tinca tinca", "golden retriever", "crane (2)", "crane (3)", "castle"]


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="session")
def state() -> plain.State:
    return plain.random_state()


@pytest.fixture(scope="session")
def mar(state: plain.State, tmp_path_factory: pytest.TempPathFactory) -> Mar:
    file = tmp_path_factory.mktemp("mar") / "mar.safetensors"
    save_file(state, file)
    return read_mar(file, TINY_KL, HEADS).eval().requires_grad_(False)


def test_z_matches_the_restatement_for_any_number_of_known_tokens(mar: Mar, state: plain.State) -> None:
    """Rows with 0, 1, 7 and 15 of 16 tokens known, with and without a class; each as if it were alone."""
    tokens = torch.randn(4, 16, 4, generator=torch.Generator().manual_seed(1))
    known = torch.arange(16) < torch.tensor([0, 1, 7, 15])[:, None]
    known = known[:, torch.randperm(16, generator=torch.Generator().manual_seed(2))]
    labels: list[int | None] = [3, None, 0, 4]
    condition = ClassContext.stack([mar.backbone.encode_class(label) for label in labels])
    together = mar.backbone(tokens, known, condition)
    for row, label in enumerate(labels):
        expected = plain.conditioning(state, tokens[row], known[row].tolist(), label, HEADS)
        one = slice(row, row + 1)
        alone = mar.backbone(tokens[one], known[one], condition[one])[0]
        assert apart(together[row], expected) < 1e-5
        assert apart(alone, expected) < 1e-5


def test_values_at_unknown_positions_are_never_read(mar: Mar) -> None:
    known = torch.arange(16)[None] < 5
    tokens = torch.randn(1, 16, 4)
    other = torch.where(known[..., None], tokens, 1e6)
    condition = mar.backbone.encode_class(0)
    assert torch.equal(mar.backbone(tokens, known, condition), mar.backbone(other, known, condition))


def test_the_head_matches_the_restatement(mar: Mar, state: plain.State) -> None:
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(9, 4, generator=generator), torch.randn(9, 48, generator=generator)
    for t in (0, 1, 500, 999):
        assert apart(mar.head(x, torch.full((9,), t), z), plain.head(state, x, t, z)) < 1e-6


def test_kept_timesteps_match_the_restatement() -> None:
    """The official rule sums a stride in floating point, and must not drift at any count, not even with 999/999.

    Of one step it takes the first, without noise to take away."""
    for count in range(2, 1001):
        assert kept_timesteps(count) == plain.kept_timesteps(count), count


@pytest.mark.parametrize("count", [2, 10, 50, 100, 250, 1000])
def test_every_coefficient_matches_the_restatement(count: int) -> None:
    ours = make_schedule(count)
    rows = plain.coefficients(count)
    names = {"sqrt_alpha_bar": "a", "sqrt_one_minus": "b", "mean_x0": "mean_x0", "mean_xt": "mean_xt"}
    for name, theirs in names.items():
        torch.testing.assert_close(getattr(ours, name), torch.tensor([r[theirs] for r in rows]), rtol=1e-6, atol=0)
    for name, theirs in {"log_variance": "variance", "log_beta": "beta"}.items():
        expected = torch.tensor([r[theirs] for r in rows], dtype=torch.float64).log().float()
        torch.testing.assert_close(getattr(ours, name), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("guidance", "schedule", "temperature"),
    [
        *itertools.product([1.0], ["constant"], [0.9, 1.0]),
        *itertools.product([3.0], ["linear", "constant"], [0.9, 1.0]),
    ],
)
def test_the_loop_matches_the_restatement(
    mar: Mar, state: plain.State, guidance: float, schedule: str, temperature: float
) -> None:
    """Same order and same noise, compared after the last step."""
    seeds, labels = torch.tensor([5, 6]), [1, 4]
    condition = ClassContext.stack([mar.backbone.encode_class(label) for label in labels])
    settings = Sampling(8, 12, guidance, schedule, temperature)
    drawn = generate(mar, condition, mar.backbone.encode_class(None), seeds, settings)
    for row, label in enumerate(labels):
        expected = plain.sample(
            state, label, random_order(seeds, 16)[row].tolist(), philox_noise(int(seeds[row])), heads=HEADS, steps=8,
            diffusion_steps=12, guidance=guidance, schedule=schedule, temperature=temperature,
        )  # fmt: skip
        assert apart(drawn[row], expected) < 1e-4


def philox_noise(seed: int) -> plain.Noise:
    """The noise that the engine draws for a seed's tokens."""

    def noise(position: int, timestep: int) -> Tensor:
        stream = INITIAL if timestep == TRAIN_STEPS else STEP
        seeds, places, times = (torch.tensor([value]) for value in (seed, position, timestep))
        return normal_ref(seeds, stream, places, times, 4)[0]

    return noise


def test_the_engine_mixes_rows_at_different_steps(mar: Mar) -> None:
    """A row that joins others at other steps, with other parameters, equals the same row alone."""
    prompts = LabelPrompts(mar, LABELS)
    ask = row_request("castle", 3, num_inference_steps=6, diffusion_steps=5, guidance_schedule="linear")
    alone = run_alone(Engine(mar, prompts, 1), ask)
    engine = Engine(mar, prompts, 3)
    engine.admit([row_request("crane (2)", 1, num_inference_steps=16), row_request("tench", 2, guidance_scale=1.0)])
    engine.step()
    engine.step()
    (row,) = engine.admit([ask])
    while row not in engine.step():
        pass
    assert apart(engine.peek(row), alone) < 1e-4


def test_an_unknown_label_suggests_close_ones(mar: Mar) -> None:
    with pytest.raises(PromptError, match=r"'golden retreiver' is not one of .* close to it: golden retriever"):
        LabelPrompts(mar, LABELS)("golden retreiver")


def test_a_negative_prompt_is_refused_and_nothing_is_admitted(mar: Mar) -> None:
    """The unconditional branch is a learned vector that belongs to no label."""
    engine = Engine(mar, LabelPrompts(mar, LABELS), 2)
    with pytest.raises(PromptError, match="class labels"):
        engine.admit([row_request("castle"), row_request("tench", negative_prompt="castle")])
    assert len(engine.admit([row_request("castle"), row_request("tench")])) == 2


def test_the_label_list_is_complete_and_its_first_names_are_unique() -> None:
    labels = imagenet_labels()
    assert len(labels) == len({first_name(label).lower() for label in labels}) == 1000
    assert labels[207] == "golden retriever" and labels[0] == "tench, Tinca tinca"
    assert labels[134] == "crane (134)" and labels[517] == "crane (517)"
    assert "Princeton" in Path("model/inference/imagenet_labels.txt").read_text(encoding="utf-8").partition("\n\n")[0]
