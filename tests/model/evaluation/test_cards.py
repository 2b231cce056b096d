"""Model cards: figures of the reports, weights and scores that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.checkpoint import load_checkpoint, read_config, save_checkpoint
from model.data.scenes.facts import SCORED_CATEGORIES
from model.evaluation.cards.__main__ import main
from model.evaluation.cards.atlas import breadth_styles
from model.evaluation.cards.facts import beginning, carried_over, command, decoder, unseen_words
from model.networks.factory import build_model, new_tokenizer
from model.presets import PRESETS

SHEET = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
SCENES = {
    "score_seen": 0.951, "score_unseen": 0.923, "checker_ceiling": 0.991,
    "style": 0.968, "style_seen": 0.971, "style_unseen": None, "style_ceiling": 0.998,
    "checker_ceiling_jpeg": 0.99, "checker_reject": 0.999, "r_precision": 0.904, "r_precision_seen": 0.912,
    "r_precision_seen_questions": 451, "r_precision_unseen": 0.604, "r_precision_ceiling": 0.985,
    "candidates": 100, "feature_distance": 321.5, "feature_distance_floor": -0.05, "prompts": 600, "images": 2400,
    "features": "classifier", "date": "2026-11-28", "settings": {"num_inference_steps": 32},
    **{f"{name}{cell}": 0.9 for name in SCORED_CATEGORIES for cell in ("", "_seen", "_unseen", "_ceiling")},
}  # fmt: skip
BREADTH = {
    "breadth_candidates": 1000, "breadth_trained": 0.712, "breadth_heldout": 0.431, "breadth_ceiling": 0.957,
    "breadth_trained_images": 1000, "breadth_heldout_images": 514, "seam_ratio": 1.043, "images": 1514,
    "features": "classifier", "date": "2026-11-28", "settings": {"num_inference_steps": 16},
}  # fmt: skip
STEPS = {"num_inference_steps": 4, "diffusion_steps": 4}
SAMPLING: dict[str, Any] = {
    "presets": {"low": STEPS, "medium": STEPS, "high": STEPS}, "defaults": {"quality": "medium"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of the tiny preset that claims to be an atlas."""
    run, source = tmp_path / "run", {"style": "3d", "package": "p@1", "title": "T", "author": "A", "licence": "MIT"}
    about = {
        "name": "atlas-128", "vocabulary": ["apple", "cat"], "styles": ["3d", "outline", "noto"],
        "breadth": ["accordion", "acorn"], "breadth_in_one_style": ["abbot"],
        "training": {"steps": 12, "minutes": 3.5, "batch": 4, "pictures": 4800, "epochs": 1.5, "final_loss": 0.4,
                     "relation_steps": 1000, "device": "1 CPU thread"},
        "data": {"sha256": "d" * 64, "captions": {"package": "c@1", "licence": "MIT"},
                 "sources": [source | {"url": "https://example.org"}]},
    }  # fmt: skip
    config = PRESETS["tiny"]
    save_checkpoint(run / "checkpoint", build_model(config), new_tokenizer(config), about)
    (run / "history.json").write_text(json.dumps([[1, 0.1, 1.0], [2, 0.2, 0.5]]))
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "report.json").write_text('{"psnr_train_db": 29.04, "psnr_unseen_db": 30.55}')
    return run


def evaluated(folder: Path, report: dict[str, Any], sha256: str, sheets: tuple[str, ...]) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report | {"checkpoint_sha256": sha256}))
    for name in sheets:
        SHEET.save(folder / f"{name}.png")
    return folder


