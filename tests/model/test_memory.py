"""Memory by count: its parameters are those of the modules, and its answers are consistent."""

from __future__ import annotations

import pytest
import torch

from model.memory import GB, backbone_parameters, estimate, head_parameters, largest_rows, report
from model.networks.causal import make_cache
from model.networks.factory import build_model
from model.networks.transformer import count_parameters
from model.presets import IMPORTED_PRESETS, PRESETS
from server.cli.main import main


@pytest.mark.parametrize("name", [*PRESETS, *IMPORTED_PRESETS])
def test_parameters_are_counted_as_the_modules_have_them(name: str) -> None:
    config = {**PRESETS, **IMPORTED_PRESETS}[name]
    with torch.device("meta"):
        model = build_model(config)
    assert head_parameters(config) == count_parameters(model.head)
    assert backbone_parameters(config) == count_parameters(model.backbone)


def test_keys_and_values_are_counted_as_the_engine_allocates_them() -> None:
    """A row's and its unconditional half's; in bfloat16, as on a GPU. Other systems have none."""
    config = PRESETS["369M-raster-discrete"]
    cache = make_cache(config, 2 * 64, torch.device("meta"), torch.bfloat16)
    assert cache is not None
    assert estimate(config, 64).key_values == cache.keys.nbytes + cache.values.nbytes
    assert estimate(PRESETS["369M"], 64).key_values == 0
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


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a service, and without loading anything."""
    assert main(["doctor", "--preset", "10.5b"]) == 0
    assert "80 GB: up to" in capsys.readouterr().out
    assert main(["doctor", "--preset", "11B"]) == 2
    assert "no preset '11B'" in capsys.readouterr().err
