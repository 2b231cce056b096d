"""LlamaGen imported from its files against a restatement, with the same noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fluid_kernels.philox import CATEGORY, gumbel_ref
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.conversion.discrete import import_llamagen
from model.conversion.options import Options
from model.inference.conditioners.captions import clean_caption
from model.inference.generate import generate
from model.inference.prompts import build_conditioner
from model.inference.requests import Sampling
from model.networks.text_encoder import build_text_encoder
from tests.model.conversion.published import save_llamagen
from tests.model.llamagen_restated import CODES, State, logits, random_state

pytest.importorskip("diffusers")
SEED, GRID, GUIDANCE, TOP_K = 7, 16, 7.5, 20


@pytest.fixture(scope="module")
def state() -> State:
    return random_state()


@pytest.fixture(scope="module")
def ours(state: State, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("llamagen")
    source = save_llamagen(folder, state)
    assert import_llamagen.recognises(source) and not import_llamagen.recognises(folder / "vq_ds16_t2i.pt")
    (folder / "out").mkdir()
    options = Options(report=lambda line: None, text=str(folder / "t5"), heads=2)
    import_llamagen.convert(source, folder / "out", options)
    return load_checkpoint(folder / "out")


def test_a_whole_image_has_the_same_ids(state: State, ours: Checkpoint) -> None:
    """Both halves are padded on the left to 120, as released; ours leave the padding out. The first 40 tokens."""
    conditioner = build_conditioner(ours.model, ours.about, ours.folder)
    length = conditioner.unconditional_length("A red cat")
    assert length == 4
    sampling = Sampling(GRID**2, 1, GUIDANCE, order="raster", top_k=TOP_K)
    seeds = torch.tensor([SEED])
    expected = generate(ours.model, conditioner("A red cat"), conditioner.unconditional(length), seeds, sampling)[0]

    states = build_text_encoder(ours.config.text).encode(["a red cat"])[0][0]  # type: ignore[attr-defined]  # (120, E)
    caption = torch.cat([torch.zeros(120 - length, 16), states[:length]])
    null = state["cls_embedding.uncond_embedding"]
    ids = torch.zeros(0, dtype=torch.int64)
    for position in range(40):
        cond, uncond = (logits(state, each, length, ids, GRID) for each in (caption, null))
        guided = uncond + GUIDANCE * (cond - uncond)
        guided[guided < guided.topk(TOP_K).values[-1]] = -torch.inf
        noise = gumbel_ref(torch.tensor(SEED), CATEGORY, torch.tensor(position), torch.tensor(0), CODES)
        ids = torch.cat([ids, (guided + noise).argmax()[None]])
    assert ids.tolist() == expected[:40].tolist() and len(ids.unique()) > 10


def test_the_last_logits_equal_the_restatement(state: State, ours: Checkpoint) -> None:
    """The whole grid, teacher-forced, so that every rotation by row and column is in it."""
    conditioner = build_conditioner(ours.model, ours.about, ours.folder)
    tokens = torch.randint(CODES, (1, GRID**2), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = ours.model.backbone(tokens, None, conditioner.unconditional(9))[0, -1]
        found = ours.model.head(z[None], ours.model.table)[0]
    wanted = logits(state, state["cls_embedding.uncond_embedding"], 9, tokens[0, :-1], GRID)
    assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_captions_are_cleaned() -> None:
    for text, wanted in (
        ("A blue Porsche 356 parked in front of a yellow brick wall.", None),
        ("Two cats, one dog - and a bird's nest!", None),
        ("see https://example.org/x?y=1 now", "see now"),
        ("A   «red»  <b>car</b> @someone #12 photo.jpg", 'a "red" car'),
        ("100% pure&amp;simple…  wow!!!", "100% pure;simple… wow!!!"),
    ):
        assert clean_caption(text) == (text.lower() if wanted is None else wanted)


def test_what_is_missing_is_named(state: State, tmp_path: Path) -> None:
    source = save_llamagen(tmp_path, {k: v for k, v in state.items() if k != "layers.1.attention.wo.weight"})
    with pytest.raises(CheckpointError, match=r"'layers\.1\.attention\.wo\.weight' is missing"):
        import_llamagen.convert(source, tmp_path, Options(report=lambda line: None, heads=2))
    with pytest.raises(CheckpointError, match="width 32 was never released; give the number of heads with --heads"):
        import_llamagen.convert(source, tmp_path, Options(report=lambda line: None))
    (tmp_path / "vq_ds16_t2i.pt").unlink()
    with pytest.raises(CheckpointError, match=r"vq_ds16_t2i\.pt .* or name it with --vae"):
        import_llamagen.convert(source, tmp_path, Options(report=lambda line: None))
