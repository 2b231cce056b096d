"""Memory by count: its parameters are those of the modules, and its answers are consistent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import CheckpointError, save_checkpoint
from model.discrete_config import JanusConfig, LlamagenConfig
from model.inference.devices.survey import survey
from model.inference.load import find_checkpoint
from model.inference.precision import PACKED_FROM
from model.memory import (
    GB,
    backbone_parameters,
    block_parameters,
    encoder_parameters,
    estimate,
    estimate_on_cpu,
    head_parameters,
    key_value_bytes,
    largest_rows,
    report,
    sampling_bytes,
)
from model.networks.causal import make_cache
from model.networks.factory import build_model, build_tokenizer
from model.networks.transformer import count_parameters
from model.presets import IMPORTED_PRESETS, PRESETS
from server.cli.main import main
from tests.model.imported_models import imported_model


@pytest.mark.parametrize("name", [*PRESETS, *IMPORTED_PRESETS])
def test_parameters_are_counted_as_the_modules_have_them(name: str) -> None:
    config = {**PRESETS, **IMPORTED_PRESETS}[name]
    with torch.device("meta"):
        model = build_model(config)
    assert head_parameters(config) == count_parameters(model.head)
    assert backbone_parameters(config) == count_parameters(model.backbone)


def test_the_layers_of_a_mean_flow_are_counted() -> None:
    config = replace(PRESETS["atlas-128"], mean_flow=True)
    with torch.device("meta"):
        assert head_parameters(config) == count_parameters(build_model(config).head)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keys_and_values_are_counted_as_the_engine_allocates_them(dtype: torch.dtype) -> None:
    """A row's and its unconditional half's, in the dtype of products: float32 was planned at half its size. Other
    systems have none."""
    config = PRESETS["369M-raster-discrete"]
    cache = make_cache(config, 2 * 64, torch.device("meta"), dtype)
    assert cache is not None
    planned = estimate(config, 64, dtype=str(dtype).removeprefix("torch.")).key_values
    assert planned == cache.keys.nbytes + cache.values.nbytes
    assert estimate(PRESETS["369M"], 64).key_values == 0
    assert key_value_bytes(JanusConfig(), 64, "float32") == 2 * key_value_bytes(JanusConfig(), 32, "bfloat16") * 2
    assert "keys and values" in "\n".join(report("369M-raster-discrete"))


@pytest.mark.parametrize(
    "name", ["369M", "10.5B", "mar-h", "3.1B-raster-continuous", "3.1B-random-discrete", "nova-d48w1536-sdxl1024"]
)
def test_the_largest_batch_fits_and_the_next_does_not(name: str) -> None:
    config = {**PRESETS, **IMPORTED_PRESETS}[name]
    rows = [largest_rows(config, limit * GB) for limit in (80, 141)]
    assert 0 < rows[0] < rows[1]
    assert estimate(config, rows[0]).total <= 80 * GB < estimate(config, rows[0] + 1).total
    assert largest_rows(config, GB) == 0


@pytest.mark.parametrize("name", ["369M", "3.1B-raster-discrete", "mar-h", "nova-d48w1536-sdxl1024"])
def test_int8_halves_what_is_quantised(name: str) -> None:
    """`fluid serve --workers` and `fluid doctor --preset` planned with bfloat16's bytes."""
    config = {**PRESETS, **IMPORTED_PRESETS}[name]
    with torch.device("meta"):
        backbone = build_model(config).backbone
    linear = [m for m in backbone.modules() if isinstance(m, torch.nn.Linear) and m.in_features >= PACKED_FROM]
    quantised = sum(each.weight.numel() for each in linear)
    assert 0.97 * quantised < block_parameters(config) < 1.01 * quantised
    other = backbone_parameters(config) - block_parameters(config)
    saved = estimate(config, 8).total - estimate(config, 8, dtype="int8").total
    assert saved == block_parameters(config) - 2 * other
    assert largest_rows(config, 80 * GB, dtype="int8") > largest_rows(config, 80 * GB)
    assert "FLUID_TENSOR_PARALLEL" not in "\n".join(report(name, dtype="int8"))


