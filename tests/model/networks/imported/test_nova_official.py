"""NOVA against the released code, given a clone of it: pytest --nova-repo PATH tests/model/networks/imported -s

The clone needs scipy and einops. It draws order and noise from a generator; here both are replaced by ours, and so are
the tokens per step, whose rounding differs by at most one token.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.checkpoint import Checkpoint, load_checkpoint
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
from model.networks.factory import build_model
from model.networks.imported.nova import Nova, NovaBackbone, NovaContext, grid_sines
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
        "prediction_type": "v_prediction", "variance_type": "fixed_large", "timestep_spacing": "leading",
        "steps_offset": 1,
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
    """The released modules, with encoders of small sizes in their registry."""
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

        sizes = {"embed_dim": plain.WIDTH, "num_heads": plain.HEADS}
        nova.VIDEO_ENCODERS.register("vit_small", nova.video_encoder, depth=plain.CONTEXT_DEPTH, **sizes)
        nova.IMAGE_ENCODERS.register("vit_small", nova.image_encoder, depth=plain.DEPTH, **sizes)
        head = {"depth": plain.HEAD_DEPTH, "embed_dim": plain.HEAD_WIDTH}
        nova.IMAGE_DECODERS.register("mlp_small", nova.image_decoder, **head)
        yield SimpleNamespace(
            Transformer=nova.NOVATransformer3DModel, Pipeline=NOVAPipeline, Autoencoder=AutoencoderKL,
            Phi=PhiEncoderModel, flow=scheduling_cfm, ddpm=scheduling_ddpm,
        )  # fmt: skip
        for name in [name for name in sys.modules if name.split(".")[0] == "diffnext"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain.random_folder(tmp_path_factory.mktemp("nova") / "official", plain.FLOW, state(), GRID)


@pytest.fixture(scope="module")
def official(repo: SimpleNamespace) -> Any:
    """A small released model that takes the random weights under its own names, all of them."""
    model = repo.Transformer(
        image_dim=4, image_size=[16 * GRID] * 2, image_stride=8, text_token_dim=plain.TEXT,
        text_token_len=plain.TEXT_LENGTH, image_base_size=[GRID] * 2, video_base_size=[1, GRID // 2, GRID // 2],
        arch=["vit_small", "vit_small", "mlp_small"],
    )  # fmt: skip
    model.load_state_dict(state())
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Checkpoint:
    import_weights(folder, folder.parent / "ours", options=Options(heads=plain.HEADS, report=lambda line: None))
    return load_checkpoint(folder.parent / "ours")


def latents_of(tokens: Tensor) -> Tensor:
    """(B, N, 16) in our layout -> (B, 4, 2g, 2g), which both codes agree on."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (GRID, GRID)), 2)


def tokens_of(latents: Tensor) -> Tensor:
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def _report(what: str, error: float, limit: float) -> None:
    print(f"\n{what}: {error:.1e} (limit {limit:.0e})")
    assert error < limit


