"""aMUSEd imported from its pipeline folder against diffusers' own classes, with the same noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluid_kernels.philox import CATEGORY, CHOICE, gumbel_ref
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.config import ConfigError
from model.conversion.discrete import import_amused
from model.conversion.options import Options
from model.inference.generate import generate
from model.inference.prompts import build_conditioner
from model.inference.requests import Sampling
from model.networks.imported.encoded_text import EncodedText
from tests.model.conversion.published import CLIP_POOLED, CLIP_WIDTH, CODES, save_amused

pytest.importorskip("diffusers")
SEED, STEPS, GUIDANCE = 7, 12, 10.0
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["full", "halved"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Checkpoint, Path]:
    """diffusers' transformer, its import, and the pipeline folder. With half of the grid as with all of it."""
    folder = tmp_path_factory.mktemp("amused")
    theirs = save_amused(folder / "source", halved=request.param)
    return theirs, converted(folder / "source", folder / "out"), folder / "source"


def converted(source: Path, target: Path) -> Checkpoint:
    target.mkdir()
    import_amused.convert(source, target, Options(report=lambda line: None))
    return load_checkpoint(target)


def test_one_pass_equals_diffusers(pair: tuple[Any, Checkpoint, Path]) -> None:
    theirs, ours, _ = pair
    model = ours.model
    torch.manual_seed(0)
    tokens, known = torch.randint(CODES, (3, 16)), torch.rand(3, 16) < 0.5
    text = EncodedText(torch.randn(3, 77, CLIP_WIDTH), torch.randn(3, CLIP_POOLED))
    ids = torch.where(known, tokens, 63).view(3, 4, 4)
    with torch.no_grad():
        wanted = theirs(ids, text.states, text.pooled, torch.tensor([[8.0, 8, 0, 0, 6]] * 3)).flatten(2).transpose(1, 2)
        found = model.head(model.backbone(tokens, known, text), model.table)
    assert (found - wanted).norm() / wanted.norm() < 1e-5


class SameNoise:
    """diffusers' two draws of a step, from our noise."""

    def __init__(self, patch: pytest.MonkeyPatch, tokens: int):
        self.step, self.places = -1, torch.arange(tokens)
        patch.setattr(torch, "multinomial", self.multinomial)
        patch.setattr("diffusers.schedulers.scheduling_amused.gumbel_noise", self.gumbel)

    def multinomial(self, shares: Tensor, count: int, generator: None) -> Tensor:
        self.step += 1
        noise = gumbel_ref(torch.tensor(SEED), CATEGORY, self.places, torch.tensor(self.step), shares.shape[1])
        return (shares.log() + noise).argmax(-1)[:, None]

    def gumbel(self, like: Tensor, generator: None) -> Tensor:
        noise = gumbel_ref(torch.tensor(SEED), CHOICE, self.places, torch.tensor(self.step), 1)
        return noise[:, 0][None].expand_as(like)


def _ours(checkpoint: Checkpoint, prompt: str, negative: str) -> Tensor:
    conditioner = build_conditioner(checkpoint.model, checkpoint.about, checkpoint.folder)
    sampling = Sampling(STEPS, 1, GUIDANCE, order="confidence")
    return generate(checkpoint.model, conditioner(prompt), conditioner(negative), torch.tensor([SEED]), sampling)


def test_a_whole_image_has_the_same_ids_as_the_scheduler(
    pair: tuple[Any, Checkpoint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps include that at cos π/3, where float32 masks one token fewer than the formula."""
    from diffusers.schedulers.scheduling_amused import AmusedScheduler

    theirs, ours, _ = pair
    expected = _ours(ours, "a cat", "rain")
    encoder = build_conditioner(ours.model, ours.about, ours.folder)
    text = EncodedText.stack([encoder("rain"), encoder("a cat")])  # type: ignore[list-item]
    scheduler = AmusedScheduler(mask_token_id=63)
    scheduler.set_timesteps(STEPS)
    SameNoise(monkeypatch, 16)
    ids, micro = torch.full((1, 4, 4), 63), torch.tensor([[8.0, 8, 0, 0, 6]] * 2)
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            uncond, cond = theirs(ids.repeat(2, 1, 1), text.states, text.pooled, micro).chunk(2)
        ids = scheduler.step(uncond + GUIDANCE * (cond - uncond), timestep, ids).prev_sample
    assert ids.flatten().tolist() == expected[0].tolist() and len(expected.unique()) > 4


@pytest.mark.slow
def test_a_whole_image_equals_the_pipelines(
    pair: tuple[Any, Checkpoint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' AmusedPipeline from the same folder: the same ids, and the same pixels."""
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline

    _, ours, source = pair
    pipeline = AmusedPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)
    SameNoise(monkeypatch, 16)
    sizes: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": "rain"}
    found = pipeline("a cat", output_type="latent", **sizes).images
    monkeypatch.undo()
    ids = _ours(ours, "a cat", "rain")
    assert found.flatten().tolist() == ids[0].tolist()
    with torch.no_grad():
        shape = (1, 4, 4, pipeline.vqvae.config.latent_channels)
        wanted = pipeline.vqvae.decode(found, force_not_quantize=True, shape=shape).sample
        torch.testing.assert_close(ours.tokenizer.decode(ids) / 2 + 0.5, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    save_amused(tmp_path / "source")
    yield tmp_path / "source"


def _edit(file: Path, **change: Any) -> None:
    raw = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_a_wrong_folder_is_named(source: Path, tmp_path: Path) -> None:
    """Each fault alone; names of keys and files are in the message."""
    weights, config = source / "transformer" / WEIGHTS, source / "transformer" / "config.json"
    whole, sizes = load_file(weights), config.read_text()
    key = "transformer_layers.1.ff.net.2.weight"
    faults: list[tuple[dict[str, Tensor], dict[str, Any], str]] = [
        ({k: v for k, v in whole.items() if k != key}, {}, r"'transformer_layers\.1\.ff\.net\.2\.weight' is missing"),
        ({**whole, key: torch.zeros(2, 3)}, {}, r"net\.2\.weight' has shape \(2, 3\), \(32, 48\) is expected"),
        ({**whole, "surprise": torch.zeros(1)}, {}, "'surprise' has no place"),
        (whole, {"use_bias": True}, "use_bias True is not supported"),
        (whole, {"novelty": 3}, "unknown key 'novelty'"),
        (whole, {"cond_embed_dim": 25}, r"'cond_embed\.linear_1\.weight' has shape"),
    ]
    for number, (state, change, message) in enumerate(faults):
        config.write_text(sizes)
        _edit(config, **change)
        save_file(state, weights)
        with pytest.raises((CheckpointError, ConfigError), match=message):
            converted(source, tmp_path / str(number))
    config.write_text(sizes)
    save_file(whole, weights)
    _edit(source / "text_encoder" / "config.json", projection_dim=25)
    with pytest.raises(CheckpointError, match="an embedding of 25; the model expects 16 and 24"):
        converted(source, tmp_path / "clip")
    (source / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json cannot be read"):
        converted(source, tmp_path / "scheduler")
