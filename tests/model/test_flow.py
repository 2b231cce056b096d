"""Flow matching of one token: the table of Euler steps, the path, and sampling through the loop of "v"."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluid_kernels.head_loop import HeadWeights, Rows, head_loop_ref
from fluid_kernels.philox import INITIAL, normal_ref
from model.config import ConfigError
from model.flow import add_flow_noise, flow_loss, flow_schedule, sample_times
from model.inference.heads.chains import make_chains
from model.networks.autoregressive_model import Fluid
from model.networks.diffusion_head import DiffusionHead
from model.networks.factory import config_from_json
from model.presets import PRESETS

FLOW = replace(PRESETS["tiny"], prediction="flow", flow_shift=2.0, clamp=0.0)


@given(st.integers(1, 200), st.sampled_from((0.5, 1.0, 3.0)))
def test_euler_steps_lead_from_noise_to_data(count: int, shift: float) -> None:
    """With the true u of one pair (x_0, ε) every step stays on the straight line, and the last one ends at x_0."""
    schedule = flow_schedule(count, shift)
    x0, noise = torch.tensor([2.0]), torch.tensor([-1.0])
    x = noise.clone()
    for j in reversed(range(count)):
        estimate = schedule.sqrt_alpha_bar[j] * x - schedule.sqrt_one_minus[j] * (noise - x0)
        x = schedule.mean_x0[j] * estimate + schedule.mean_xt[j] * x
    assert x.item() == pytest.approx(2.0, abs=1e-4)
    assert schedule.timesteps[-1] == 1000 and (schedule.timesteps.diff() >= 0).all()


def test_shift_spends_more_steps_on_noise() -> None:
    assert flow_schedule(8, 3.0).timesteps.float().mean() > flow_schedule(8, 1.0).timesteps.float().mean() + 100
    with pytest.raises(ValueError, match="0 diffusion steps"):
        flow_schedule(0)


def test_the_loop_is_eulers_method() -> None:
    """The sampling loop gives what integrating the head's own velocity from noise times the temperature gives.

    A temperature used to be accepted and to change nothing, since no step of a flow adds noise.
    """
    torch.manual_seed(0)
    head = DiffusionHead(FLOW)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    head.requires_grad_(False)
    rows = Rows(
        condition=head.embed_condition(torch.randn(5, FLOW.width)), guided=torch.zeros(0, dtype=torch.int64),
        chain=torch.zeros(5, dtype=torch.int64), guidance=torch.ones(5), temperature=torch.full((5,), 0.3),
        seed=torch.arange(5), position=torch.arange(5),
    )  # fmt: skip
    chains = make_chains(head, (6,))
    found = head_loop_ref(HeadWeights.from_head(head), rows, chains, FLOW.update_rule, 0.0)
    times = [*(flow_schedule(6, 2.0).timesteps / 1000).tolist()[::-1], 0.0]
    x = 0.3 * normal_ref(rows.seed, INITIAL, rows.position, torch.full((5,), 1000), FLOW.channels)
    for now, then in pairwise(times):
        u = head.denoise(x, head.embed_time(torch.full((5,), 1000 * now)) + rows.condition)
        x = x + (then - now) * u
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_times_are_within_the_chain_and_repeatable() -> None:
    times = sample_times((3, 4000), torch.Generator().manual_seed(1))
    assert times.min() >= 1 and times.max() <= 1000 and times.dtype == torch.int64
    assert abs(times.float().mean().item() - 500) < 10
    assert torch.equal(times, sample_times((3, 4000), torch.Generator().manual_seed(1)))


def test_the_path_ends_at_data_and_at_noise() -> None:
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    x = add_flow_noise(x0, torch.tensor([1000, 1]), noise)
    assert torch.equal(x[0], noise[0]) and torch.allclose(x[1], x0[1], atol=0.01)
    assert torch.equal(flow_loss(noise - x0, x0, noise), torch.zeros(2))


def test_a_flow_model_trains_and_keeps_its_setting_in_json() -> None:
    torch.manual_seed(0)
    model = Fluid(FLOW)
    tokens, masked = torch.randn(2, 16, 4), torch.ones(2, 16, dtype=torch.bool)
    z = torch.randn(2, 16, FLOW.width, requires_grad=True)
    index, noise = sample_times((2, 32), torch.Generator().manual_seed(0)), torch.randn(2, 32, 4)
    loss = model.token_loss(flow_schedule(1000), z, tokens, masked, index, noise)
    loss.backward()
    assert loss.item() > 1  # a head that starts at zero predicts nothing: E|ε − x_0|² is about 2
    assert config_from_json(FLOW.to_json()) == FLOW


@pytest.mark.parametrize("changes", [{"prediction": "flow", "flow_shift": 0.0}, {"prediction": "v", "flow_shift": 2.0}])
def test_a_shift_that_does_not_fit_is_rejected(changes: dict) -> None:
    with pytest.raises(ConfigError, match="flow_shift"):
        replace(PRESETS["tiny"], **changes)
