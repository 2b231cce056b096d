"""The detector of scenes: training, resuming, saving, loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.data.scenes.compose import SIZE
from model.data.scenes.things import STYLES, THINGS
from model.evaluation.detector import DetectorError, load_detector
from model.evaluation.train_detector import train
from model.training.trainer import load_state
from tests.model.image_set import discs


def test_a_detector_trains_resumes_and_loads_from_disk(tmp_path: Path) -> None:
    things = tuple(THINGS)[:4]
    sprites = discs(things)
    train(sprites, things, tmp_path, minutes=0, steps=2, batch=2, seed=0, progress=False)
    train(sprites, things, tmp_path, minutes=0, steps=3, batch=2, seed=0, progress=False)
    state = load_state(tmp_path / "state.pt")
    assert state is not None and state["step"] == 3
    detector = load_detector(tmp_path)
    assert detector.things == things and len(detector.detect(torch.zeros(2, 3, SIZE, SIZE))) == 2
    assert detector.styles == STYLES
    (tmp_path / "detector.json").write_text('{"things": []}')
    with pytest.raises(DetectorError, match="does not tell styles"):
        load_detector(tmp_path)
    with pytest.raises(DetectorError, match="train_detector"):
        load_detector(tmp_path / "elsewhere")
