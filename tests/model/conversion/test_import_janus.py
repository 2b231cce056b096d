"""Janus-Pro imported from both layouts against transformers' class, with the same noise."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluid_kernels.philox import CATEGORY, gumbel_ref
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.config import ConfigError
from model.conversion.discrete import import_janus
from model.conversion.options import Options
from model.inference.generate import generate
from model.inference.prompts import PromptError, build_conditioner
from model.inference.requests import Sampling
from tests.model.conversion.published import CODES, save_janus

pytest.importorskip("diffusers")
SEED, TOKENS, GUIDANCE = 7, 16, 5.0
PROMPT = [0, 4, 6, 7, 8, 9, 5, 6, 2]  # <bos> <|User|> : a red cat <|Assistant|> : <begin_of_image>


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("janus")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return save_janus(folder / "source")


@pytest.fixture(scope="module")
def ours(theirs: Any, folder: Path) -> Checkpoint:
    return converted(folder / "source", folder / "out")


def converted(source: Path, target: Path) -> Checkpoint:
    assert import_janus.recognises(source)
    target.mkdir()
    import_janus.convert(source, target, Options(report=lambda line: None))
    return load_checkpoint(target)


def test_the_logits_of_every_position_equal_transformers(theirs: Any, ours: Checkpoint) -> None:
    """One causal pass over prompt and tokens; and the unconditional half, whose words are padding."""
    conditioner = build_conditioner(ours.model, ours.about, ours.folder)
    length = conditioner.unconditional_length("a red cat")
    assert length == len(PROMPT)
    tokens = torch.randint(CODES, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    for ids, condition in (
        (PROMPT, conditioner("a red cat")), ([0] + [1] * 7 + [2], conditioner.unconditional(length))
    ):  # fmt: skip
        with torch.no_grad():
            words = theirs.get_input_embeddings()(torch.tensor([ids]))
            inputs = torch.cat([words, theirs.prepare_embeddings_for_image_generation(tokens[:, :-1])], 1)
            hidden = theirs.model.language_model(inputs_embeds=inputs).last_hidden_state[:, len(ids) - 1 :]
            wanted = theirs.model.generation_head(hidden)
            found = ours.model.head(ours.model.backbone(tokens, None, condition), ours.model.table)
        assert (found - wanted).norm() / wanted.norm() < 1e-5


def test_a_whole_image_has_the_same_ids_as_transformers(
    theirs: Any, ours: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` of transformers' class samples through torch.multinomial, which gets our noise here."""
    conditioner = build_conditioner(ours.model, ours.about, ours.folder)
    null = conditioner.unconditional(len(PROMPT))
    sampling = Sampling(TOKENS, 1, GUIDANCE, order="raster")
    expected = generate(ours.model, conditioner("a red cat"), null, torch.tensor([SEED]), sampling)[0]
    place = iter(range(TOKENS))

    def multinomial(shares: Tensor, num_samples: int) -> Tensor:
        noise = gumbel_ref(torch.tensor(SEED), CATEGORY, torch.tensor(next(place)), torch.tensor(0), CODES)
        return (shares.log() + noise).argmax(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    ids = torch.tensor([PROMPT])
    found = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=True, guidance_scale=GUIDANCE,
        use_cache=True,
    )  # fmt: skip
    assert found[0].tolist() == expected.tolist() and len(expected.unique()) > 8


def test_codes_and_pixels_equal_transformers(theirs: Any, ours: Checkpoint) -> None:
    """Their encoder compares with the table as it is stored, their decoder reads unit vectors; trained tables are
    nearly that, so only the decoder is compared.
    """
    ids = torch.randint(CODES, (2, TOKENS))
    with torch.no_grad():
        torch.testing.assert_close(ours.tokenizer.decode(ids), theirs.model.vqmodel.decode(ids), rtol=1e-4, atol=1e-5)
        table = theirs.model.vqmodel.quantize.embedding.weight
        table.data = torch.nn.functional.normalize(table.data, dim=-1)
        pixels = torch.rand(2, 3, 8, 8) * 2 - 1
        codes = theirs.model.vqmodel.encode(pixels).image_tokens.view(2, 4, 4)
    assert torch.equal(ours.tokenizer.encode(pixels), codes)


