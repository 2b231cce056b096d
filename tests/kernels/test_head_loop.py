"""The head's sampling loop: its definition against single tokens, the hoisted form against the definition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS, Chains, HeadWeights, Rows, head_loop_ref, initial_noise
from fluid_kernels.loops.torch_loop import TorchHead
from fluid_kernels.ops.linear import PackedLinear, linear_ref
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.config import FluidConfig, MarConfig, TokenizerConfig
from model.diffusion import learned_log_variance, make_schedule, predict_x0
from model.inference.heads.chains import make_chains, stack_chains
from model.networks.diffusion_head import DiffusionHead


def make_head(prediction: str, width: int = 40, depth: int = 3) -> DiffusionHead:
    torch.manual_seed(0)
    config = FluidConfig(
        width=32, heads=2, head_width=width, head_depth=depth, prediction=prediction,  # type: ignore[arg-type]
        tokenizer=TokenizerConfig(channels=6),
    )  # fmt: skip
    head = DiffusionHead(config).eval().requires_grad_(False)
    for value in head.parameters():
        torch.nn.init.normal_(value, std=value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1)
    return head


def make_rows(
    head: DiffusionHead, count: int, guided: list[int], chain: list[int], seed: int = 1
) -> tuple[Rows, Tensor, Tensor]:
    """Rows with all parameters different, and their z (M, D) and unconditional z (G, D)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 32, generator=generator)
    z_uncond = torch.randn(len(guided), 32, generator=generator)
    rows = Rows(
        condition=head.embed_condition(torch.cat([z, z_uncond])), guided=torch.tensor(guided, dtype=torch.int64),
        chain=torch.tensor(chain), guidance=1.5 + torch.rand(count, generator=generator),
        temperature=0.8 + 0.4 * torch.rand(count, generator=generator),
        seed=torch.randint(0, 1 << 40, (count,), generator=generator),
        position=torch.randint(0, 64, (count,), generator=generator),
    )  # fmt: skip
    return rows, z, z_uncond


def sample_one(
    head: DiffusionHead, rows: Rows, i: int, z: Tensor, z_uncond: Tensor | None, steps: int, prediction: str,
    clamp: float,
) -> Tensor:  # fmt: skip
    """(1, C): the i-th row by itself, step by step, by the formulas that training uses (model/diffusion.py)."""
    schedule, channels = make_schedule(steps), head.token_in.in_features

    def noise(purpose: int, timestep: int) -> Tensor:
        return normal_ref(rows.seed[i : i + 1], purpose, rows.position[i : i + 1], torch.tensor([timestep]), channels)

    x = noise(INITIAL, TRAIN_STEPS)
    for j in reversed(range(steps)):
        t, index = schedule.timesteps[j : j + 1], torch.tensor([j])
        main, raw = head(x, t, z).split([channels, head.out.out_features - channels], 1)
        if z_uncond is not None:
            uncond = head(x, t, z_uncond)[:, :channels]
            main = uncond + rows.guidance[i] * (main - uncond)
        x0 = predict_x0(schedule, main, x, index, prediction)
        x0 = x0.clamp(-clamp, clamp) if clamp else x0
        log_variance = learned_log_variance(schedule, raw, index) if prediction == "eps" else schedule.log_variance[j]
        x = schedule.mean_x0[j] * x0 + schedule.mean_xt[j] * x
        if j:
            x = x + rows.temperature[i] * torch.exp(0.5 * log_variance) * noise(STEP, int(t))
    return x


@pytest.mark.parametrize(("prediction", "clamp"), [("eps", 0.0), ("eps", 3.0), ("v", 0.0), ("v", 3.0)])
def test_the_definition_matches_each_tokens_own_chain(prediction: str, clamp: float) -> None:
    """Rows of three chains, guided and not, together in the reference loop and each by itself."""
    head, lengths, guided = make_head(prediction), (9, 5, 1), [0, 2, 3]
    rows, z, z_uncond = make_rows(head, 6, guided, [0, 0, 1, 1, 2, 2])
    found = head_loop_ref(HeadWeights.from_head(head), rows, make_chains(head, lengths), prediction, clamp)
    for i in range(6):
        null = z_uncond[guided.index(i)][None] if i in guided else None
        alone = sample_one(head, rows, i, z[i : i + 1], null, lengths[int(rows.chain[i])], prediction, clamp)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("count", "guided"), [(1, []), (1, [0]), (7, [1, 5]), (40, list(range(40)))])
