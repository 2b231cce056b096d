"""Checkpoints: the round trip, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, weights_digest
from model.evaluation.generation import default_sampling
from model.inference import serving
from model.inference.load import find_checkpoint, load_engine
from model.networks.autoregressive_model import Fluid
from model.networks.layers.eight_bits import SCALE, SMALLEST
from model.networks.tokenizer import PcaSkipTokenizer
from server.model_info import ModelInfo
from tests.model.conftest import row_request


@pytest.fixture
def folder(tiny: Fluid, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tiny", tiny, PcaSkipTokenizer(tiny.config.tokenizer), {"name": "tiny"})
    return tmp_path / "tiny"


def _rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace or drop tensors and correct the digest, so that only the change itself is wrong."""
    (file,) = folder.glob("*.safetensors")
    state = {**load_file(file), **change}
    save_file({k: v for k, v in state.items() if v is not None}, file)
    raw = json.loads((folder / "config.json").read_text())
    raw["sha256"] = weights_digest(folder)
    (folder / "config.json").write_text(json.dumps(raw))


def test_round_trip_is_exact_in_bfloat16(tiny: Fluid, folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert loaded.config == tiny.config and loaded.about["name"] == "tiny"
    for key, value in tiny.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value.bfloat16().float())


def test_shards_are_read_back_completely(tiny: Fluid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.SHARD_BYTES", 50_000)
    save_checkpoint(tmp_path, tiny, PcaSkipTokenizer(tiny.config.tokenizer), {"name": "tiny"})
    assert len(list(tmp_path.glob("weights-*.safetensors"))) > 2
    load_checkpoint(tmp_path)


def test_a_save_over_another_leaves_none_of_its_files(
    tiny: Fluid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of an earlier save stayed, and were loaded too."""
    tokenizer = PcaSkipTokenizer(tiny.config.tokenizer)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("model.checkpoint.SHARD_BYTES", 50_000)
        save_checkpoint(tmp_path, tiny, tokenizer, {})
    assert len(list(tmp_path.glob("weights-*"))) > 1
    (tmp_path / "README.md").write_text("a card")
    save_checkpoint(tmp_path, tiny, tokenizer, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md", "config.json", "weights-00000-of-00001.safetensors",
    ]  # fmt: skip
    load_checkpoint(tmp_path)


def test_a_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    _rewrite(folder, {"model.head.out.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"'model.head.out.bias' has shape \(3,\), .* asks for \(4,\)"):
        load_checkpoint(folder)
    _rewrite(folder, {"model.head.out.bias": None})
    with pytest.raises(CheckpointError, match=r"'model\.head\.out\.bias' is missing"):
        load_checkpoint(folder)


def test_unknown_keys_are_an_error(folder: Path) -> None:
    _rewrite(folder, {"model.surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unknown key 'model\.surprise'"):
        load_checkpoint(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_checkpoint(folder)
    (folder / "config.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="not in a format"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(folder)


def test_a_wrong_configuration_names_file_and_key(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["model"]["depht"] = 3
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"config\.json: unknown key 'depht'"):
        load_checkpoint(folder)


def test_an_unknown_name_lists_the_shipped_checkpoints() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 'nope'.*atlas-128"):
        find_checkpoint("nope")


def test_serving_engine_returns_rgb_bytes(folder: Path) -> None:
    """The interface that the worker uses, on a real checkpoint folder."""
    engine = load_engine(str(folder), 2, "cpu", 0)
    (row,) = engine.admit([row_request(num_inference_steps=3)])
    assert engine.step() == [] and engine.progress(row) == (1, 3)
    early = engine.image(row)
    engine.step()
    assert engine.step() == [row]
    assert len(engine.image(row)) == 16 * 16 * 3 and engine.image(row) != early
    info = engine.info()
    assert info["tokens"] == 16 and info["limits"]["max_num_inference_steps"] == 16
    engine.release(row)


def test_kernels_that_cannot_run_here_prevent_the_start(folder: Path) -> None:
    """FLUID_KERNELS=triton on a machine without CUDA must not silently use another path."""
    assert load_engine(str(folder), 2, "cpu", 0, "float32", "auto").kernels == "torch"
    with pytest.raises(CheckpointError, match=r"need a GPU.*use auto or torch: FLUID_KERNELS is 'triton'"):
        load_engine(str(folder), 2, "cpu", 0, "float32", "triton")


def test_out_of_memory_at_the_start_says_which_setting_to_lower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the inputs of all rows are allocated at the start, so FLUID_MAX_ROWS can exceed its memory."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    monkeypatch.setattr(serving, "Engine", full)
    with pytest.raises(CheckpointError, match=r"with 2 rows does not fit.*FLUID_MAX_ROWS.*20\.00 GiB"):
        load_engine(str(folder), 2, "cpu", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_says_which_setting_to_change(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="FLUID_DEVICE=cpu"):
        load_engine(str(folder), 2, "cuda", 0)


def test_matrices_in_8_bits_come_back_within_half_a_step(tiny: Fluid, tmp_path: Path) -> None:
    """A byte a weight and two a row, in place of two a weight; vectors and the tokenizer are not touched."""
    tokenizer = PcaSkipTokenizer(tiny.config.tokenizer)
    for name, dtype in (("wide", torch.bfloat16), ("narrow", torch.int8)):
        save_checkpoint(tmp_path / name, tiny, tokenizer, {"name": "tiny"}, dtype)
    loaded = load_checkpoint(tmp_path / "narrow")
    for key, value in tiny.state_dict().items():
        found = loaded.model.state_dict()[key]
        if value.ndim == 2 and value.numel() >= SMALLEST:
            assert ((found - value).abs() <= 0.502 * value.abs().amax(1, keepdim=True) / 127).all()
            assert not torch.equal(found, value)
        else:
            assert torch.equal(found, value.bfloat16().float())
    for key, own in tokenizer.state_dict().items():
        assert torch.equal(loaded.tokenizer.state_dict()[key], own.bfloat16().float())
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).glob("*.safetensors")) for n in ("narrow", "wide")]
    matrices = [v for v in tiny.state_dict().values() if v.ndim == 2 and v.numel() >= SMALLEST]
    assert sizes[1] - sizes[0] == pytest.approx(
        sum(v.numel() - 2 * len(v) for v in matrices), abs=4096
    )  # headers differ


def test_a_missing_scale_is_named(tiny: Fluid, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny, PcaSkipTokenizer(tiny.config.tokenizer), {"name": "tiny"}, torch.int8)
    (file,) = tmp_path.glob("*.safetensors")
    key = next(key for key in load_file(file) if key.endswith(SCALE))
    _rewrite(tmp_path, {key: None})
    with pytest.raises(CheckpointError, match=r"matrix '.+' is in 8 bits without its scales"):
        load_checkpoint(tmp_path)


def _edited(folder: Path, section: str | None, change: dict[str, object]) -> None:
    """Change entries of config.json, or of one of its sections."""
    raw = json.loads((folder / "config.json").read_text())
    (raw[section] if section else raw).update(change)
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"sha256": None}, "sha256 is None, not text; copy the checkpoint again"),
        (None, {"about": []}, "about is .*, not an object; copy"),
        (None, {"model": "x"}, "model is 'x', not an object; copy"),
        ("about", {"name": 3}, "about.name is 3, not text; copy"),
        ("about", {"labels": "cat"}, "about.labels is not a list of texts; copy"),
        ("model", {"tokenizer": None}, "section 'tokenizer' is None"),
        ("model", {"text": None}, "text is None in section 'model'; a section is expected"),
        ("model", {"text": {"kind": "bert"}}, "kind 'bert' is not known: package or transformers"),
        ("model", {"heads": 0}, "heads is 0; it is at least 1"),
        ("model", {"head_depth": 0}, "head_depth is 0; it is at least 1"),
        ("model", {"heads": -12}, "heads is -12 in section 'model'; it cannot be negative"),
        ("model", {"family": ["fluid"]}, "family .'fluid'. is not known"),
        ("model", {"depth": "7"}, "depth is '7' in section 'model'; a whole number is expected"),
        ("model", {"depth": True}, "depth is True"),
        ("model", {"tokenizer": {"stride": 0}}, "stride is 0; it is at least 1"),
        ("model", {"tokenizer": {"widths": [8, 8]}}, r"widths \[8, 8\] are not three"),
        ("model", {"tokenizer": {"kind": "kl", "widths": [48, 48, 48, 48]}}, "width 48 is not a multiple of the 32"),
    ],
)
def test_an_odd_configuration_is_named(
    folder: Path, section: str | None, change: dict[str, object], message: str
) -> None:
    """Values of other types, zeros and missing parts were tracebacks of a KeyError or a ZeroDivisionError."""
    _edited(folder, section, change)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        load_checkpoint(folder)


def test_a_checkpoint_without_a_name_has_that_of_its_folder(folder: Path) -> None:
    """Workers, `fluid serve --workers` and distillation ended in a KeyError, each by itself."""
    raw = json.loads((folder / "config.json").read_text())
    del raw["about"]["name"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_engine(str(folder), 1, "cpu", 1).info()["id"] == "tiny"


FEW: dict[str, object] = {"num_inference_steps": 4, "diffusion_steps": 4}
LOW = {"quality": "low"}


def presets(**low: object) -> dict[str, object]:
    """Presets of few steps, the first with these settings beside."""
    return {"low": FEW | low, "medium": FEW, "high": FEW}


@pytest.mark.parametrize(
    ("presets", "defaults", "message"),
    [
        (presets(), None, "is not an object with the objects 'presets' and 'defaults'"),
        ({"low": FEW}, LOW, "presets has no object 'medium'"),
        (presets(), {"quality": "best"}, "quality 'best' is none of the presets"),
        (presets(num_inference_steps=0), LOW, "low: num_inference_steps is 0, and .* takes 1 to 16"),
        (presets(diffusion_steps="8"), LOW, "low: diffusion_steps is '8'; a whole number is expected"),
        (presets(steps=8), LOW, "low: 'steps' is not known; there are num_inference_steps, "),
        (presets(), LOW | {"order": "confidence"}, "low: order 'confidence' is not random or"),
    ],
)
def test_sampling_settings_that_do_not_fit_are_named(
    folder: Path, presets: dict[str, object], defaults: dict[str, object] | None, message: str
) -> None:
    """docs/training.md tells users to edit them: a KeyError in the worker, or every request with defaults failed."""
    _edited(folder, "about", {"sampling": {"presets": presets, "defaults": defaults}})
    with pytest.raises(CheckpointError, match=rf"config\.json: sampling settings.*{message}.*; change about\.sampling"):
        load_engine(str(folder), 1, "cpu", 1)


def test_a_setting_of_presets_and_defaults_is_the_presets(folder: Path) -> None:
    """An evaluation ended in a TypeError about an argument that was given twice."""
    sampling = {"presets": presets(order="halton"), "defaults": LOW | {"order": "gtr"}}
    _edited(folder, "about", {"sampling": sampling})
    engine = load_engine(str(folder), 1, "cpu", 1)
    assert [default_sampling(engine, name).order for name in (None, "high")] == ["halton", "gtr"]
    assert ModelInfo.from_mapping(engine.info()).defaults["guidance_scale"] == 3.0, "left out, it was a TypeError"
    engine.warm_up()