def test_an_atlas_is_published_with_the_scores_of_both_suites(run: Path, tmp_path: Path) -> None:
    sha256 = read_config(run / "checkpoint")["sha256"]
    scenes = evaluated(tmp_path / "scenes", SCENES, sha256, ("sheet", "failures"))
    breadth = evaluated(tmp_path / "breadth", BREADTH, sha256, ("sheet",))
    out, sampling = tmp_path / "out", tmp_path / "sampling.json"
    sampling.write_text(json.dumps(SAMPLING))
    examples = tmp_path / "examples.txt"
    examples.write_text("a cat\nan apple, 3d style\n")
    main(["--run", str(run), "--evaluation", str(breadth), "--evaluation", str(scenes), "--out", str(out),
          "--sampling", str(sampling), "--description", "A model.", "--examples", str(examples)])  # fmt: skip
    card, about = (out / "README.md").read_text(), load_checkpoint(out).about
    for figure in ("95.1%", "92.3%", "96.8%", "90.4%", "71.2%", "43.1%", "95.7%", "1.043", "600 prompts, 2400 images"):
        assert figure in card, figure
    for file in ("sheet.webp", "breadth-sheet.webp", "failures.webp", "curve.png"):
        assert f"({file})" in card and (out / file).exists()
    assert "num_inference_steps 32" in card, "the settings are those of the core, whatever came first"
    assert about["examples"] == ["a cat", "an apple, 3d style"]
    assert about["metrics"]["breadth_trained"] == 0.712 and about["sampling"]["defaults"] == {"quality": "medium"}


