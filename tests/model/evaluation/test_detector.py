"""The detector of scenes: training, resuming, saving, loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import ConfigError
from model.data.scenes.compose import SIZE
from model.data.scenes.things import STYLES, THINGS
from model.evaluation.detector import Detector, DetectorError, load_detector, save_detector
from model.evaluation.train_detector import main, train
from model.training.trainer import load_state, save_state
from tests.model.image_set import discs, squares


def test_a_detector_trains_resumes_and_loads_from_disk(tmp_path: Path) -> None:
    things = tuple(THINGS)[:4]
    sprites = discs(things)
    train(sprites, things, tmp_path, minutes=0, steps=2, batch=2, seed=0, progress=False)
    train(sprites, things, tmp_path, minutes=0, steps=3, batch=2, seed=0, progress=False)
    state = load_state(tmp_path / "state.pt")
    assert state is not None and state["step"] == 3
    sprites.about["sha256"] = "others"  # a finished one once named these as those that it was trained on
    with pytest.raises(ConfigError, match="trained on other sprites: choose another --out"):
        train(sprites, things, tmp_path, minutes=0, steps=3, batch=2, seed=0, progress=False)
    detector = load_detector(tmp_path)
    assert detector.things == things and len(detector.detect(torch.zeros(2, 3, SIZE, SIZE))) == 2
    assert detector.styles == STYLES
    (tmp_path / "detector.json").write_text('{"things": []}')
    with pytest.raises(DetectorError, match="does not tell styles"):
        load_detector(tmp_path)
    with pytest.raises(DetectorError, match="train_detector"):
        load_detector(tmp_path / "elsewhere")


def test_a_damaged_detector_says_to_train_another(tmp_path: Path) -> None:
    """Truncated JSON and weights were tracebacks."""
    whole = Detector(tuple(THINGS)[:2], STYLES)
    for file, content in (
        ("detector.json", b""), ("detector.json", b"[3]"), ("detector.json", b'{"styles": null}'),
        ("detector.json", b'{"styles": [], "things": []}'), ("detector.safetensors", b"cut"),
    ):  # fmt: skip
        save_detector(whole, tmp_path, {})
        load_detector(tmp_path)
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DetectorError, match=r"is damaged, or .*: remove the folder and train another"):
            load_detector(tmp_path)


def test_training_refuses_other_data_and_the_state_of_another_detector(tmp_path: Path) -> None:
    """All of these were tracebacks."""
    squares().save(tmp_path / "squares")
    discs(tuple(THINGS)[:4]).save(tmp_path / "discs")
    save_state(tmp_path / "out" / "state.pt", model=Detector(tuple(THINGS)[:3], STYLES).state_dict())
    flags = ["--out", str(tmp_path / "out"), "--things", "4", "--data", str(tmp_path / "discs")]
    with pytest.raises(SystemExit, match=r"squares holds packed images, .*choose a folder with sprites of scenes"):
        main([*flags, "--data", str(tmp_path / "squares")])
    with pytest.raises(SystemExit, match=r"out holds a run with another preset.*remove .*state\.pt"):
        main(flags)
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--steps", "0"])
    assert ended.value.code == 2