def test_the_torch_path_matches_the_definition(prediction: str, count: int, guided: list[int]) -> None:
    """They agree in float32. 40 rows of 30 steps exceed one hoisted product, so chunks and their order are covered."""
    head = make_head(prediction)
    chains = make_chains(head, (30, 4))
    rows, _, _ = make_rows(head, count, guided, [0] * (count - count // 2) + [1] * (count // 2))
    weights = HeadWeights.from_head(head)
    expected = head_loop_ref(weights, rows, chains, prediction, 3.0)
    found = TorchHead(weights, torch.float32)(rows, chains, prediction, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_flow_starts_from_noise_times_the_temperature() -> None:
    """On the torch path too, and with chains that were stacked; a chain that adds noise starts from unit noise."""
    head = make_head("flow")
    rows, _, _ = make_rows(head, 3, [1], [0, 0, 1])
    chains = stack_chains([make_chains(head, (5,)), make_chains(head, (2,))])
    unit = initial_noise(rows, dataclasses.replace(chains, flow=False), 6)
    torch.testing.assert_close(initial_noise(rows, chains, 6), rows.temperature[:, None] * unit)
    assert not make_chains(make_head("v"), (5,)).flow
    weights = HeadWeights.from_head(head)
    expected = head_loop_ref(weights, rows, chains, "v", 0.0)
    torch.testing.assert_close(
        TorchHead(weights, torch.float32)(rows, chains, "v", 0.0), expected, rtol=1e-4, atol=1e-4
    )
    cold = dataclasses.replace(rows, temperature=torch.full((3,), 0.1))
    assert (head_loop_ref(weights, cold, chains, "v", 0.0) - expected).abs().max() > 0.1


def test_bfloat16_is_close_and_independent_of_other_rows() -> None:
    """A token alone and among 30 others. The bound is loose, for a rounding that falls the other way; on most machines
    the two are identical to the bit."""
    head = make_head("v", width=64)
    chains = make_chains(head, (12,))
    rows, _, _ = make_rows(head, 31, [], [0] * 31)
    weights = HeadWeights.from_head(head)
    exact = head_loop_ref(weights, rows, chains, "v", 3.0)
    loop = TorchHead(weights, torch.bfloat16)
    found = loop(rows, chains, "v", 3.0)
    assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()
    names = [f.name for f in dataclasses.fields(rows) if f.name not in ("guided", "host")]
    one = dataclasses.replace(rows, **{name: getattr(rows, name)[3:4] for name in names})
    assert (loop(one, chains, "v", 3.0) - found[3:4]).abs().max() < 0.05


@pytest.mark.parametrize("guided", [[], [0, 2, 5]])
def test_the_first_step_is_float32_where_it_magnifies_errors(guided: list[int]) -> None:
    """In bfloat16 throughout, eps was off by 1e-3 at t = 999, where x0 is eps / 5e-5: x was off by 0.3 after the first
    of 100 steps, and by more than 2 with the 2 and 3 steps here. Some rows start while others run."""
    head = make_head("eps", width=64)
    chains = make_chains(head, (3, 2))
    rows, _, _ = make_rows(head, 6, guided, [0, 0, 0, 1, 1, 1])
    weights = HeadWeights.from_head(head)
    exact = head_loop_ref(weights, rows, chains, "eps", 0.0)
    found = TorchHead(weights, torch.bfloat16)(rows, chains, "eps", 0.0)
    assert (found - exact).abs().max() < 2


def test_unsorted_rows_are_rejected() -> None:
    head = make_head("v")
    rows, _, _ = make_rows(head, 2, [], [1, 0])
    with pytest.raises(ValueError, match="most steps first"):
        head_loop_ref(HeadWeights.from_head(head), rows, make_chains(head, (9, 5)), "v", 0.0)


@pytest.mark.parametrize("activation", ["", "silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_packed_linear_is_linear(activation: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(48, 40, generator=generator) / 7, torch.randn(48, generator=generator)
    x = torch.randn(rows, 40, generator=generator)
    expected = linear_ref(x, weight, bias, activation)
    torch.testing.assert_close(PackedLinear(weight, bias, torch.float32, activation)(x), expected, rtol=1e-5, atol=1e-5)
    found = PackedLinear(weight, bias, torch.bfloat16, activation)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.03)


def test_stacked_chains_are_the_chains_made_together() -> None:
    head = make_head("eps")
    together, stacked = make_chains(head, (9, 4, 1)), stack_chains([make_chains(head, (n,)) for n in (9, 4, 1)])
    for name in ("steps", "timesteps", "coefficients"):
        assert torch.equal(getattr(together, name), getattr(stacked, name))
    for row, count in enumerate((9, 4, 1)):  # beyond its count a chain's time embeddings are never read
        torch.testing.assert_close(together.times[row, :count], stacked.times[row, :count])


def test_heads_of_mar_are_read_too() -> None:
    head = DiffusionHead(MarConfig(width=32, heads=2, head_width=24, head_depth=2))
    weights = HeadWeights.from_head(head)
    assert weights.out.shape == (32, 24) and weights.modulation.shape == (2, 72, 24)


def test_chains_hold_each_schedule_from_its_end() -> None:
    chains: Chains = make_chains(make_head("v"), (4, 2))
    assert chains.steps.tolist() == [4, 2] and chains.timesteps.tolist() == [[0, 333, 666, 999], [0, 999, 0, 0]]
    assert chains.coefficients[:, 0, -1].tolist() == [0.0, 0.0] and chains.coefficients[0, 1:, -1].tolist() == [1.0] * 3
