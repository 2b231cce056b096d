"""Clip art, portraits and tags: captions are true, and a missing program or package is an error that says so."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data import build_scenes
from model.data.scenes import portraits
from model.data.scenes.bank import build_bank
from model.data.scenes.build_sprites import add_optional_sprites, tags
from model.data.scenes.clipart import FILES, SHA256, SVG_FOLDER, fetch_clipart, render_clipart
from model.data.scenes.compose import PORTRAIT_SIDE
from model.data.scenes.dataset import scene_dataset
from model.data.scenes.facts import PORTRAIT, Grammar, unseen
from model.data.scenes.portraits import CORE_PACKAGE, GLASSES, HAIR, PORTRAITS, SHIRTS, Look, looks, render_portraits
from model.data.scenes.sprites import SIDE, Sprites
from model.data.scenes.things import COLOURS, STYLES, THINGS
from model.data.sources import CAPTIONS_PACKAGE, DataError
from tests.model.image_set import discs

THINGS_USED = tuple(THINGS)[:12]
NODE = """#!{python}
import json, sys
for number, _ in enumerate(json.load(sys.stdin)):
    page = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
    svg = f'{{page}}<circle cx="4" cy="4" r="{{1 + number % 4}}"/></svg>'
    print(json.dumps({{"svg": svg, "traits": {{}}}}))
