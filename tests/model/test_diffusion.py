"""Diffusion of one token, against brute force in float64 and against a known distribution."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from model.config import DdpmConfig, FluidConfig, TextConfig, TokenizerConfig
from model.diffusion import add_noise, cosine_alpha_bar, kept_timesteps, make_schedule, training_loss
from model.inference.heads.chains import make_chains
from model.networks.diffusion_head import DiffusionHead
from model.schedules import ddpm_schedule


def test_ends_of_the_cosine_schedule() -> None:
    alpha_bar = cosine_alpha_bar()
    assert alpha_bar[0] == pytest.approx(0.99996, abs=1e-5)
    assert alpha_bar[998] == pytest.approx(2.4e-6, rel=0.02)
    assert alpha_bar[999] == pytest.approx(2.4e-9, rel=0.02)


@given(st.integers(2, 1000))
def test_respacing_keeps_both_ends_and_is_even(count: int) -> None:
    kept = kept_timesteps(count)
    gaps = np.diff(kept)
    assert kept[0] == 0 and kept[-1] == 999 and len(set(kept)) == count
    assert gaps.max() - gaps.min() <= 1


def test_kept_timesteps_of_a_hundred() -> None:
    assert kept_timesteps(100)[:4] == [0, 10, 20, 30] and kept_timesteps(100)[-2:] == [989, 999]
    assert kept_timesteps(1) == [999], "the first alone returned the noise that a token starts from"
    with pytest.raises(ValueError, match="0 diffusion steps"):
        kept_timesteps(0)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_has_as_many_timesteps(spacing: Literal["leading", "trailing", "linspace"]) -> None:
    """Of 61, 103 and others, trailing ones were one too many, and the step failed, in the middle of an image."""
    config = DdpmConfig(timestep_spacing=spacing)
    for count in (*range(1, 251), 1000):
        steps = ddpm_schedule(count, config, True).timesteps
        assert len(steps) == count and int(steps.min()) >= 0 and int(steps.max()) < 1000, count


@pytest.mark.parametrize("count", [1000, 100, 25, 2])
def test_posterior_against_bayes_in_float64(count: int) -> None:
    """q(x_s | x_t, x_0) by completing the square in q(x_t | x_s) q(x_s | x_0); shares no formula with the code."""
    schedule, alpha_bar = make_schedule(count), cosine_alpha_bar()
    kept = kept_timesteps(count)
    x0, xt = 0.7, -1.3
    for i in range(1, count):
        a_t, a_s = alpha_bar[kept[i]], alpha_bar[kept[i - 1]]
        step = a_t / a_s  # x_t = √step x_s + √(1 − step) ε
        precision = step / (1 - step) + 1 / (1 - a_s)
        mean = (math.sqrt(step) * xt / (1 - step) + math.sqrt(a_s) * x0 / (1 - a_s)) / precision
        ours = (schedule.mean_x0[i] * x0 + schedule.mean_xt[i] * xt).item()
        assert ours == pytest.approx(mean, rel=1e-5, abs=1e-6)
        assert schedule.log_variance[i].item() == pytest.approx(-math.log(precision), rel=1e-5, abs=1e-5)


def test_forward_noise_has_the_moments_of_the_marginal() -> None:
    schedule = make_schedule()
    index = torch.full((20000,), 500)
    x = add_noise(schedule, torch.full((20000, 1), 2.0), index, torch.randn(20000, 1))
    alpha_bar = cosine_alpha_bar()[500]
    assert x.mean().item() == pytest.approx(2 * math.sqrt(alpha_bar), abs=0.02)
    assert x.var().item() == pytest.approx(1 - alpha_bar, abs=0.02)


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_loss_of_a_perfect_prediction_is_zero_but_for_the_variance(prediction: str) -> None:
    """v: exactly 0. eps: the bound at the right variance remains, and a wrong variance costs more.

    Small timesteps, because at large ones posterior variance and beta are nearly equal.
    """
    schedule = make_schedule()
    torch.manual_seed(0)
    x0, noise, index = torch.randn(64, 4), torch.randn(64, 4), torch.randint(1, 20, (64,))
    x = add_noise(schedule, x0, index, noise)
    if prediction == "v":
        v = schedule.sqrt_alpha_bar[index, None] * noise - schedule.sqrt_one_minus[index, None] * x0
        assert training_loss(schedule, v, x0, x, index, noise, "v").abs().max() < 1e-10
        return
    right = torch.cat([noise, -torch.ones_like(noise)], -1)  # -1: the posterior's own variance
    wrong = torch.cat([noise, torch.full_like(noise, 3.0)], -1)
    assert training_loss(schedule, right, x0, x, index, noise, "eps").abs().max() < 1e-3
    assert training_loss(schedule, wrong, x0, x, index, noise, "eps").min() > 2e-3


def _mixture(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 2): two blobs in the plane, 30 % around (-1.5, 0.5) with sd 0.2, 70 % around (1, -0.5) with sd 0.4."""
    left = torch.rand(count, 1, generator=generator) < 0.3
    noise = torch.randn(count, 2, generator=generator)
    return torch.where(left, torch.tensor([-1.5, 0.5]) + 0.2 * noise, torch.tensor([1.0, -0.5]) + 0.4 * noise)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_a_trained_head_reproduces_a_known_mixture(prediction: str) -> None:
    """Train on a 2-D mixture, sample 4000 points, and compare weights, means and spreads of the two blobs.

    Covers the whole chain, loss, network, respacing, posterior and noise, against numbers known in advance.
    """
    torch.manual_seed(1)
    config = FluidConfig(
        image_size=8, width=8, heads=2, depth=1, head_width=64, head_depth=2, prediction=prediction,
        tokenizer=TokenizerConfig(stride=1, channels=2), text=TextConfig(kind="hash", dim=8),
    )  # fmt: skip
    head = DiffusionHead(config)
    head.zero_init()
    schedule, rng = make_schedule(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    steps = 900
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        x0 = _mixture(512, rng)
        index, noise = torch.randint(1000, (512,), generator=rng), torch.randn(512, 2, generator=rng)
        x = add_noise(schedule, x0, index, noise)
        out = head(x, schedule.timesteps[index], torch.zeros(512, 8))
        optimizer.zero_grad()
        training_loss(schedule, out, x0, x, index, noise, prediction).mean().backward()
        optimizer.step()
    count = 4000
    rows = Rows(
        condition=head.embed_condition(torch.zeros(count, 8)).detach(), guided=torch.empty(0, dtype=torch.int64),
        chain=torch.zeros(count, dtype=torch.int64), guidance=torch.ones(count), temperature=torch.ones(count),
        seed=torch.arange(count), position=torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip
    with torch.inference_mode():
        # At the noisy end x0 = (x - b eps)/a with 1/a = 20000: a head this small needs the limit on |x0| there.
        clamp = 4.0 if prediction == "eps" else 0.0
        drawn = head_loop_ref(HeadWeights.from_head(head), rows, make_chains(head, (50,)), prediction, clamp)
    left = drawn[:, 0] < -0.6
    assert left.float().mean().item() == pytest.approx(0.3, abs=0.04)
    for part, mean, spread in ((drawn[left], (-1.5, 0.5), 0.2), (drawn[~left], (1.0, -0.5), 0.4)):
        assert part.mean(0).tolist() == pytest.approx(mean, abs=0.06)
        assert part.std(0).tolist() == pytest.approx([spread, spread], abs=0.07)
