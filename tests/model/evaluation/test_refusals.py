"""What `python -m model.evaluation` refuses, with one line, before it loads detectors or generates images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint import save_checkpoint
from model.data.dataset import Dataset
from model.evaluation.evaluate import main
from model.inference.engine import Engine
from model.networks.autoregressive_model import Fluid
from model.networks.factory import build_tokenizer
from model.presets import PRESETS
from tests.model.image_set import squares

ODD = {quality: {"cfg": 3} for quality in ("low", "medium", "high")}


@pytest.fixture
def checkpoint(tiny: Fluid, tmp_path: Path) -> Path:
    """Of images of 16 px and 16 tokens."""
    save_checkpoint(tmp_path / "tiny", tiny, build_tokenizer(tiny.config.tokenizer), {"name": "tiny"})
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-inference-steps", "100"], "num_inference_steps is 100; this model has 16 tokens"),
        (["--order", "confidence"], "order 'confidence' is not random or"),
        (["--diffusion-steps", "2000"], "diffusion_steps is 2000; 1 to 1000"),
        (["--suite", "scenes"], "tiny generates images of 16 px, the suite scenes compares them with images of 128 px"),
        (["--suite", "breadth"], "tiny generates images of 16 px, the suite breadth"),
        (["--suite", "emoji"], "tiny generates images of 16 px, .*data compares them with images of 32 px"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_one_line(checkpoint: Path, flags: list[str], message: str) -> None:
    """A traceback after detector and features were loaded or all images generated; scenes gave a report of nothing."""
    small = squares()
    data = checkpoint.with_name("data")
    Dataset(small.images.repeat(2, 1).repeat(2, 2), small.items, small.about).save(data)
    with pytest.raises(SystemExit, match=message):
        main(["--checkpoint", str(checkpoint), "--data", str(data), *flags])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*; give a file like"),
        ("{", "is not JSON"),
        ('{"presets": {}}', "is not an object with the objects 'presets' and 'defaults'"),
        (json.dumps({"presets": ODD, "defaults": {"quality": "low"}}), "low: 'cfg' is not known; there are num_"),
    ],
)
def test_a_file_of_sampling_settings_that_does_not_fit_is_named(
    checkpoint: Path, content: str | None, message: str
) -> None:
    """A missing or damaged file, or an unknown key in it, was a traceback."""
    file = checkpoint.with_name("sampling.json")
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=rf"--sampling: .*sampling\.json.* {message}"):
        main(["--checkpoint", str(checkpoint), "--sampling", str(file)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "--images: '0' is not a whole number, 1 or more"),
        (["--images", "-5"], "--images: '-5' is not a whole number, 1 or more"),
        (["--rows", "0"], "--rows: '0' is not a whole number, 1 or more"),
        (["--prompts", "1"], "--prompts: '1' is not a whole number, 2 or more"),
        (["--seed", "-1"], "--seed: '-1' is not a whole number, 0 or more"),
        (["--rows", "many"], "--rows: 'many' is not a whole number"),
        (["--loss", "x", "--quality", "low"], "--quality is not for --loss"),
        (["--loss", "x", "--guidance-scale", "1"], "--guidance-scale is not for --loss"),
        (["--loss", "x", "--sampling", "f"], "--sampling is not for --loss"),
        (["--things", "12"], "--things is only for --loss"),
        (["--suite", "breadth", "--snap", "4"], "--snap is only for --loss"),
        (["--suite", "breadth", "--prompts", "12"], "--prompts is only for --suite scenes"),
        (["--suite", "emoji", "--detector", "d"], "--detector is only for --suite scenes"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rows never ended, no images silently meant the default, --loss ignored the flags of sampling, and suites those
    of others."""
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_checkpoint_without_single_things_is_not_asked_for_them(tmp_path: Path) -> None:
    """It was asked for those of the atlas, and each wrong image counted as a trained pair."""
    config = replace(PRESETS["tiny"], image_size=128, tokenizer=replace(PRESETS["tiny"].tokenizer, stride=32))
    about = {"name": "scenes", "vocabulary": ["cat"]}
    save_checkpoint(tmp_path / "scenes", Fluid(config), build_tokenizer(config.tokenizer), about)
    with pytest.raises(SystemExit, match=r"scenes lists no single things .*: score it with --suite scenes or emoji"):
        main(["--suite", "breadth", "--checkpoint", str(tmp_path / "scenes"), "--data", str(tmp_path)])


def test_a_model_too_large_for_memory_is_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback, although the engine says what helps."""

    def allocate(engine: Engine, rows: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "_decode", allocate)
    squares().save(checkpoint.with_name("data"))
    with pytest.raises(SystemExit, match=r"out of memory for rows .* use a device with more memory"):
        main(["--suite", "emoji", "--checkpoint", str(checkpoint), "--data", str(checkpoint.with_name("data"))])