"""


def asked(look: Look, name: str) -> bool:
    """Return True if DiceBear was asked for this option with certainty; options left to chance fail."""
    share = look.options[f"{name}Probability"]
    assert share in (0, 100)
    return bool(share)


@pytest.mark.parametrize("style", PORTRAITS)
def test_a_portrait_is_described_by_its_options(style: str) -> None:
    eyes = "accessories" if style == "peeps" else "glasses"
    words = {"glasses": eyes, "beard": "beard", "flowers": "hairAccessories"}
    for look in looks(style, 200):
        said = f"{look.mood} {' '.join(look.traits)} {look.clothes}"
        for word, option in words.items():
            if f"{option}Probability" in look.options:
                assert asked(look, option) == (word in said), said
        for word, option, table in (("hair", "hairColor", HAIR), ("shirt", "clothingColor", SHIRTS)):
            if option in look.options:
                [name] = [key for key, value in table.items() if [value] == look.options[option]]
                assert f"{name} {word}" in said
        if "round glasses" in said:
            assert look.options["glasses"] == GLASSES["round glasses"]
        if look.mood in ("happy", "sad"):
            assert all(mouth.startswith(look.mood) for mouth in look.options["mouth"])
        if asked(look, "beard" if style != "peeps" else "facialHair"):
            assert not look.mood  # the mouth is hidden


def test_every_wording_of_a_portrait_states_the_same() -> None:
    look = Look({}, "happy", ("green hair", "round glasses", "flowers in the hair"))
    thing = look.thing("lorelei", 7)
    assert thing.label == "portrait lorelei 007" and thing.name.startswith(
        "happy person with green hair, round glasses"
    )
    for wording in (thing.name, *thing.synonyms):
        assert all(word in wording for word in ("happy", *look.traits))
    dressed = Look({}, "angry", ("an afro",), "in a red shirt").thing("peeps", 0)
    assert all(wording.endswith("with an afro in a red shirt") for wording in (dressed.name, *dressed.synonyms))


def test_half_of_a_package_is_not_taken_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that was killed while it copied a package of avatars left a part, which every later build used."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "index.js").write_text("whole")
    monkeypatch.setattr(portraits, "fetch_package", lambda spec, cache: package)

    def killed(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(portraits.shutil, "copytree", killed)
        portraits._installed("@dicebear/core@9.4.3", tmp_path)
    folder = portraits._installed("@dicebear/core@9.4.3", tmp_path)
    assert [file.name for file in folder.iterdir()] == ["index.js"] and len(list(folder.parent.iterdir())) == 1


@pytest.fixture
def more() -> Sprites:
    """Sprites of discs, some of which count as clip art and some as portraits."""
    plain = discs(THINGS_USED)
    known = [look.thing(style, number) for style in PORTRAITS for number, look in enumerate(looks(style, 20))]
    rgba = dict(plain.rgba)
    rgba |= {(thing, "clipart"): plain.rgba[thing, "flat"] for thing in THINGS_USED[:3]}
    rgba |= {(each.label, each.label.split()[1]): plain.rgba[THINGS_USED[0], "flat"] for each in known}
    about = {"name": "more", "tags": {"apple": ["fruit"], "cat": ["animal", "pet"]}}
    return Sprites(rgba, about | {"portraits": [asdict(each) for each in known]})


def test_captions_with_portraits_and_tags_are_true(more: Sprites, tmp_path: Path) -> None:
    more.save(tmp_path)
    again = Sprites.load(tmp_path)
    assert again.styles == (*STYLES, "clipart") and again.words == more.words
    first, second = (build_bank(s, THINGS_USED, s.styles, 600, 16, 3, portraits=0.3, tags=0.5) for s in (more, again))
    assert first.captions == second.captions
    portraits = [row for row, facts in enumerate(first.facts) if facts.category == PORTRAIT]
    assert 0.2 < len(portraits) / 600 < 0.4 and not any(unseen(facts) for facts in first.facts)
    for row in portraits:
        scene = first.scene(row, visit=1)
        [group] = scene.facts.groups
        described = more.words[group.thing]
        assert any(wording in first.captions[row] for wording in (described.name, *described.synonyms))
        assert [placed.side for placed in scene.objects] == [PORTRAIT_SIDE]
        assert first.image(row, visit=1).shape == (128, 128, 3)
    tagged = [
        (facts, ending) for facts, text in zip(first.facts, first.captions, strict=True)
        if (ending := text.split(", ")[-1]) in ("fruit", "animal", "pet")
    ]  # fmt: skip
    assert len(tagged) > 20
    for facts, tag in tagged:
        assert any(tag in more.tags.get(group.thing, ()) for group in facts.groups)
    assert any(facts.style == "clipart" for facts in first.facts)


def test_captions_do_not_change_without_portraits_and_tags(more: Sprites) -> None:
    """The captions that the shipped checkpoint was trained with must stay the same."""
    plain = discs(THINGS_USED)
    banks = [build_bank(sprites, THINGS_USED, STYLES, 50, 16, 3) for sprites in (plain, more)]
    assert banks[0].captions == banks[1].captions
    with pytest.raises(DataError, match="no portraits"):
        build_bank(plain, THINGS_USED, STYLES, 50, 16, 3, portraits=0.5)


def test_the_tokenizer_trains_on_portraits_too(more: Sprites) -> None:
    dataset = scene_dataset(more, THINGS_USED, 16, train=16, unseen=6)
    assert sum(item.style in PORTRAITS for item in dataset.items) == 2
    assert not Grammar(discs(THINGS_USED), THINGS_USED, STYLES).portraits


def test_tags_are_neither_colours_nor_things() -> None:
    table = [{"label": thing.label, "tags": ["red", "animal", "kitty", "lol"]} for thing in THINGS.values()]
    found = tags(table)
    assert found["cat"] == ["animal"] and set(found) == set(THINGS)
    assert not {tag for kept in found.values() for tag in kept} & set(COLOURS)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH to put programs in, and a package cache as npm would leave it."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for package in (CAPTIONS_PACKAGE, CORE_PACKAGE, *(source.package for source, _ in PORTRAITS.values())):
        folder = tmp_path / "cache" / package.replace("/", "+")
        (folder / "en").mkdir(parents=True)
        (folder / "package.json").write_text("{}")
    table: list[dict[str, Any]] = [{"label": "lemon", "tags": ["fruit"], "hexcode": "1F34B"}]
    (tmp_path / "cache" / CAPTIONS_PACKAGE.replace("/", "+") / "en" / "data.json").write_text(json.dumps(table))
    return tmp_path


def install(tools: Path, name: str, script: str) -> None:
    (tools / "bin" / name).write_text(script)
    (tools / "bin" / name).chmod(0o755)


def test_portraits_come_with_words_and_clip_art_is_optional(tools: Path) -> None:
    install(tools, "node", NODE.format(python=sys.executable))
    plain = Sprites(discs(THINGS_USED).rgba, {"name": "discs", "sources": []})
    more, left_out = add_optional_sprites(plain, tools / "cache", portraits_each=5)
    assert len(left_out) == 1 and "no apt" in left_out[0]
    assert len(more.rgba) == len(plain.rgba) + 5 * len(PORTRAITS)
    assert more.rgba["portrait pixel 004", "pixel"].shape == (SIDE, SIDE, 4)
    assert more.words["portrait pixel 004"].name.startswith("person with") and more.tags == {"lemon": ["fruit"]}
    assert {source["style"] for source in more.about["sources"]} == set(PORTRAITS)
    assert add_optional_sprites(plain, tools / "cache", portraits_each=5)[0].about == more.about


def test_errors_name_a_missing_program_or_carry_its_message(tools: Path) -> None:
    with pytest.raises(DataError, match=r"Node\.js is not installed"):
        render_portraits("pixel", looks("pixel", 1), tools / "cache", 32)
    install(tools, "node", "#!/bin/sh\necho 'SyntaxError: here' >&2\nexit 1\n")
    with pytest.raises(DataError, match="SyntaxError: here"):
        render_portraits("pixel", looks("pixel", 1), tools / "cache", 32)
    install(tools, "apt-get", "#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
    with pytest.raises(DataError, match="no such package"):
        fetch_clipart(tools / "cache")


def test_drawings_that_differ_from_the_chosen_ones_are_rejected(tools: Path) -> None:
    folder = tools / "cache" / "openclipart" / SVG_FOLDER
    for file in FILES.values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("<svg/>")
    with pytest.raises(DataError, match=f"{len(FILES)} of {len(FILES)} drawings .*expected {SHA256['sun']}, got "):
        fetch_clipart(tools / "cache")


def test_every_chosen_drawing_has_its_own_checksum() -> None:
    """A drawing was removed from the list while the one checksum over all drawings stayed: from then on the package
    matched on no machine, and every `make data` left clip art out."""
    assert set(SHA256) == set(FILES) and all(len(digits) == 16 for digits in SHA256.values())


def test_a_source_that_differs_ends_make_data(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to be left out with one line of output among others, and `make data` exited with status 0."""
    plain = Sprites(discs(THINGS_USED).rgba, {"name": "discs", "sources": []})
    monkeypatch.setattr(build_scenes, "build_sprites", lambda _: plain)
    (tools / "cache" / "openclipart" / SVG_FOLDER).mkdir(parents=True)
    with pytest.raises(SystemExit, match=rf"nothing was written.*{len(FILES)} of.*, got nothing") as ended:
        build_scenes.main(["--more", "--cache", str(tools / "cache"), "--out", str(tools / "out")])
    assert ended.value.code and not (tools / "out").exists()


def test_a_drawing_sized_in_millimetres_is_rendered(tmp_path: Path) -> None:
    """A third of the library has no viewBox and sizes like 210mm, which the renderer calls invalid."""
    assert set(FILES) < set(THINGS)
    (tmp_path / FILES["sun"]).parent.mkdir(parents=True)
    page = '<svg width="210mm" height="297mm" xmlns="http://www.w3.org/2000/svg">'
    (tmp_path / FILES["sun"]).write_text(f'{page}<rect width="372" height="526" fill="red"/></svg>')
    alpha = np.asarray(render_clipart(tmp_path, "sun", 64))[..., 3] > 128
    assert 0.15 < alpha.mean() < 0.35  # a quarter of the page
    (tmp_path / FILES["sun"]).write_text("nothing")
    with pytest.raises(DataError, match="is not an SVG"):
        render_clipart(tmp_path, "sun", 64)
