"""Meissonic and Monetico imported from their pipeline folders against a restatement, with the same noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.conversion.discrete import import_amused, import_meissonic
from model.conversion.options import Options
from model.inference.generate import generate
from model.inference.prompts import build_conditioner
from model.inference.requests import Sampling
from model.networks.imported.encoded_text import EncodedText
from tests.model.conversion.published import CODES, save_meissonic
from tests.model.conversion.test_import_amused import SEED, SameNoise
from tests.model.meissonic_restated import State, logits

pytest.importorskip("diffusers")
STEPS, GUIDANCE = 6, 9.0


@pytest.fixture(scope="module", params=[False, True], ids=["monetico", "meissonic"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Checkpoint]:
    folder = tmp_path_factory.mktemp("meissonic")
    state = save_meissonic(folder / "source", request.param)
    assert import_meissonic.recognises(folder / "source") and not import_amused.recognises(folder / "source")
    (folder / "out").mkdir()
    import_meissonic.convert(folder / "source", folder / "out", Options(report=lambda line: None))
    return state, load_checkpoint(folder / "out")


def test_one_pass_equals_the_restatement(pair: tuple[State, Checkpoint]) -> None:
    """Rows at different steps, hence with different times."""
    state, ours = pair
    model, config = ours.model, ours.config
    torch.manual_seed(0)
    tokens, known = torch.randint(CODES, (2, config.tokens)), torch.rand(2, config.tokens) < 0.5
    text = EncodedText(torch.randn(2, 77, 16), torch.randn(2, 32))
    following = torch.tensor([47, 3])
    with torch.no_grad():
        found = model.head(model.backbone(tokens, known, text, following=following), model.table)
    for row in range(2):
        ids = torch.where(known[row], tokens[row], 63).view(config.grid, config.grid)
        wanted = logits(state, ids, text.states[row], text.pooled[row], int(following[row]), config.image_size)
        assert (found[row] - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("pair", [False], ids=["monetico"], indirect=True)
def test_a_whole_image_has_the_same_ids(pair: tuple[State, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler is aMUSEd's; the time counts down to 0."""
    from diffusers.schedulers.scheduling_amused import AmusedScheduler

    state, ours = pair
    config = ours.config
    encoder = build_conditioner(ours.model, ours.about, ours.folder)
    texts = [encoder("a cat"), encoder("rain")]
    seeds, sampling = torch.tensor([SEED]), Sampling(STEPS, 1, GUIDANCE, order="confidence")
    expected = generate(ours.model, *texts, seeds, sampling)
    scheduler = AmusedScheduler(mask_token_id=63)
    scheduler.set_timesteps(STEPS)
    SameNoise(monkeypatch, config.tokens)
    ids = torch.full((1, config.grid, config.grid), 63)
    for timestep in scheduler.timesteps:
        cond, uncond = (_one(state, ids[0], text, int(timestep), config.image_size) for text in texts)
        guided = (uncond + GUIDANCE * (cond - uncond)).T.view(1, CODES, config.grid, config.grid)
        ids = scheduler.step(guided, timestep, ids).prev_sample
    assert torch.equal(ids.flatten(), expected[0]) and len(expected.unique()) > 20


def _one(state: State, ids: Tensor, text: EncodedText, following: int, size: int) -> Tensor:
    return logits(state, ids, text.states[0], text.pooled[0], following, size)


def test_a_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = save_meissonic(tmp_path / "source", False)
    del state["single_transformer_blocks.1.attn.norm_k.weight"]
    save_file(state, tmp_path / "source" / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"'single_transformer_blocks\.1\.attn\.norm_k\.weight' is missing"):
        import_meissonic.convert(tmp_path / "source", tmp_path, Options(report=lambda line: None))