def test_a_long_prompt_keeps_the_end_of_its_template(ours: Checkpoint) -> None:
    conditioner = build_conditioner(ours.model, ours.about, ours.folder)
    assert len(conditioner("cat " * 1000)) == 1
    assert conditioner.unconditional_length("cat " * 1000) == ours.config.text.max_tokens + 2  # type: ignore[attr-defined]
    ids = conditioner._ids("cat " * 1000)  # type: ignore[attr-defined]
    assert ids[:3] == PROMPT[:3] and ids[-3:] == PROMPT[-3:]


def test_it_has_no_negative_prompts(ours: Checkpoint) -> None:
    from model.inference.engine import Engine
    from tests.model.conftest import row_request

    engine = Engine(ours.model, build_conditioner(ours.model, ours.about, ours.folder), 1)
    with pytest.raises(PromptError, match="negative prompt"):
        engine.admit([row_request("a cat", 1, TOKENS, 1, order="raster", negative_prompt="rain")])


ORIGINAL = {
    r"^model\.language_model\.": "language_model.model.", r"^model\.generation_embeddings\.": "gen_embed.",
    r"^model\.generation_aligner\.fc1\.": "gen_aligner.layers.0.",
    r"^model\.generation_aligner\.hidden_layers\.0\.": "gen_aligner.layers.2.",
    r"^model\.generation_head\.proj_out\.": "gen_head.output_mlp_projector.",
    r"^model\.generation_head\.": "gen_head.", r"^model\.vqmodel\.": "gen_vision_model.",
    r"^lm_head\.": "language_model.lm_head.", r"^model\.": "",
}  # fmt: skip


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepSeek's names of the same tensors."""
    found = {}
    for key, value in state.items():
        name = next((re.sub(old, new, key) for old, new in ORIGINAL.items() if re.search(old, key)), key)
        if name.startswith("gen_vision_model."):
            name = re.sub(r"\.(down|up)\.(\d+)\.block\.", r".conv_blocks.\2.res.", name)
            name = re.sub(r"\.(down|up)\.(\d+)\.", r".conv_blocks.\2.", name)
            for old, new in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
                name = name.replace(f".mid.{old}.", f".mid.{new}.")
        found[name] = value
    return found


def test_the_original_layout_gives_the_same_weights(ours: Checkpoint, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder / "source", source)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    raw = json.loads((source / "config.json").read_text())
    raw = {"model_type": "multi_modality", "language_config": raw["text_config"], "vq_config": raw["vq_config"]}
    (source / "config.json").write_text(json.dumps(raw))
    names = sorted(renamed := original_names(state))
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}  # in two shards
    for file, keys in parts.items():
        save_file({key: renamed[key] for key in keys}, source / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert converted(source, tmp_path / "out").sha256 == ours.sha256


def test_a_tensor_that_does_not_fit_is_named(theirs: Any, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder / "source", source)
    state = load_file(source / "model.safetensors")
    key = "model.language_model.layers.1.mlp.up_proj.weight"
    for number, (change, message) in enumerate((
        ({**state, key: torch.zeros(3, 32)}, r"up_proj\.weight' has shape \(3, 32\), \(48, 32\) is expected"),
        ({k: v for k, v in state.items() if k != key}, r"up_proj\.weight' is missing"),
        ({**state, "model.surprise": torch.zeros(1)}, r"'model\.surprise' has no place"),
    )):  # fmt: skip
        save_file(change, source / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            converted(source, tmp_path / str(number))


def test_special_tokens_are_sought_in_the_tokenizer_where_the_generation_config_has_none(
    theirs: Any, folder: Path, tmp_path: Path
) -> None:
    """A null in place of an id was a TypeError, and a damaged tokenizer a traceback of transformers."""
    source = tmp_path / "source"
    shutil.copytree(folder / "source", source)
    for odd in ({"pad_token_id": None}, {"generation_kwargs": None}):
        raw = json.loads((folder / "source" / "generation_config.json").read_text())
        (source / "generation_config.json").write_text(json.dumps(raw | odd))
        with pytest.raises(CheckpointError, match="the tokenizer has no token '<｜begin▁of▁sentence｜>'"):
            import_janus.special_tokens(source)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ConfigError, match=r"tokenizer '.*source' cannot be loaded \("):
        import_janus.special_tokens(source)
