"""NOVA against the released code, given a clone of it: pytest --nova-repo PATH tests/model/networks/imported -s

The clone needs scipy and einops. It draws order and noise from a generator; here both are replaced by ours, and so are
the tokens per step, whose rounding differs by at most one token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.imported.nova import released_transformer
from fluid_kernels.head_loop import TRAIN_STEPS
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.checkpoint import load_checkpoint
from model.config import DdpmConfig
from model.conversion.foreign_weights import ForeignWeights
from model.conversion.import_nova import HEADS, copy_weights
from model.conversion.kinds import import_weights
from model.conversion.options import Options
from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.orders import random_order, tokens_per_step
from model.inference.prompts import build_conditioner
from model.inference.requests import Sampling
from model.networks.imported.nova import Nova, NovaContext
from model.presets import NOVA_PRESETS
from model.schedules import ddpm_schedule, linear_flow_schedule
from tests.model import nova_restated as plain
from tests.model.conftest import row_request, run_alone
from tests.model.networks.test_mar import apart

GRID, TOKENS = 8, 64
PROMPTS, SEEDS = ["a red apple", "blue blue a"], torch.tensor([11, 12])
SCHEDULERS = {
    "flow": plain.FLOW,
    "ddpm": plain.DDPM,
    "ddpm-v": {
        "_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "prediction_type": "v_prediction", "variance_type": "fixed_large", "steps_offset": 1,
    },
}  # fmt: skip


def state() -> plain.State:
    """Random weights whose head predicts a quarter as much.

    With all of it the cosine chain of eps magnifies rounding so much that the released code in float32 is 3e-3 from
    itself in float64 (and this one 2.5e-3).
    """
    found = plain.random_state()
    return found | {name: value / 4 for name, value in found.items() if name.startswith("image_decoder.head.")}


@pytest.fixture(scope="module")
def repo(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The released modules."""
    path: Path | None = request.config.getoption("--nova-repo")
    if path is None:
        pytest.skip("give a clone of baaivision/NOVA: --nova-repo PATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        from diffnext.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffnext.models.text_encoders.phi import PhiEncoderModel
        from diffnext.models.transformers import transformer_nova as nova
        from diffnext.pipelines import NOVAPipeline
        from diffnext.schedulers import scheduling_cfm, scheduling_ddpm

        yield SimpleNamespace(
            nova=nova, Pipeline=NOVAPipeline, Autoencoder=AutoencoderKL, Phi=PhiEncoderModel, flow=scheduling_cfm,
            ddpm=scheduling_ddpm,
        )  # fmt: skip
        for name in [name for name in sys.modules if name.split(".")[0] == "diffnext"]:
            del sys.modules[name]


def imported(folder: Path, scheduler: dict[str, Any] = plain.FLOW) -> tuple[Path, Path]:
    """A published folder and the checkpoint made of it."""
    source = plain.random_folder(folder / "official", scheduler, state(), GRID)
    import_weights(source, folder / "ours", options=Options(heads=plain.HEADS, report=lambda line: None))
    return source, folder / "ours"


@pytest.fixture(scope="module")
def pair(repo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Nova]:
    """A small released model that takes the random weights under its own names, all of them; and ours."""
    ours = load_checkpoint(imported(tmp_path_factory.mktemp("nova"))[1]).model
    assert isinstance(ours, Nova)
    official = released_transformer(ours.config)
    official.load_state_dict(state())
    return official, ours


def latents_of(tokens: Tensor) -> Tensor:
    """(B, N, 16) in our layout -> (B, 4, 2g, 2g), which both codes agree on."""
    grid = round(tokens.shape[1] ** 0.5)
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (grid, grid)), 2)


def tokens_of(latents: Tensor) -> Tensor:
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def _report(what: str, error: float, limit: float) -> None:
    print(f"\n{what}: {error:.1e} (limit {limit:.0e})")
    assert error < limit


