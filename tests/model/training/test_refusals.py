"""What does not belong together is refused by name, before hours are spent on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import ConfigError, TextConfig
from model.networks.text_encoder import HashEncoder, build_text_encoder
from model.networks.tokenizer import PcaSkipTokenizer
from model.presets import PRESETS
from model.sampling_presets import default_sampling
from model.training.captions.caption_cache import build_caption_cache
from model.training.recipe import Recipe
from model.training.reconstruction.load import load_tokenizer
from model.training.run import config_of, open_feed
from tests.model.image_set import squares

RECIPE = Path("model/recipes/emoji-64.toml")


class Encoder(nn.Module):
    """Every encoder that a recipe names has the name of the preset's."""

    def __init__(self, seed: int):
        super().__init__()
        self.config = TextConfig(kind="transformers", name="shared", dim=4, max_tokens=3)
        self.register_buffer("table", torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))

    def encode(self, captions: list[str], tight: bool = False) -> tuple[Tensor, Tensor]:
        return self.table.repeat(len(captions), 1, 1), torch.ones(len(captions), 3, dtype=torch.bool)


def test_captions_of_another_encoder_are_not_read_back(tmp_path: Path) -> None:
    """Only the encoder's name was in the key: a run with other weights was trained on the states of the first."""
    one, two = (build_caption_cache(Encoder(seed), [("a cat",)], tmp_path) for seed in (1, 2))  # type: ignore[arg-type]
    assert not torch.equal(one.states, two.states)
    again = build_caption_cache(Encoder(1), [("a cat",)], tmp_path)  # type: ignore[arg-type]
    assert torch.equal(one.states, again.states) and len(list(tmp_path.iterdir())) == 2
    for tokens in (4, 7):
        build_caption_cache(HashEncoder(TextConfig(kind="hash", dim=4, max_tokens=tokens)), [("a cat",)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_data_of_another_size_are_refused_before_captions_are_encoded(tmp_path: Path) -> None:
    """The first step failed on the shapes of two tensors."""
    squares().save(tmp_path)
    config = PRESETS["emoji-64"]
    recipe = Recipe.load(RECIPE, data=str(tmp_path))
    tokenizer = PcaSkipTokenizer(config.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="have 16 pixels, preset emoji-64 generates 64"):
        open_feed(recipe, config, tokenizer, torch.device("cpu"))
    assert not list(tmp_path.glob("text-*"))


def test_a_tokenizer_file_of_another_preset_is_refused(tmp_path: Path) -> None:
    save_file(PcaSkipTokenizer(PRESETS["tiny"].tokenizer).state_dict(), tmp_path / "t.safetensors")  # type: ignore[arg-type]
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "t.safetensors").read_bytes()[:99])
    for name in ("t.safetensors", "cut.safetensors"):
        with pytest.raises(ConfigError, match="is damaged, or does not fit the preset"):
            load_tokenizer(PRESETS["emoji-64"], str(tmp_path / name))


def test_a_text_encoder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' error came through: a worker was started again and again, and training ended with a traceback."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = replace(PRESETS["166M"].text, name=str(tmp_path / "none"))
    for folder in ("", str(tmp_path / "missing")):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            build_text_encoder(config, folder)


def test_a_text_encoder_is_kept_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one was stored as it was typed: a service that started elsewhere took it for a name of the hub."""
    (tmp_path / "flan").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(Path(__file__).parents[3] / RECIPE, preset="166M", text_encoder="flan")
    assert config_of(recipe).text.name == str(tmp_path / "flan")
    assert config_of(replace(recipe, text_encoder="google/flan-t5-small")).text.name == "google/flan-t5-small"


def test_the_papers_sizes_are_sampled_as_the_papers_with_any_text_encoder() -> None:
    """With `--text-encoder`, which training on one's own images needs, they were sampled in 16 steps instead of 64."""
    config = config_of(Recipe.load(RECIPE, preset="166M", text_encoder="google/flan-t5-small"))
    assert default_sampling(config) == default_sampling(PRESETS["166M"]) != default_sampling(PRESETS["emoji-64"])
