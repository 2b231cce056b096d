"""MAR against the released code, given a clone of it: pytest --mar-repo PATH tests/model -s

The clone needs timm (0.9.12 in its own environment file) and scipy. It calls CUDA by name and draws noise from global
generators; here `.cuda()` does nothing, and order and noise are replaced by ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fluid_kernels.head_loop import TRAIN_STEPS
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.config import KlConfig
from model.conversion.import_mar import read_kl, read_mar
from model.diffusion import kept_timesteps, make_schedule
from model.inference.generate import generate
from model.inference.orders import masked_after, random_order
from model.inference.requests import Sampling
from model.networks.mar import ClassContext, Mar
from model.presets import MAR_PRESETS
from tests.model.networks.test_mar import apart

GRID, CHANNELS = 8, 16
SEEDS, LABELS = torch.tensor([11, 12, 13]), torch.tensor([207, 1, 999])


@pytest.fixture(scope="module")
def repo(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The released modules, with `.cuda()` disabled."""
    path: Path | None = request.config.getoption("--mar-repo")
    if path is None:
        pytest.skip("give a clone of LTH14/mar: --mar-repo PATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        patch.setattr(torch.Tensor, "cuda", lambda self: self)
        from diffusion import create_diffusion
        from models import mar, vae

        yield SimpleNamespace(mar=mar, vae=vae, create_diffusion=create_diffusion)
        for name in [name for name in sys.modules if name.split(".")[0] in ("models", "diffusion")]:
            del sys.modules[name]


def _alive(model: nn.Module) -> nn.Module:
    """The model with values in its zero-initialised parts, which would make any two models agree."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.5 * value.shape[-1] ** -0.5
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair(repo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Mar]:
    """A small released model with random weights, and ours imported from its file."""
    torch.manual_seed(0)
    official = _alive(repo.mar.MAR(
        img_size=16 * GRID, encoder_embed_dim=96, encoder_depth=3, encoder_num_heads=4, decoder_embed_dim=96,
        decoder_depth=3, decoder_num_heads=4, norm_layer=partial(nn.LayerNorm, eps=1e-6), diffloss_d=3, diffloss_w=64,
        num_sampling_steps="25",
    ))  # fmt: skip
    return official, _imported(official, tmp_path_factory.mktemp("official") / "checkpoint-last.pth", 4)


def _imported(official: nn.Module, file: Path, heads: int | None) -> Mar:
    torch.save({"model": official.state_dict(), "model_ema": official.state_dict()}, file)
    return read_mar(file, KlConfig(), heads).eval().requires_grad_(False)


def _known(rows: int, count: int, tokens: int) -> Tensor:
    order = random_order(torch.arange(rows), tokens)
    return torch.zeros(rows, tokens).scatter(1, order[:, :count], 1.0).bool()


def _report(what: str, error: float, limit: float) -> None:
    print(f"\n{what}: {error:.1e} (limit {limit:.0e})")
    assert error < limit


@pytest.mark.parametrize("count", [0, 1, 20, 63])
def test_z(pair: tuple[Any, Mar], count: int) -> None:
    official, ours = pair
    tokens, known = torch.randn(3, GRID**2, CHANNELS), _known(3, count, GRID**2)
    mask = (~known).float()
    z = official.forward_mae_decoder(
        official.forward_mae_encoder(tokens, mask, official.class_emb(LABELS)), mask
    )  # (3, N, D)
    condition = ClassContext.stack([ours.backbone.encode_class(int(label)) for label in LABELS])
    _report(f"z with {count} known", apart(ours.backbone(tokens, known, condition), z), 1e-5)


def test_z_at_the_size_of_mar_b(repo: SimpleNamespace, tmp_path: Path) -> None:
    """Built by the released function; the number of attention heads is found from the shapes."""
    torch.manual_seed(1)
    official = _alive(repo.mar.mar_base(diffloss_d=6, diffloss_w=1024))
    ours = _imported(official, tmp_path / "mar-b.pth", None)
    assert ours.config == MAR_PRESETS["mar-b"]
    tokens, known = torch.randn(1, 256, CHANNELS), _known(1, 100, 256)
    mask, label = (~known).float(), LABELS[:1]
    z = official.forward_mae_decoder(official.forward_mae_encoder(tokens, mask, official.class_emb(label)), mask)
    found = ours.backbone(tokens, known, ours.backbone.encode_class(int(label[0])))
    _report("z of MAR-B", apart(found, z), 1e-5)
    x, t = torch.randn(5, CHANNELS), torch.tensor([0, 10, 500, 989, 999])
    expected = official.diffloss.net(x, t, z[0, :5])
    _report("head of MAR-B", apart(ours.head(x, t, z[0, :5]), expected), 1e-6)


def test_head(pair: tuple[Any, Mar]) -> None:
    official, ours = pair
    x, z, t = torch.randn(64, CHANNELS), torch.randn(64, 96), torch.randint(0, 1000, (64,))
    _report("head", apart(ours.head(x, t, z), official.diffloss.net(x, t, z)), 1e-6)


def test_schedule(repo: SimpleNamespace) -> None:
    """Kept timesteps of every count from 2; coefficients of some."""
    from diffusion.respace import space_timesteps

    for count in range(2, 1001):
        assert kept_timesteps(count) == sorted(space_timesteps(1000, str(count))), count
    worst = 0.0
    for count in (5, 10, 25, 50, 100, 250, 1000):
        theirs, ours = repo.create_diffusion(str(count), "cosine"), make_schedule(count)
        for mine, reference in {
            "sqrt_alpha_bar": theirs.sqrt_alphas_cumprod, "sqrt_one_minus": theirs.sqrt_one_minus_alphas_cumprod,
            "mean_x0": theirs.posterior_mean_coef1, "mean_xt": theirs.posterior_mean_coef2,
            "log_variance": theirs.posterior_log_variance_clipped,
        }.items():  # fmt: skip
            expected = torch.from_numpy(reference)
            worst = max(worst, ((getattr(ours, mine) - expected).abs() / expected.abs().clamp_min(1e-12)).max().item())
        worst = max(worst, (ours.log_beta.exp() / torch.from_numpy(theirs.betas) - 1).abs().max().item())
    _report("coefficients of the schedule", worst, 1e-6)


class _Noise:
    """Replaces torch.randn and torch.randn_like: our noise, in the order in which the released code asks for it."""

    def __init__(self, order: Tensor, steps: int, diffusion_steps: int, guided: bool):
        self.values = self._all(order, steps, diffusion_steps, guided)

    def _all(self, order: Tensor, steps: int, diffusion_steps: int, guided: bool) -> Iterator[Tensor]:
        total, kept = order.shape[1], kept_timesteps(diffusion_steps)
        for step in range(steps):
            chosen = order[:, masked_after(step, steps, total) : masked_after(step - 1, steps, total)]
            place = chosen.sort(1).values  # theirs packs tokens by row, then by position
            seed = SEEDS[:, None].expand_as(place).flatten()
            place = place.flatten()
            yield normal_ref(seed, INITIAL, place, torch.full_like(seed, TRAIN_STEPS), CHANNELS)
            for t in reversed(kept):
                noise = normal_ref(seed, STEP, place, torch.full_like(seed, t), CHANNELS)
                yield torch.cat([noise, noise]) if guided else noise

    def __call__(self, *shape: Any, **_: Any) -> Tensor:
        drawn = next(self.values)
        asked = tuple(shape[0].shape) if isinstance(shape[0], Tensor) else tuple(shape)
        assert tuple(drawn.shape) == asked
        return drawn


@pytest.mark.parametrize(
    ("guidance", "schedule", "temperature"),
    [(g, s, t) for g, s in ((1.0, "constant"), (3.0, "linear"), (3.0, "constant")) for t in (0.9, 1.0)],
)
def test_the_whole_loop(
    pair: tuple[Any, Mar], monkeypatch: pytest.MonkeyPatch, guidance: float, schedule: str, temperature: float
) -> None:
    official, ours = pair
    steps, order = 16, random_order(SEEDS, GRID**2)
    noise = _Noise(order, steps, 25, guidance != 1)
    with monkeypatch.context() as patch:
        patch.setattr(official, "sample_orders", lambda bsz: order)
        patch.setattr(torch, "randn", noise)
        patch.setattr(torch, "randn_like", noise)
        expected = official.sample_tokens(3, steps, guidance, schedule, LABELS, temperature)  # (3, C, g, g)
    condition = ClassContext.stack([ours.backbone.encode_class(int(label)) for label in LABELS])
    settings = Sampling(steps, 25, guidance, schedule, temperature)
    drawn = generate(ours, condition, ours.backbone.encode_class(None), SEEDS, settings)
    error = apart(drawn, expected.flatten(2).transpose(1, 2))
    _report(f"loop, guidance {guidance} {schedule}, temperature {temperature}", error, 1e-4)


def test_the_autoencoder(repo: SimpleNamespace, tmp_path: Path) -> None:
    """kl16 at its full size with random weights: encoder and decoder."""
    torch.manual_seed(2)
    official = repo.vae.AutoencoderKL(embed_dim=16, ch_mult=(1, 1, 2, 2, 4)).eval().requires_grad_(False)
    torch.save({"model": official.state_dict()}, tmp_path / "kl16.ckpt")
    ours = read_kl(tmp_path / "kl16.ckpt").eval().requires_grad_(False)
    assert ours.config == KlConfig()
    pixels, z = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(1, 16, 4, 4)
    tokens = ours.encode(pixels).transpose(1, 2).unflatten(2, (4, 4)) / ours.config.scale
    _report("autoencoder, encoder", apart(tokens, official.encode(pixels).mode()), 1e-5)
    decoded = ours.decode(z.flatten(2).transpose(1, 2) * ours.config.scale)
    _report("autoencoder, decoder", apart(decoded, official.decode(z)), 1e-5)