@pytest.mark.parametrize("family", ["fluid", "llamagen"])
def test_the_plan_follows_the_dtype_and_not_the_files(family: str, tmp_path: Path) -> None:
    """Imported models are stored in float32 unless asked otherwise, and were planned with twice their bytes."""
    if family == "fluid":
        folder = find_checkpoint("atlas-128")
    else:
        model, folder = imported_model(family), tmp_path / "float32"
        tokenizer = build_tokenizer(model.config.tokenizer)
        for name in ("float32", "bfloat16", "int8"):
            save_checkpoint(tmp_path / name, model, tokenizer, {"name": "a"}, getattr(torch, name))

    def needs(dtype: str, where: Path) -> int:
        models = survey("cpu", 4, 1, dtype, [str(where)])["models"]
        return int(models[0]["needs"][0])  # type: ignore[index]

    assert needs("float32", folder) < needs("int8", folder) == needs("bfloat16", folder), "float32 first, both times"
    if family == "llamagen":
        assert needs("int8", folder) == needs("int8", tmp_path / "bfloat16") <= needs("int8", tmp_path / "int8")
        assert needs("int8", tmp_path / "int8") < 1.01 * needs("int8", folder)
    with pytest.raises(CheckpointError, match="int8 weights cannot be shared"):
        survey("cpu", 4, 2, "int8", [str(folder)])


@pytest.mark.parametrize("family", ["amused", "janus"])
def test_sampling_from_a_codebook_is_planned_for(family: str, tmp_path: Path) -> None:
    """Sixteen rows of Meissonic take 12 GB in one step, and were planned as one row."""
    model = imported_model(family)
    save_checkpoint(tmp_path, model, build_tokenizer(model.config.tokenizer), {"name": "a"})

    def needs(rows: int) -> int:
        models = survey("cpu", rows, 1, "bfloat16", [str(tmp_path)])["models"]
        return int(models[0]["needs"][0])  # type: ignore[index]

    config, more = model.config, needs(16) - needs(1)
    assert more - 15 * key_value_bytes(config, 1, "bfloat16") == 15 * sampling_bytes(config, 1) > 0
    assert sampling_bytes(config, 1) == 24 * config.codebook * (1 if config.causal else config.tokens)
    assert sampling_bytes(PRESETS["166M"], 16) == 0
    discrete = PRESETS["166M-random-discrete"]
    assert estimate_on_cpu(discrete, 16) - estimate_on_cpu(discrete, 1) == 15 * sampling_bytes(discrete, 1)


def test_long_prompts_take_memory_of_their_own() -> None:
    """Prompts of 128 tokens need inputs of 32, 64 and 128; before text was cut, every prompt took 128."""
    config = PRESETS["10.5B"]
    token = 2 * 2 * config.depth * config.width
    short, long = (estimate(config, 64, text).rows for text in (32, 128))
    assert long - short == token * (128 * (64 + 128) + 64 * (128 - 32))
    assert estimate(config, 64, 33).rows - short == token * (128 * 64 + 64 * 32)
    assert 3 * (short - (256 << 20)) < token * 192 * 128 and largest_rows(config, 80 * GB) > largest_rows(
        config, 80 * GB, 128
    )


def test_the_report_names_every_part_and_refuses_unknown_presets() -> None:
    text = "\n".join(report("10.5b"))
    for word in (
        "10.5B: 10",
        "weights",
        "text encoder",
        "64 guided rows",
        "graphs",
        "80 GB",
        "141 GB",
        "with prompts of 128 tokens",
    ):
        assert word in text
    with pytest.raises(KeyError, match="scenes-128"):
        report("11B")


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a service, and without loading anything."""
    assert main(["doctor", "--preset", "10.5b"]) == 0
    assert "80 GB: up to" in capsys.readouterr().out
    monkeypatch.setenv("FLUID_DTYPE", "int8")
    assert main(["doctor", "--preset", "10.5b"]) == 0
    assert "billion parameters in int8" in capsys.readouterr().out
    assert main(["doctor", "--preset", "11B"]) == 2
    assert "no preset '11B'" in capsys.readouterr().err


def test_a_text_encoder_is_counted_wherever_it_lies() -> None:
    """Training and imports name a folder, which was taken for an unknown, small encoder: 9.5 GB were not planned."""
    for config in (PRESETS["166M"], IMPORTED_PRESETS["nova-d48w1024-sd512"], LlamagenConfig()):
        elsewhere = replace(config, text=replace(config.text, name="/srv/encoder"))
        assert encoder_parameters(elsewhere) == encoder_parameters(config) > 10**9
    assert encoder_parameters(PRESETS["atlas-128"]) == 0