def test_a_breadth_without_held_out_pairs_shows_none(run: Path, tmp_path: Path) -> None:
    """Two styles that draw the same leave none: the card gave "–" of 0 images, and rows that its sheet lacked."""
    sha256, none = read_config(run / "checkpoint")["sha256"], {"breadth_heldout": None, "breadth_heldout_images": 0}
    scenes = evaluated(tmp_path / "scenes", SCENES, sha256, ("sheet",))
    breadth = evaluated(tmp_path / "breadth", BREADTH | none, sha256, ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(SAMPLING))
    main(["--run", str(run), "--evaluation", str(breadth), "--evaluation", str(scenes), "--out", str(tmp_path / "out"),
          "--sampling", str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "71.2%" in card and "held-out pairs" not in card and "held-out ones" not in card
    assert breadth_styles({"breadth_styles": ["twemoji", "noto"]}) == "in twemoji and noto style"


def test_a_card_names_the_recipe_of_the_device_that_trained() -> None:
    """That of a CPU was named for weights that a GPU had trained with other batches and rates."""
    assert command("atlas-128", {"device": "2 CPU threads"}) == "make train RECIPE=atlas-128"
    assert command("atlas-128", {"device": "1 × NVIDIA H200"}) == "make train RECIPE=atlas-128-gpu"
    assert command("scenes-128", {"device": "1 × NVIDIA H200"}) == "make train RECIPE=scenes-128"
    assert command("atlas-128", {}) == "make train RECIPE=atlas-128"
    assert command("mine", {"device": "1 × NVIDIA H200"}) == "python -m model.training"


def test_a_model_of_scenes_alone_is_published(run: Path, tmp_path: Path) -> None:
    """Its card told how one checkpoint had been trained, whichever it was of."""
    sha256 = read_config(run / "checkpoint")["sha256"]
    scenes = evaluated(tmp_path / "scenes", SCENES, sha256, ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(SAMPLING))
    main(["--run", str(run), "--evaluation", str(scenes), "--out", str(tmp_path / "out"), "--sampling",
          str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("95.1%", "92.3%", "| style | 96.8% |", "12 steps of 4 in 3.5 minutes", "after relation pretraining"):
        assert said in card, said


def test_a_card_tells_guidance_in_the_weights_from_what_images_taught(run: Path, tmp_path: Path) -> None:
    """A few hundred steps of guidance distillation would have stood there as the whole training."""
    whole = load_checkpoint(run / "checkpoint")
    start = {"name": "atlas-128", "sha256": "a" * 64, "training": whole.about["training"]}
    learned = {"steps": 7, "minutes": 2.0, "guidance": {"scale": 2.0, "missing": 0.43}, "started_from": start}
    about = whole.about | {"training": whole.about["training"] | learned}
    save_checkpoint(run / "checkpoint", whole.model, whole.tokenizer, about)
    sha256 = read_config(run / "checkpoint")["sha256"]
    scenes = evaluated(tmp_path / "scenes", SCENES, sha256, ("sheet",))
    breadth = evaluated(tmp_path / "breadth", BREADTH, sha256, ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(SAMPLING))
    main(["--run", str(run), "--evaluation", str(breadth), "--evaluation", str(scenes), "--out", str(tmp_path / "out"),
          "--sampling", str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert ": 12 steps of 4 in 3.5 minutes" in card and "7 steps of\n`python -m model.training.guidance" in card
    assert "left 43% of it out" in card and "guidance_scale`\nof 1" in card


def test_a_card_tells_all_changes_that_were_carried_over() -> None:
    """A note without a device, as earlier versions wrote it, was a KeyError, and of two changes one was told."""
    first = {"steps": 786, "batch": 64, "minutes": 13.0, "share": 0.6, "styles_held_out": False}
    second = {"steps": 5000, "batch": 32, "minutes": 80.0, "share": 1, "device": "2 CPU threads", "carried": first}
    assert carried_over({"carried": second}) == (
        "\n\nAdded is 60% of what 786 more steps of 64 images in 13 minutes, which showed every thing in every style, "
        "changed in\nthe weights before them (`python -m model.training.means --since`)."
        "\n\nAdded is what 5,000 more steps of 32 images on 2 CPU threads in 80 minutes changed in\nthe weights before "
        "them (`python -m model.training.means --since`)."
    )
    assert carried_over({}) == ""


def test_a_carried_change_of_two_legs_counts_both() -> None:
    """Only the last one was told of a change since the weights before both."""
    before = {"name": "a", "sha256": "0" * 64, "training": {"steps": 7, "minutes": 1.0}}
    leg = {"steps": 2000, "minutes": 30.5, "started_from": before}
    first = {"name": "a", "sha256": "1" * 64, "training": leg}
    last = {"steps": 3000, "batch": 32, "minutes": 50.0, "share": 0.8, "started_from": first}
    for since, told in (("0", "5,000 more steps of 32 images in 80.5"), ("1", "3,000 more steps of 32 images in 50 ")):
        assert f"Added is 80% of what {told}" in carried_over({"carried": last | {"since": since * 64}})
    assert "what 3,000 more" in carried_over({"carried": last}) and "what 3,000" in carried_over(
        {"carried": last | {"since": "2" * 64}}
    )


def test_a_card_says_that_the_decoder_is_another_than_the_run_had() -> None:
    """Its PSNR is not that of the tokenizer which the run's own report tells of."""
    told = decoder({"other_decoder_than": {"name": "atlas-128", "sha256": "0123456789abcdef"}})
    assert "--decoder-of`" in told and "the weights 0123456789ab," in told
    assert decoder({"steps": 1}) == ""


def test_a_card_says_unseen_of_what_was_unseen() -> None:
    """It said so of styles even of weights that had seen every thing in every style."""
    assert "a thing in a style that\ntraining never showed" in unseen_words({"style_unseen": 0.174})
    assert unseen_words({"style_unseen": None}).endswith("never showed. Every thing\nwas shown in every style.")
    assert unseen_words({}).endswith("that training never showed.")


def test_a_card_names_the_legs_of_a_training() -> None:
    """It said that training had begun with relation pretraining, whatever weights it began with."""
    first = {"steps": 26463, "minutes": 175.0}
    second = {"steps": 7174, "minutes": 72.0, "started_from": {"name": "small", "sha256": "0", "training": first}}
    assert beginning({"started_from": {"name": "scenes-128", "sha256": "1", "training": second}}) == (
        ", from the weights of scenes-128 (7,174 steps in 72 minutes), which began with those of small (26,463 steps "
        "in 175 minutes)"
    )


def test_a_card_claims_only_what_was_noted(run: Path, tmp_path: Path) -> None:
    """Every run was "on two CPU cores", "after relation pretraining", in all six styles, by a recipe of its name;
    epochs mixed scenes and single things, and settings of the core stood for both suites."""
    raw = json.loads((run / "checkpoint" / "config.json").read_text())
    raw["about"]["name"] = "mine"
    raw["about"]["training"] |= {
        "pictures": 48000, "epochs": 3.7, "singles": 5478, "singles_epochs": 18.4, "scene_styles": ["noto"],
        "relation_steps": 0, "device": "1 × H200",
    }  # fmt: skip
    (run / "checkpoint" / "config.json").write_text(json.dumps(raw))
    counts = {"colors_questions": 100, "colors_seen_questions": 50, "colors_unseen_questions": 0}
    scenes = evaluated(tmp_path / "scenes", SCENES | counts | {"colors_unseen": None}, raw["sha256"], ("sheet",))
    breadth = evaluated(tmp_path / "breadth", BREADTH, raw["sha256"], ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(SAMPLING))
    main(["--run", str(run), "--evaluation", str(scenes), "--evaluation", str(breadth), "--out", str(tmp_path / "out"),
          "--sampling", str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "`python -m model.training`: 12 steps of 4 in 3.5 minutes on 1 × H200. Scenes",
        "48,000 captioned facts (3.7 epochs); single things have 5,478 captions (18.4 epochs)",
        "positions, sizes and backgrounds, in\n  noto:", "settings num_inference_steps 32.",
        "2026-11-28, settings num_inference_steps 16: R-precision",
        "| colors | 90.0% (100) | 90.0% (50) | – | 90.0% |", "In brackets: the number of questions.",
        "which can only be guessed", "| R-precision@1 of 100 | 90.4% | 91.2% (451) | 60.4% | 98.5% |",
    ):  # fmt: skip
        assert said in card, said
    metrics = load_checkpoint(tmp_path / "out").about["metrics"]
    assert metrics["settings"] != metrics["breadth_settings"] and metrics["breadth_images"] == 1514


@pytest.mark.parametrize("damaged", ["scored/report.json", "run/history.json", "sampling.json"])
def test_a_damaged_file_is_named(run: Path, tmp_path: Path, damaged: str) -> None:
    """Only json's message was shown, "Expecting value: line 1 column 1", of which of five files it was."""
    evaluated(tmp_path / "scored", SCENES, read_config(run / "checkpoint")["sha256"], ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(SAMPLING))
    (tmp_path / damaged).write_text("{")
    with pytest.raises(SystemExit, match=rf"{damaged} cannot be read \(Expecting .*\): correct it"):
        main(["--run", str(run), "--evaluation", str(tmp_path / "scored"), "--out", str(tmp_path / "out"),
              "--sampling", str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip


@pytest.mark.parametrize(
    ("report", "sha256", "sampling", "message"),
    [
        (SCENES, "0" * 64, {}, "has the scores of weights 0000"),
        (BREADTH, "", {}, "no card is for the suites breadth: give evaluations of emoji; scenes; scenes and breadth"),
        (
            SCENES,
            "",
            SAMPLING | {"defaults": {"quality": "low", "guidance_scale": 21.0}},
            "defaults: guidance_scale is 21.0, .* takes 0 to 20",
        ),
        (
            SCENES,
            "",
            SAMPLING | {"defaults": {"quality": "low", "num_inference_steps": 0}},
            "defaults: num_inference_steps is 0, .* takes 1 to 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, report: dict[str, Any], sha256: str, sampling: dict[str, Any], message: str
) -> None:
    """A card could state what an earlier checkpoint scored, and every failure left weights without a card."""
    folder = evaluated(tmp_path / "scored", report, sha256 or read_config(run / "checkpoint")["sha256"], ("sheet",))
    (tmp_path / "sampling.json").write_text(json.dumps(sampling))
    with pytest.raises(SystemExit, match=message):
        main(["--run", str(run), "--evaluation", str(folder), "--out", str(tmp_path / "out"),
              "--sampling", str(tmp_path / "sampling.json"), "--description", "A model."])  # fmt: skip
    assert not (tmp_path / "out").exists()