def _context(official: Any, states: list[Tensor]) -> Tensor:
    """What generate_video computes ahead of the first step, for images."""
    text = official.text_embed(states)
    time = official.video_pos_embed.get_time_embed(1)
    start = official.mask_embed.bos_token.expand(len(states), (GRID // 2) ** 2, -1)
    return official.video_encoder(official.video_pos_embed(start + time[0]), text)


@torch.no_grad()
def test_one_forward(official: Any, ours: Checkpoint) -> None:
    """The context of three prompts, z from 0 to 63 known tokens, and the head at fractional times."""
    backbone = ours.model.backbone
    assert isinstance(backbone, NovaBackbone)
    states = [torch.randn(count, plain.TEXT) for count in (0, 3, 8)]
    expected = _context(official, states)
    context = NovaContext.stack([backbone.encode_text(each[None]) for each in states])
    _report("context", apart(context.context, expected), 1e-5)
    tokens, order = torch.randn(3, TOKENS, 16), random_order(torch.arange(3), TOKENS)
    for count in (0, 1, 20, 63):
        known = torch.zeros(3, TOKENS).scatter(1, order[:, :count], 1.0)
        official.mask_embed.mask = 1 - known[..., None]
        embedded = official.mask_embed(official.image_encoder.patch_embed(latents_of(tokens)))
        z = official.image_encoder(embedded, expected, order[:, :count, None])
        _report(f"z with {count} known", apart(backbone(tokens, known.bool(), context), z), 1e-5)
    x, z = torch.randn(3, TOKENS, 16), torch.randn(3, TOKENS, plain.WIDTH)
    for time in (0.0, 41.625, 999.0):
        out = official.image_decoder(latents_of(x), torch.full((3,), time), z)
        out = tokens_of(official.image_encoder.patch_embed.unpatchify(out))
        found = ours.model.diffusion_head(x.flatten(0, 1), torch.full((3 * TOKENS,), time), z.flatten(0, 1))
        _report(f"head at {time:g}", apart(found, out.flatten(0, 1)), 1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_one_forward_at_the_published_size(repo: SimpleNamespace) -> None:
    """d48w1024 at 512 px in the released class's own random weights: every name, 16 heads, 100 of 1024 tokens known."""
    torch.manual_seed(0)
    config = NOVA_PRESETS["nova-d48w1024-sd512"]
    official = repo.Transformer(
        image_dim=4, image_size=[512, 512], image_stride=8, text_token_dim=2560, text_token_len=256,
        image_base_size=[32, 32], video_base_size=[1, 16, 16], arch=["vit_d16w1024", "vit_d32w1024", "mlp_d6w1024"],
    ).eval()  # fmt: skip
    assert HEADS[config.width] == official.image_encoder.blocks[0].attn.num_heads == config.heads
    with torch.device("meta"):
        ours = build_model(config)
    assert isinstance(ours, Nova)
    ours.to_empty(device="cpu")
    for name, grid in (("context_positions", 16), ("positions", 32)):
        setattr(ours.backbone, name, grid_sines(grid, config.width))
    copy_weights(ours, ForeignWeights(Path("official"), official.state_dict()))
    time = official.video_pos_embed.get_time_embed(1)
    start = official.video_pos_embed(official.mask_embed.bos_token.expand(1, 256, -1) + time[0])
    states = torch.randn(30, 2560)
    context = official.video_encoder(start, official.text_embed([states]))
    found = ours.backbone.encode_text(states[None])
    _report("context of d48w1024", apart(found.context, context), 1e-5)
    tokens, order = torch.randn(1, 1024, 16), random_order(torch.tensor([3]), 1024)
    known = torch.zeros(1, 1024).scatter(1, order[:, :100], 1.0)
    official.mask_embed.mask = 1 - known[..., None]
    latents = F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (32, 32)), 2)
    embedded = official.mask_embed(official.image_encoder.patch_embed(latents))
    z = official.image_encoder(embedded, context, order[:, :100, None])
    _report("z of d48w1024", apart(ours.backbone(tokens, known.bool(), found), z), 1e-5)
    out = official.image_decoder(latents, torch.tensor([500.0]), z)
    out = F.pixel_unshuffle(official.image_encoder.patch_embed.unpatchify(out), 2).flatten(2).transpose(1, 2)
    head = ours.diffusion_head(tokens[0], torch.full((1024,), 500.0), z[0])
    _report("head of d48w1024", apart(head, out[0]), 1e-5)


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


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("eps", [True, False])
def test_ddpm_schedule(repo: SimpleNamespace, variance: Any, eps: bool) -> None:
    """The step of every chain as the linear function that it is, of noisy token, prediction and noise."""
    worst = 0.0
    choices = product(("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), ("leading", "trailing", "linspace"))
    for betas, spacing in choices:
        config: Any = {"beta_schedule": betas, "timestep_spacing": spacing, "variance_type": variance}
        prediction = "epsilon" if eps else "v_prediction"
        scheduler = repo.ddpm.DDPMScheduler(prediction_type=prediction, clip_sample=False, **config)
        for count in (1, 2, 25, 100, 250):
            scheduler.set_timesteps(count)
            ours = ddpm_schedule(count, DdpmConfig(**config), eps)
            assert ours.timesteps.flip(0).tolist() == scheduler.timesteps.tolist()
            for i, t in enumerate(ours.timesteps.tolist()):
                x0 = torch.stack([ours.sqrt_alpha_bar[i], -ours.sqrt_one_minus[i]])
                found = ours.mean_x0[i] * x0 + torch.stack([ours.mean_xt[i], torch.tensor(0.0)])
                noise = (0.5 * ours.log_variance[i]).exp() * ours.noisy[i]
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(repo.ddpm, "randn_tensor", lambda shape, **_: torch.zeros(shape))
                    zero, one = torch.zeros(1), torch.ones(1)
                    parts = [scheduler.step(out, t, x).prev_sample for x, out in ((one, zero), (zero, one))]
                    patch.setattr(repo.ddpm, "randn_tensor", lambda shape, **_: torch.ones(shape))
                    parts.append(scheduler.step(zero, t, zero).prev_sample)
                expected = torch.cat(parts)
                worst = max(worst, apart(torch.stack([*found, noise]), expected))
    _report(f"DDPM schedule, {prediction}, {variance}", worst, 1e-4)


def _fed_with_our_noise(
    repo: SimpleNamespace, pipeline: Any, order: Tensor, patch: pytest.MonkeyPatch, steps: int
) -> None:
    """Make the pipeline decode in our order, with our counts of tokens and our noise."""
    everywhere = torch.arange(TOKENS).repeat(len(SEEDS))
    seeds = SEEDS.repeat_interleave(TOKENS)
    transformer, scheduler, now = pipeline.transformer, pipeline.scheduler, [0]

    def noise(purpose: int, t: int) -> Tensor:
        drawn = normal_ref(seeds, purpose, everywhere, torch.full_like(seeds, t), 16)
        return latents_of(drawn.view(len(SEEDS), TOKENS, 16))

    def step(model_output: Tensor, t: Any, x: Tensor, generator: Any = None) -> Any:
        now[0] = int(t)
        return original_step(model_output, t, x, generator=generator)

    def pred_mask(count: int) -> Any:
        transformer.mask_embed.pred_ids = order.flip(1)[..., None]  # theirs walks from the beginning
        return original_mask(count)

    def counts(inputs: dict[str, Any]) -> None:
        ours = np.array(tokens_per_step(steps, TOKENS))
        assert np.abs(np.cumsum(ours) - np.cumsum(inputs["num_preds"])).max() <= 1
        inputs["num_preds"] = ours

    original_step, original_mask = scheduler.step, transformer.mask_embed.get_pred_mask
    fill: Callable[..., Tensor] = lambda self, generator=None: self.copy_(noise(INITIAL, TRAIN_STEPS))  # noqa: E731
    patch.setattr(torch.Tensor, "normal_", fill)
    patch.setattr(repo.ddpm, "randn_tensor", lambda shape, **_: noise(STEP, now[0]))
    patch.setattr(scheduler, "step", step)
    patch.setattr(transformer.mask_embed, "get_pred_mask", pred_mask)
    patch.setattr(transformer, "pipeline_preprocess", counts)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_whole_pipeline(
    repo: SimpleNamespace, official: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two prompts to pixels: the pipeline with its own Phi and autoencoder; ours by the definition and the engine."""
    from transformers import AutoTokenizer

    scheduler = SCHEDULERS[name]
    source = plain.random_folder(tmp_path / "official", scheduler, state(), GRID)
    import_weights(source, tmp_path / "ours", options=Options(heads=plain.HEADS, report=lambda line: None))
    checkpoint = load_checkpoint(tmp_path / "ours")
    module = repo.flow if name == "flow" else repo.ddpm
    words = AutoTokenizer.from_pretrained(source / "tokenizer")
    words.pad_token = words.eos_token
    phi, vae = repo.Phi.from_pretrained(source / "text_encoder"), repo.Autoencoder.from_pretrained(source / "vae")
    for key, value in phi.config.rope_parameters.items():  # attributes of their own before transformers 5
        setattr(phi.config, key, value)
    pipeline = repo.Pipeline(
        transformer=official, text_encoder=phi.eval(), tokenizer=words, vae=vae.eval(),
        scheduler=getattr(module, scheduler["_class_name"]).from_config(scheduler),
    )  # fmt: skip
    steps, order = 9, random_order(SEEDS, TOKENS)
    with monkeypatch.context() as patch:
        _fed_with_our_noise(repo, pipeline, order, patch, steps)
        latents = pipeline(
            PROMPTS, negative_prompt="blue", num_inference_steps=steps, num_diffusion_steps=25, guidance_scale=5,
            disable_progress_bar=True, output_type="latent",
        ).frames[:, :, 0]  # fmt: skip
    conditioner = build_conditioner(checkpoint.model, checkpoint.about)
    condition = NovaContext.stack([conditioner(prompt) for prompt in PROMPTS])
    drawn = generate(checkpoint.model, condition, conditioner("blue"), SEEDS, Sampling(steps, 25, 5.0))
    _report(f"{name}: latents by the definition", apart(drawn, tokens_of(latents)), 1e-4)
    engine = Engine(checkpoint.model, conditioner, 2)
    asks = [
        row_request(prompt, int(seed), steps, 25, 5.0, negative_prompt="blue")
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    decoded = torch.stack([run_alone(engine, ask) for ask in asks])
    _report(f"{name}: latents by the engine", apart(decoded, tokens_of(latents)), 1e-4)
    with torch.no_grad():
        pixels = pipeline.image_processor.decode_latents(vae, latents.clone())
        found = checkpoint.tokenizer.decode(decoded)
    _report(f"{name}: pixels", apart(found, pixels), 1e-4)