@torch.no_grad()
def _compare(official: Any, ours: Nova, counts: tuple[int, ...]) -> None:
    """The context of three prompts, z with these numbers of known tokens, and the head at fractional times."""
    config, states = ours.config, [torch.randn(count, ours.config.text.dim) for count in (0, 3, 8)]
    # What generate_video computes ahead of the first step, for images.
    start = official.mask_embed.bos_token.expand(3, config.tokens // 4, -1) + official.video_pos_embed.get_time_embed(1)
    expected = official.video_encoder(official.video_pos_embed(start), official.text_embed(states))
    context = NovaContext.stack([ours.backbone.encode_text(each[None]) for each in states])
    _report("context", apart(context.context, expected), 1e-5)
    tokens, order = torch.randn(3, config.tokens, 16), random_order(torch.arange(3), config.tokens)
    for count in counts:
        known = torch.zeros(3, config.tokens).scatter(1, order[:, :count], 1.0)
        official.mask_embed.mask = 1 - known[..., None]
        embedded = official.mask_embed(official.image_encoder.patch_embed(latents_of(tokens)))
        z = official.image_encoder(embedded, expected, order[:, :count, None])
        _report(f"z with {count} known", apart(ours.backbone(tokens, known.bool(), context), z), 1e-5)
    official.mask_embed.mask = None
    for time in (0.0, 41.625, 999.0):
        out = official.image_decoder(latents_of(tokens), torch.full((3,), time), z)
        out = tokens_of(official.image_encoder.patch_embed.unpatchify(out))
        times = torch.full((3 * config.tokens,), time)
        found = ours.diffusion_head(tokens.flatten(0, 1), times, z.flatten(0, 1))
        _report(f"head at {time:g}", apart(found, out.flatten(0, 1)), 1e-5)


def test_one_forward(pair: tuple[Any, Nova]) -> None:
    _compare(*pair, (0, 1, 20, 63))


@pytest.mark.slow
def test_one_forward_at_a_published_size(repo: SimpleNamespace) -> None:
    """645.7 M parameters; and the attention heads of all three published widths."""
    config = NOVA_PRESETS["nova-d48w1024-sd512"]
    for width, heads in HEADS.items():
        assert repo.nova.IMAGE_ENCODERS.get(f"vit_d32w{width}").keywords["num_heads"] == heads
    official, ours = released_transformer(config), Nova(config).eval().requires_grad_(False)
    copy_weights(ours, ForeignWeights(Path("official"), official.state_dict()))
    _compare(official, ours, (100,))


def test_flow_schedule(repo: SimpleNamespace) -> None:
    worst = 0.0
    for count, shift in product((1, 2, 7, 25, 50, 100, 250), (1.0, 1.5, 3.0)):
        scheduler = repo.flow.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(count)
        ours = linear_flow_schedule(count, shift)
        assert ours.times is not None
        worst = max(worst, np.abs(ours.times.numpy()[::-1] - scheduler.timesteps).max() / 1000)
        # x + (next - t) v is mean_x0 (x - t v) + mean_xt x: as much of v, and all of x.
        change = np.diff(np.array(scheduler.sigmas))[::-1]
        worst = max(worst, np.abs(-(ours.mean_x0 * ours.sqrt_one_minus).numpy() - change).max())
        worst = max(worst, (ours.mean_x0 + ours.mean_xt - 1).abs().max().item())
    _report("flow schedule", worst, 1e-6)


@pytest.mark.parametrize("eps", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_schedule(repo: SimpleNamespace, variance: Any, eps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of every chain as the linear function that it is, of noisy token, prediction and noise."""
    worst, noise = 0.0, torch.zeros(1)
    monkeypatch.setattr(repo.ddpm, "randn_tensor", lambda shape, **_: noise.clone())
    betas, spacings = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), ("leading", "trailing", "linspace")
    for schedule, spacing in product(betas, spacings):
        config: Any = {"beta_schedule": schedule, "timestep_spacing": spacing, "variance_type": variance}
        scheduler = repo.ddpm.DDPMScheduler(prediction_type="epsilon" if eps else "v_prediction", **config)
        for count in (1, 2, 25, 100, 250):
            scheduler.set_timesteps(count)
            ours = ddpm_schedule(count, DdpmConfig(**config), eps)
            assert ours.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
            a, b = ours.mean_x0 * ours.sqrt_alpha_bar + ours.mean_xt, -ours.mean_x0 * ours.sqrt_one_minus
            found = torch.stack([a, b, (0.5 * ours.log_variance).exp() * ours.noisy], 1)  # (K, 3)
            for i, t in enumerate(ours.timesteps.tolist()):
                parts = []
                for unit in torch.eye(3):
                    x, out, noise = unit[:, None]
                    parts.append(scheduler.step(out, t, x).prev_sample)
                worst = max(worst, apart(found[i], torch.cat(parts)))
    _report(f"DDPM schedule, {'eps' if eps else 'v'}, {variance}", worst, 1e-4)


def _feed_our_noise(repo: SimpleNamespace, pipeline: Any, steps: int, patch: pytest.MonkeyPatch) -> None:
    """Make the pipeline decode in our order, with our counts of tokens and our noise."""
    everywhere, seeds = torch.arange(TOKENS).repeat(2), SEEDS.repeat_interleave(TOKENS)
    model, scheduler, now = pipeline.transformer, pipeline.scheduler, [0]
    original_step, original_mask = scheduler.step, model.mask_embed.get_pred_mask

    def noise(purpose: int, t: int) -> Tensor:
        return latents_of(normal_ref(seeds, purpose, everywhere, torch.full_like(seeds, t), 16).view(2, TOKENS, 16))

    def step(model_output: Tensor, t: Any, x: Tensor, generator: Any = None) -> Any:
        now[0] = int(t)
        return original_step(model_output, t, x, generator=generator)

    def pred_mask(count: int) -> Any:
        model.mask_embed.pred_ids = random_order(SEEDS, TOKENS).flip(1)[..., None]  # theirs walks from the beginning
        return original_mask(count)

    def counts(inputs: dict[str, Any]) -> None:
        ours = np.array(tokens_per_step(steps, TOKENS))
        assert np.abs(np.cumsum(ours) - np.cumsum(inputs["num_preds"])).max() <= 1
        inputs["num_preds"] = ours

    patch.setattr(torch.Tensor, "normal_", lambda self, generator: self.copy_(noise(INITIAL, TRAIN_STEPS)))
    patch.setattr(repo.ddpm, "randn_tensor", lambda shape, **_: noise(STEP, now[0]))
    patch.setattr(scheduler, "step", step)
    patch.setattr(model.mask_embed, "get_pred_mask", pred_mask)
    patch.setattr(model, "pipeline_preprocess", counts)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_whole_pipeline(
    repo: SimpleNamespace, pair: tuple[Any, Nova], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two prompts to pixels: the pipeline with its own Phi and autoencoder; ours by the definition and the engine."""
    from transformers import AutoTokenizer

    scheduler, steps, settings = SCHEDULERS[name], 9, (9, 25, 5.0)
    source, target = imported(tmp_path, scheduler)
    checkpoint = load_checkpoint(target)
    words = AutoTokenizer.from_pretrained(source / "tokenizer", pad_token="<|endoftext|>")
    phi, vae = repo.Phi.from_pretrained(source / "text_encoder"), repo.Autoencoder.from_pretrained(source / "vae")
    for key, value in phi.config.rope_parameters.items():  # attributes of their own before transformers 5
        setattr(phi.config, key, value)
    module = repo.flow if name == "flow" else repo.ddpm
    pipeline = repo.Pipeline(
        transformer=pair[0], text_encoder=phi.eval(), tokenizer=words, vae=vae.eval(),
        scheduler=getattr(module, scheduler["_class_name"]).from_config(scheduler),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        _feed_our_noise(repo, pipeline, steps, patch)
        latents = pipeline(
            PROMPTS, negative_prompt="blue", num_inference_steps=steps, num_diffusion_steps=25, guidance_scale=5,
            disable_progress_bar=True, output_type="latent",
        ).frames[:, :, 0]  # fmt: skip
    conditioner = build_conditioner(checkpoint.model, checkpoint.about)
    condition = NovaContext.stack([conditioner(prompt) for prompt in PROMPTS])
    defined = generate(checkpoint.model, condition, conditioner("blue"), SEEDS, Sampling(*settings))
    _report(f"{name}: latents by the definition", apart(defined, tokens_of(latents)), 1e-4)
    engine, asks = Engine(checkpoint.model, conditioner, 2), zip(PROMPTS, SEEDS.tolist(), strict=True)
    decoded = torch.stack(
        [run_alone(engine, row_request(prompt, seed, *settings, negative_prompt="blue")) for prompt, seed in asks]
    )
    _report(f"{name}: latents by the engine", apart(decoded, tokens_of(latents)), 1e-4)
    with torch.no_grad():
        pixels = pipeline.image_processor.decode_latents(vae, latents.clone())
        _report(f"{name}: pixels", apart(checkpoint.tokenizer.decode(decoded), pixels), 1e-4)
