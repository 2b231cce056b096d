"""Scores of a scenes checkpoint, from the feature distance to the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.scenes.facts import SCORED_CATEGORIES, Facts, Group, held_out
from model.data.scenes.things import THINGS
from model.evaluation.evaluate_scenes import feature_distance
from model.evaluation.scene_questions import Question, by_style
from model.evaluation.train_detector import train
from tests.model.image_set import discs


def test_the_feature_distance_of_equal_distributions_is_zero() -> None:
    """Both sets have the same prompts; treating pairs of one prompt as independent once made the floor -14."""
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randn(400, 32, generator=rng)
    a, b = (torch.nn.functional.normalize(prompts + 0.3 * torch.randn(400, 32, generator=rng)) for _ in range(2))
    other = torch.nn.functional.normalize(torch.randn(400, 32, generator=rng) + 1)
    assert abs(feature_distance(a, b)) < 2 and feature_distance(a, other) > 50


def test_scores_of_style_tell_what_training_shows_from_what_it_does_not() -> None:
    """They were one number, in which a quarter of the questions asked for a drawing that the model cannot know."""
    known = {held: next(t for t in THINGS if held_out("style", t, "noto") == held) for held in (True, False)}
    facts = [Facts("single_object", "noto", (Group(known[held]),)) for held in (False, False, True)]
    asked = [Question(each) for each in facts]
    found = by_style(asked, "style", np.array([1.0, 0.5, 0.0]))
    assert found == {
        "style": 0.5, "style_seen": 0.75, "style_seen_questions": 2, "style_unseen": 0.0, "style_unseen_questions": 1,
    }  # fmt: skip
    assert by_style(asked[:2], "style", np.array([1.0, 0.5]))["style_unseen"] is None
    shown = [Question(each, styles_held_out=False) for each in facts]  # by a training that leaves no style out
    assert by_style(shown, "style", np.array([1.0, 0.5, 0.0]))["style_seen_questions"] == 3
    assert asked[2].unseen and asked[2].new_style_only and not shown[2].unseen and not shown[2].new_style_only


@pytest.mark.slow
def test_the_command_line_scores_a_checkpoint_and_compares_presets(tmp_path: Path) -> None:
    """Sprites are discs and the detector is untrained, so the scores mean nothing; but each must be present and in its
    range."""
    things = tuple(THINGS)[:24]
    sprites = discs(things)
    sprites.save(tmp_path / "data")
    train(sprites, things, tmp_path / "detector", minutes=0, steps=1, batch=2, seed=0, progress=False)
    command = [
        sys.executable, "-m", "model.evaluation", "--suite", "scenes", "--checkpoint", "atlas-128", "--prompts", "2",
        "--images", "1", "--num-inference-steps", "2", "--diffusion-steps", "2", "--rows", "12",
        "--data", str(tmp_path / "data"), "--detector", str(tmp_path / "detector"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    shares = [
        "score_seen",
        "score_unseen",
        "checker_ceiling",
        "checker_reject",
        "style",
        "style_ceiling",
        "style_seen",
        "r_precision",
        "r_precision_seen",
        *SCORED_CATEGORIES,
    ]
    assert all(0 <= report[name] <= 1 for name in shares)
    assert (report["images"], report["prompts"]) == (12, 12) and report["seconds_per_image"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"sheet.png", "failures.png", "report.json"}

    done = subprocess.run([*command, "--quality", "low,high"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert list(reports) == ["low", "high"] and all(r["images"] == 12 for r in reports.values())
    assert (tmp_path / "out" / "high" / "report.json").exists()
    refused = subprocess.run([*command, "--quality", "low,best"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "'best' is not low, medium or high" in refused.stderr
