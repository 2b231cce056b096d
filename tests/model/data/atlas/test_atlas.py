"""The atlas: duplicates and held-out pairs, the packed form, and the bank that training reads."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.atlas.assemble import assemble
from model.data.atlas.atlas_bank import build_atlas_bank, rows_of
from model.data.atlas.atlas_dataset import atlas_dataset
from model.data.atlas.collect import Picture, tinted
from model.data.atlas.hashes import across_the_line, duplicates, fingerprints
from model.data.atlas.store import NUMBER, AtlasSprites, in_styles, is_atlas_folder, open_sprites
from model.data.fixed_sample import load_images
from model.data.scenes.facts import held_out
from model.data.scenes.things import BACKGROUNDS, STYLES
from model.data.sources import DataError
from tests.model.image_set import NOUNS, THINGS_USED, discs, drawing, pictures


def retouched(sprite: np.ndarray) -> np.ndarray:
    """Nearly the same image: a corner of a few pixels changed."""
    out = sprite.copy()
    out[:3, :3] = 255
    return out


@pytest.fixture(scope="module")
def atlas() -> AtlasSprites:
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    return assemble(core, pictures())


@pytest.fixture(scope="module")
def folder(atlas: AtlasSprites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atlas")
    atlas.save(out)
    return out


def test_a_retouched_drawing_is_a_duplicate_and_another_one_is_not() -> None:
    prints = fingerprints([drawing(0), drawing(1), retouched(drawing(0)), drawing(2)])
    assert duplicates(prints, ["a", "a", "a", "a"]) == [2]
    assert duplicates(prints, ["a", "a", "b", "a"]) == []
    assert across_the_line(prints, np.array([True, False, False, False])) == [2]


def test_held_out_pairs_are_those_of_scenes_and_have_no_twin_in_training(atlas: AtlasSprites) -> None:
    held = {(e.noun, e.style) for e in atlas.entries if e.split == "heldout"}
    assert held == {(e.noun, e.style) for e in atlas.entries if not e.sentence and held_out("style", e.noun, e.style)
                    and e.noun in NOUNS}  # fmt: skip
    noun, style = sorted(held)[0]
    twin = next(p for p in pictures() if (p.noun, p.style) == (noun, style))
    leaky = [*pictures(), Picture("copycat", "sticker", retouched(twin.sprite))]
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    again = assemble(core, leaky)
    assert again.about["across_the_line"] == 1 and "copycat" not in {e.noun for e in again.entries}


def test_every_thing_has_one_default_style_that_is_trained(atlas: AtlasSprites) -> None:
    for noun in NOUNS:
        trained = [e for e in atlas.entries if e.noun == noun and e.split == "train"]
        assert sum(e.default for e in trained) == 1
        assert {e.styles for e in trained} == {len(trained)}


def test_a_second_drawing_gets_a_key_of_its_own() -> None:
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    found = assemble(core, [Picture("vase", "noto", drawing(1)), Picture("vase", "noto", drawing(2))])
    assert [entry.key for entry in found.entries] == ["vase #1", "vase #2"]


def test_the_same_pictures_give_the_same_digest(atlas: AtlasSprites) -> None:
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    assert assemble(core, pictures()).about["sha256"] == atlas.about["sha256"]
    first, *rest = pictures()
    other = assemble(core, [Picture(first.noun, first.style, retouched(first.sprite)), *rest]).about
    assert other["sha256"] != atlas.about["sha256"]
    assert {s for s in STYLES if s in other["digests"] and other["digests"][s] != atlas.about["digests"][s]} == {
        first.style
    }


def test_it_survives_disk_and_pickle_without_loading_the_array(atlas: AtlasSprites, folder: Path) -> None:
    loaded = AtlasSprites.load(folder)
    assert loaded.entries == atlas.entries and isinstance(loaded.array, np.memmap)
    assert is_atlas_folder(folder) and isinstance(open_sprites(folder), AtlasSprites)
    sent = pickle.loads(pickle.dumps(loaded))
    assert np.array_equal(sent.array, atlas.array)
    with pytest.raises(TypeError, match="cannot be sent"):
        pickle.dumps(atlas)
    with pytest.raises(DataError, match="make data"):
        AtlasSprites.load(folder / "elsewhere")


def test_a_folder_whose_files_do_not_belong_together_is_rejected(atlas: AtlasSprites, tmp_path: Path) -> None:
    atlas.save(tmp_path)
    np.save(tmp_path / "breadth.npy", atlas.array[:3])
    with pytest.raises(DataError, match="3 cut-outs but"):
        AtlasSprites.load(tmp_path)


def test_the_bank_holds_scenes_then_single_things(atlas: AtlasSprites) -> None:
    bank = build_atlas_bank(atlas, THINGS_USED, STYLES, 40, snap=16, seed=1)
    assert bank.scenes == 40 and len(bank) == 40 + sum(rows_of(entry) for entry in atlas.entries)
    images = bank.images(range(len(bank)), visit=3)
    assert images.shape == (len(bank), 128, 128, 4)
    transparent = np.array([facts.background == "transparent" for facts in bank.facts])
    assert transparent.any()
    opaque = images[..., 3].min((1, 2)) == 255
    assert (opaque == ~transparent).all()
    words = " ".join(bank.captions[40:])
    assert not any(f"{noun}, {style} style" in words for noun in NOUNS for style in ("3d",)
                   if held_out("style", noun, style))  # fmt: skip


def test_the_sample_for_the_tokenizer_has_both_kinds(atlas: AtlasSprites) -> None:
    sample = atlas_dataset(atlas, THINGS_USED, snap=16, train=20, unseen=6)
    assert sample.images.shape == (26, 128, 128, 4)
    assert len(sample.indices("unseen")) == 6
    concepts = {item.concept.partition(NUMBER)[0] for item in sample.items}
    assert concepts & set(NOUNS) and any(concept in THINGS_USED for concept in concepts)


def test_seen_and_unseen_images_have_one_mix_of_kinds_and_true_captions(atlas: AtlasSprites, tmp_path: Path) -> None:
    """Seen images were three fifths single things, unseen ones half, and categories differed too: so did the losses, by
    the mix alone. And captions of single things left out the background."""
    atlas.save(tmp_path)
    about = {"vocabulary": THINGS_USED[:8], "breadth": NOUNS, "breadth_in_one_style": ["anvil"]}
    sample = load_images(tmp_path, None, 16, train=60, unseen=60, about=about)
    kinds = []
    for split in ("train", "unseen"):
        items = [sample.items[row] for row in sample.indices(split)]
        kinds.append([NUMBER in item.concept for item in items])
        shown = {thing for item in items for thing in item.concept.split(" and ") if NUMBER not in thing}
        assert shown and shown <= set(THINGS_USED[:8])
    assert kinds[0] == kinds[1] and sum(kinds[0]) == 36
    names = {colour: name for name, colour in BACKGROUNDS.items()}
    for item, image in zip(sample.items, sample.images, strict=True):
        if NUMBER in item.concept:
            *colour, alpha = image[0, 0].tolist()
            ground = re.search(r" on a (\w+) background$", item.captions[0])
            assert (ground[1] if ground else "white") == ("transparent" if alpha == 0 else names[tuple(colour)])


def test_what_a_training_showed_is_not_measured_as_held_out(atlas: AtlasSprites, tmp_path: Path) -> None:
    """Two of five "unseen" scenes showed nothing new but a style that the checkpoint had seen its things in."""
    atlas.save(tmp_path)

    def of_one_thing(training: dict[str, Any]) -> list[int]:
        """Images of one thing in its own colours, seen and unseen."""
        sample = load_images(tmp_path, None, 16, 200, 200, {"vocabulary": THINGS_USED, "training": training})
        found = re.compile(r"an? ([a-z ]+), \w+ style( on an? \w+ background)?")
        matches = [found.fullmatch(item.captions[0]) for item in sample.items]
        alone = [match is not None and match[1] in THINGS_USED for match in matches]
        return [sum(alone[:200]), sum(alone[200:])]

    seen, unseen = of_one_thing({})
    assert seen > 4 and unseen > 4
    assert of_one_thing({"carried": {"styles_held_out": False}}) == [0, 0], "one mix of categories, as before"


@pytest.mark.parametrize("about", [{}, {"breadth": NOUNS, "breadth_styles": ["3d", "noto"]}])
def test_single_things_of_which_none_is_held_out_are_not_compared(
    atlas: AtlasSprites, about: dict[str, Any], tmp_path: Path
) -> None:
    """A checkpoint that has never seen them, or in two styles alone, was measured on those of every style."""
    assert all(entry.split == "train" for entry in in_styles(atlas.entries, ("3d", "noto")))
    atlas.save(tmp_path)
    sample = load_images(tmp_path, 12, 16, train=20, unseen=20, about=about)
    assert not any(NUMBER in item.concept for item in sample.items)


def test_one_colour_things_take_the_colour() -> None:
    sprite = drawing(3)
    assert np.array_equal(tinted(sprite, "black"), sprite)
    red = tinted(sprite, "red")
    assert (red[..., 0] > 150).all() and (red[..., 1] < 100).all() and np.array_equal(red[..., 3], sprite[..., 3])
