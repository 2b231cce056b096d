"""What cannot be read of one's own images is skipped and listed, whatever is wrong with it."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.data.sources import DataError
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.tokenizer_folder import save_tokenizer
from model.presets import PRESETS
from model.training.latents.build import SKIPPED, build, main
from model.training.latents.sources import captioned_images, square
from model.training.latents.store import LatentCache

MAKE_AS_FLOAT, DENSITY_AS_TEXT = (0x010F, 11, 1, 70000), (0x011A, 2, 2, 20)  # EXIF entries of another type


def picture(entry: tuple[int, ...] = ()) -> bytes:
    """A JPEG, with this EXIF entry after an orientation that turns the image."""
    file, entries = io.BytesIO(), [(0x0112, 3, 1, 6), entry]
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + b"".join(struct.pack("<HHII", *each) for each in entries if each)
    Image.new("RGB", (16, 16), "red").save(file, "JPEG", exif=exif + bytes(20) if entry else b"")
    return file.getvalue()


def tokenizer() -> PcaSkipTokenizer:
    torch.manual_seed(0)
    return PcaSkipTokenizer(PRESETS["tiny"].tokenizer).eval()  # type: ignore[arg-type]


def test_one_unreadable_image_or_caption_does_not_end_the_build(tmp_path: Path) -> None:
    """A caption in Latin-1 ended the pass that counts, a dangling link or a folder named like an image the encoding."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("good", "latin", "dangling", "folder", "exif"):
        (photos / f"{name}.txt").write_text(name)
    (photos / "good.jpg").write_bytes(picture())
    (photos / "latin.jpg").write_bytes(picture())
    (photos / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (photos / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "folder.jpg").mkdir()
    (photos / "exif.jpg").write_bytes(picture(MAKE_AS_FLOAT))
    about = build(photos, tokenizer(), 16, tmp_path / "out")
    skipped = (tmp_path / "out" / SKIPPED).read_text().splitlines()
    assert about["images"] == 1 and LatentCache(tmp_path / "out").captions == ["good"]
    assert [line.partition(":")[0] for line in skipped] == ["dangling.jpg", "exif.jpg", "folder.jpg", "latin.jpg"]
    assert any("latin.jpg: no caption in UTF-8 in latin.txt" in line for line in skipped)


@pytest.mark.parametrize(("entry", "error"), [(MAKE_AS_FLOAT, "AttributeError"), (DENSITY_AS_TEXT, "TypeError")])
def test_damaged_exif_data_are_a_damaged_image(entry: tuple[int, ...], error: str) -> None:
    """Pillow raises struct.error, TypeError, AttributeError or KeyError for them, of which none was caught."""
    assert square(picture(), 8).size == (8, 8)
    with pytest.raises(ValueError, match=f"no image that can be read .{error}: "):
        square(picture(entry), 8)


def test_metadata_is_read_by_lines_of_json(tmp_path: Path) -> None:
    """`splitlines` cut a line at U+2028; other encodings, and names no file can have, were tracebacks."""
    (tmp_path / "a.jpg").write_bytes(picture())
    metadata = tmp_path / "metadata.jsonl"
    row = {"file_name": "a.jpg", "text": "one\u2028two\u0085three"}
    metadata.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert [image.caption for image in captioned_images(tmp_path)] == ["one two three"]
    for name, text in (("a\0.jpg", "x"), ("a" * 5000, "x"), (3, "x"), ("a.jpg", None), ("a.jpg", ["one", "two"])):
        metadata.write_text(json.dumps({"file_name": name, "text": text}))
        with pytest.raises(DataError, match="line 1 needs the strings `file_name` and `text`"):
            list(captioned_images(tmp_path))
    metadata.write_bytes('{"file_name": "a.jpg", "text": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        list(captioned_images(tmp_path))


@pytest.mark.parametrize("damaged", [b"{", b'{"caption": null}', b'{"caption": ["one", "two"]}'])
def test_one_damaged_json_of_a_tar_is_skipped(damaged: bytes, tmp_path: Path) -> None:
    """It made the whole tar unreadable; a list of captions, and null, were trained on as the words of their code."""
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        for name, data in (("a.jpg", picture()), ("a.json", damaged), ("b.jpg", picture()), ("b.txt", b"b")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    first, second = captioned_images(tmp_path / "a.tar")
    assert second.caption == "b"
    with pytest.raises(ValueError, match="no caption in its JSON"):
        first.read()


def test_an_image_with_an_empty_caption_is_skipped(tmp_path: Path) -> None:
    """It was trained on without words; in a tar it never was."""
    for name, caption in (("a", " \n"), ("b", "b")):
        (tmp_path / f"{name}.jpg").write_bytes(picture())
        (tmp_path / f"{name}.txt").write_text(caption)
    first, second = captioned_images(tmp_path)
    assert second.read() == picture()
    with pytest.raises(ValueError, match="caption is empty"):
        first.read()


@pytest.mark.parametrize("flags", [("--limit", "0"), ("--limit", "-1"), ("--size", "0")])
def test_numbers_that_cannot_be_are_refused(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They ended in IndexError, ValueError and ZeroDivisionError."""
    save_tokenizer(tmp_path, tokenizer(), {})
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--tokenizer", str(tmp_path), "--out", str(tmp_path / "out"), *flags])
    assert ended.value.code == 2
    assert f"argument {flags[0]}: '{flags[1]}' is not a whole number, 1 or more" in capsys.readouterr().err
