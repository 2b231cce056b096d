"""States and tokenizers that are damaged, or of another run, end in one line that names the file and a remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from model.checkpoint import CheckpointError
from model.config import ConfigError
from model.data.atlas.assemble import assemble
from model.data.dataset import Dataset
from model.data.scenes.things import THINGS
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer_folder import save_tokenizer
from model.presets import PRESETS
from model.training import train_tokenizer
from model.training.captions.caption_cache import build_caption_cache
from model.training.distributed.losses import StepLosses
from model.training.distributed.state import load_sharded, save_sharded
from model.training.portable_run import pack
from model.training.recipe import Recipe
from model.training.reconstruction.load import find_tokenizer, load_tokenizer
from model.training.run import open_feed
from model.training.trainer import load_state, save_state
from tests.model.image_set import discs, pictures, squares

TINY = PRESETS["tiny"]


def test_a_damaged_state_says_to_remove_it(tmp_path: Path) -> None:
    """An empty file was an EOFError, others an UnpicklingError, and a truncated one "a run with another preset"."""
    file = tmp_path / "state.pt"
    save_state(file, step=1, model={"weight": torch.ones(500)})
    whole = file.read_bytes()
    assert load_state(file) is not None
    for content in (b"", b"no state", b"\x80\x02}q\0", whole[:100], whole[: len(whole) // 2], whole[:-10]):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"state\.pt is damaged .*: remove it to start over"):
            load_state(file)


def tokenizer_flags(folder: Path) -> list[str]:
    return ["--preset", "tiny", "--data", str(folder / "data"), "--out", str(folder / "out"), "--minutes", "0"]


def test_what_a_tokenizer_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    """Only reading the data was inside the `try`: all of these were tracebacks of torch."""
    data = squares()
    data.save(tmp_path / "data")
    flags = tokenizer_flags(tmp_path)
    for words, says in (
        (["--preset", "166M"], "kind 'kl' are imported"),
        (["--preset", "emoji-64"], "the images have 16 pixels and 3 channels, preset emoji-64 has 64 and 3: choose"),
        (["--decoder-of", str(tmp_path / "missing")], "no tokenizer at .*missing: `make train"),
        (["--decoder-of", str(tmp_path / "data")], "data is not a checkpoint: it has no config.json"),
        (["--data", str(tmp_path)], "no packed images in .*: run `make data` first"),
    ):
        with pytest.raises(SystemExit, match=says):
            train_tokenizer.main([*flags, "--steps", "1", *words])
    alpha = Dataset(np.concatenate([data.images, data.images[..., :1]], -1), data.items, {})
    with pytest.raises(ConfigError, match="have 16 pixels and 4 channels"):
        train_tokenizer.train("tiny", alpha, tmp_path / "out", 0, 1, 2, 0, progress=False)


def test_the_state_of_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default --out is emoji-64's: `--preset scenes-128` resumed its state in a RuntimeError."""
    squares().save(tmp_path / "data")
    wide = replace(TINY, tokenizer=replace(TINY.tokenizer, channels=8))
    save_state(tmp_path / "out" / "state.pt", model=new_tokenizer(wide).state_dict())
    with pytest.raises(SystemExit, match=r"out holds a run with another preset.*or remove .*out/state\.pt to start"):
        train_tokenizer.main([*tokenizer_flags(tmp_path), "--steps", "1"])
    (tmp_path / "out" / "state.pt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"state\.pt is damaged"):
        train_tokenizer.main([*tokenizer_flags(tmp_path), "--steps", "1"])


def test_a_finished_tokenizer_says_that_it_was_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other flags changed nothing, without a word; on other images its normalisation was fitted anew."""
    data = squares()
    data.save(tmp_path / "data")
    flags = [*tokenizer_flags(tmp_path), "--steps", "1", "--batch", "2"]
    train_tokenizer.main(flags)
    assert "used up" not in capsys.readouterr().out
    train_tokenizer.main([*flags, "--noise-max", "0.5"])
    assert "used up after 1 steps: give more --minutes or --steps, or another --out" in capsys.readouterr().out
    before = (tmp_path / "out" / "tokenizer.safetensors").read_bytes()
    Dataset(255 - data.images, data.items, {}).save(tmp_path / "data")
    with pytest.raises(SystemExit, match="trained on other images: choose another --out"):
        train_tokenizer.main(flags)
    assert (tmp_path / "out" / "tokenizer.safetensors").read_bytes() == before


@pytest.mark.parametrize("flags", [("--steps", "0"), ("--batch", "-1"), ("--seed", "-1"), ("--steps", "many")])
def test_a_budget_of_no_steps_is_refused(flags: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--steps 0` ended in a ZeroDivisionError of the clock."""
    with pytest.raises(SystemExit) as ended:
        train_tokenizer.main([*flags])
    assert ended.value.code == 2 and f"{flags[0]}: '{flags[1]}' is not a whole number" in capsys.readouterr().err


def test_damaged_json_of_a_tokenizer_is_named(tmp_path: Path) -> None:
    """Truncated text was a JSONDecodeError, a list an AttributeError, sizes of 0 a ZeroDivisionError."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    save_tokenizer(ours, new_tokenizer(TINY), {})
    sizes = json.loads((ours / "tokenizer.json").read_text())["tokenizer"]
    wrong = [{"kind": ["kl"]}, {**sizes, "widths": 5}, {**sizes, "channels": "x"}, None, [1]]
    for text in ("", "{", "[]", "3", "{}", *(json.dumps({"tokenizer": each}) for each in wrong)):
        (ours / "tokenizer.json").write_text(text)
        with pytest.raises(ConfigError, match=r"import|is not known|is an object with keys|is expected"):
            find_tokenizer(ours)
    for content in (b"", b"{", b"[]", b"\xff"):
        (theirs / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json .*copy or import its folder again"):
            load_tokenizer(TINY, str(theirs))


@pytest.mark.parametrize("key", ["norm_num_groups", "block_out_channels", "layers_per_block"])
def test_sizes_of_a_vqgan_that_cannot_be_are_named(key: str, tmp_path: Path) -> None:
    """They were errors of torch: ZeroDivisionError and TypeError."""
    pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel", key: 0 if key[0] == "n" else None}))
    with pytest.raises(ConfigError, match=r"config\.json(: groups is 0| has sizes that cannot be built)"):
        find_tokenizer(tmp_path)


def test_a_damaged_file_of_captions_is_named(tmp_path: Path) -> None:
    """A killed run left half of one, and every later run ended in a SafetensorError."""
    encoder = HashEncoder(TINY.text)
    build_caption_cache(encoder, [("a cat",)], tmp_path)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"text-\w+\.safetensors is damaged .*: remove it, and its captions"):
        build_caption_cache(encoder, [("a cat",)], tmp_path)


@pytest.mark.parametrize("damage", ["part", "progress.json", "preset"])
def test_a_sharded_state_that_does_not_load_is_named(tmp_path: Path, damage: str) -> None:
    """torch's CheckpointException is no Exception: it passed by every `except`, with a traceback for each rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, state_file = Fluid(TINY), tmp_path / "state.pt"
        optimizer = torch.optim.AdamW(model.parameters())
        average = {name: value.clone() for name, value in model.state_dict().items()}
        save_sharded(state_file, StepLosses(model, None, 0.0), optimizer, average, {"step": 7, "history": []})
        [part] = (tmp_path / "state" / "00000007").glob("*.distcp")
        if damage == "part":
            part.write_bytes(part.read_bytes()[:5000])
        elif damage == "progress.json":
            part.with_name(damage).write_text("{")
        else:
            model = Fluid(replace(TINY, head_width=2 * TINY.head_width))
            average = {name: value.clone() for name, value in model.state_dict().items()}
        losses, optimizer = StepLosses(model, None, 0.0), torch.optim.AdamW(model.parameters())
        with pytest.raises(ConfigError, match=r"00000007 is damaged, or holds a run with another .* remove the folder"):
            load_sharded(state_file, losses, optimizer, average)
    finally:
        dist.destroy_process_group()


def test_the_decoder_of_another_encoder_is_refused(tmp_path: Path) -> None:
    """The state's encoder took the place of that of --decoder-of, and models of its tokens no longer fitted."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        save_file(new_tokenizer(TINY).state_dict(), tmp_path / f"{name}.safetensors")

    def run(name: str, steps: int) -> None:
        file = tmp_path / f"{name}.safetensors"
        train_tokenizer.train("tiny", squares(), tmp_path, 0, steps, 2, 0, decoder_of=file, progress=False)

    run("one", 1)
    run("one", 2)
    with pytest.raises(ConfigError, match=r"state\.pt holds another encoder than .*two\.safetensors: choose another"):
        run("two", 3)


def test_a_preset_without_alpha_is_refused_on_an_atlas(tmp_path: Path) -> None:
    """Its images have four channels: the first step failed in a convolution."""
    core = discs(tuple(THINGS)[:24])
    core.about["sha256"] = "0"
    assemble(core, pictures()[:8]).save(tmp_path)
    config = replace(PRESETS["scenes-128"], text=TINY.text)
    read = Recipe.load(Path("model/recipes/scenes-128.toml"), data=str(tmp_path))
    assert read.scenes is not None
    read = replace(read, scenes=replace(read.scenes, things=24, captions=50))
    with pytest.raises(ConfigError, match="have alpha, preset scenes-128 has none"):
        open_feed(read, config, new_tokenizer(config), torch.device("cpu"))


def recipe(folder: Path, **values: str) -> Path:
    """The recipe of emoji-64 with a data set and a tokenizer that are there, and these values."""
    squares().save(folder / "data")
    save_file(new_tokenizer(PRESETS["emoji-64"]).state_dict(), folder / "tokenizer.safetensors")
    text = Path("model/recipes/emoji-64.toml").read_text()
    names = {"data": str(folder / "data"), "tokenizer": str(folder / "tokenizer.safetensors"), **values}
    lines = [
        f"{key} = {json.dumps(names[key])}" if (key := line.partition("=")[0].strip()) in names else line
        for line in text.splitlines()
    ]
    (folder / "recipe.toml").write_text("\n".join(lines))
    return folder / "recipe.toml"


def test_parts_of_a_packed_run_that_are_missing_are_named(tmp_path: Path) -> None:
    """A missing `start_from` was a FileNotFoundError of the copy, which came after the data's; so was a hub's name."""
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint"):
        pack(recipe(tmp_path, start_from=str(tmp_path / "nowhere")), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"text_encoder = '.*nowhere': there is no such folder"):
        pack(recipe(tmp_path, text_encoder=str(tmp_path / "nowhere")), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))
    pack(recipe(tmp_path, text_encoder="google/flan-t5-small"), tmp_path / "out")
    assert Recipe.load(tmp_path / "out" / "recipe.toml").text_encoder == "google/flan-t5-small"
    assert not (tmp_path / "out" / "text_encoder").exists()
