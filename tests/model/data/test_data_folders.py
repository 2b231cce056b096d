"""A data folder of another kind, or with damaged files, ends in one line that says which and what to do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.atlas.assemble import assemble
from model.data.atlas.store import AtlasSprites
from model.data.dataset import Dataset
from model.data.scenes.sprites import Sprites
from model.data.sources import DataError
from model.training.latents.store import LatentCache
from tests.model.image_set import THINGS_USED, discs, pictures, squares

LOADERS: dict[str, Any] = {
    "packed images": Dataset.load, "sprites of scenes": Sprites.load, "an atlas": AtlasSprites.load,
    "encoded images": LatentCache,
}  # fmt: skip


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    folders = {kind: tmp_path_factory.mktemp("kinds") / kind.split()[-1] for kind in LOADERS}
    squares().save(folders["packed images"])
    core = discs(THINGS_USED[:2])
    core.about["sha256"] = "0"
    core.save(folders["sprites of scenes"])
    assemble(core, pictures()[:8]).save(folders["an atlas"])
    encoded = folders["encoded images"]
    encoded.mkdir()
    np.save(encoded / "latents.npy", np.zeros((2, 4, 3), np.float16))
    (encoded / "captions.jsonl").write_text('{"caption": "a"}\n{"caption": "b"}\n')
    (encoded / "about.json").write_text('{"format": "latents", "images": 2}')
    return folders


def test_data_that_are_built_again_leave_the_old_ones_to_those_who_read_them(tmp_path: Path) -> None:
    """The array was written in place: a training that had mapped it was killed by a bus error."""
    core = discs(THINGS_USED[:2])
    core.about["sha256"] = "0"
    assemble(core, pictures()[:8]).save(tmp_path)
    read = AtlasSprites.load(tmp_path)
    before = np.array(read.array)
    assemble(core, pictures()[:4]).save(tmp_path)
    assert np.array_equal(read.array, before) and len(AtlasSprites.load(tmp_path).entries) < len(read.entries)
    assert not (tmp_path / ".partial").exists()


def test_a_build_that_is_killed_leaves_the_old_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New pixels stood under the old digest, which went into checkpoints."""
    squares().save(tmp_path)
    digest = Dataset.load(tmp_path).digest()
    whole = Path.write_text

    def fail(file: Path, *args: Any, **named: Any) -> int:
        if file.name == "about.json":
            raise OSError(28, "No space left on device")
        return whole(file, *args, **named)

    other = squares()
    other.images[:] = 7
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        other.save(tmp_path)
    assert Dataset.load(tmp_path).digest() == digest


def test_a_folder_of_another_kind_is_named_with_what_it_is_for(kinds: dict[str, Path]) -> None:
    """Every kind has about.json, the one file that was looked for: the rest was a FileNotFoundError."""
    for wanted, load in LOADERS.items():
        for held, folder in kinds.items():
            if held == wanted or (held, wanted) == ("an atlas", "sprites of scenes"):
                load(folder)
                continue
            with pytest.raises(DataError, match=rf"holds {held}, for recipes .*choose a folder with {wanted}, which `"):
                load(folder)


def test_an_atlas_without_its_sprites_is_one_to_make_again(kinds: dict[str, Path], tmp_path: Path) -> None:
    """The breadth is written first: a killed `make data` left a folder that was told to hold the wrong kind of data."""
    folder = shutil.copytree(kinds["an atlas"], tmp_path / "atlas")
    (folder / "sprites.npz").unlink()
    for load in (AtlasSprites.load, Sprites.load):
        with pytest.raises(DataError, match=r"an atlas that is not complete: sprites\.npz is missing; run `make data`"):
            load(folder)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("packed images", "images.npy"), ("packed images", "items.jsonl"), ("packed images", "about.json"),
        ("sprites of scenes", "sprites.npz"), ("sprites of scenes", "about.json"), ("an atlas", "breadth.npy"),
        ("an atlas", "breadth.jsonl"), ("encoded images", "latents.npy"), ("encoded images", "captions.jsonl"),
        ("encoded images", "about.json"),
    ],
)  # fmt: skip
def test_damaged_files_say_what_to_do_again(kinds: dict[str, Path], kind: str, file: str, tmp_path: Path) -> None:
    """Truncated JSON and arrays ended in JSONDecodeError, EOFError, BadZipFile and the like."""
    remedy = "build it again" if kind == "encoded images" else "run `make data` again"
    whole = (kinds[kind] / file).read_bytes()
    for number, content in enumerate((b"", whole[: len(whole) // 2], b"null\n", b"[3]\n", b"\xff\xfe")):
        folder = shutil.copytree(kinds[kind], tmp_path / str(number))
        (folder / file).write_bytes(content)
        with pytest.raises(DataError, match=remedy):
            LOADERS[kind](folder)
    if file not in ("images.npy", "sprites.npz", "breadth.jsonl", "latents.npy"):  # by which a kind is known
        (folder / file).unlink()
        with pytest.raises(DataError, match=rf"FileNotFoundError.*{remedy}"):
            LOADERS[kind](folder)


def test_captions_may_have_every_character(tmp_path: Path) -> None:
    """`splitlines` cuts at U+2028 and U+0085, which JSON has within its texts: the set could not be read back."""
    data = squares()
    data.items[0] = replace(data.items[0], captions=("one\u2028two\u0085three",))
    data.save(tmp_path)
    assert "\u2028" in (tmp_path / "items.jsonl").read_text(encoding="utf-8")
    assert Dataset.load(tmp_path).items == data.items
