"""`fluid edit` and `fluid vary` against a running service."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.server.harness import Service, fluid


@pytest.fixture
def original(service: Service, tmp_path: Path) -> Path:
    return service.client.generate("a cat", seed=3)[0].save(tmp_path / "cat.png")


def pixels(path: Path, box: tuple[int, int, int, int] | None = None) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").crop(box).tobytes()


def test_a_box_is_regenerated_and_the_rest_stays(service: Service, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "dog.png"
    words = [
        "edit",
        str(original),
        "a dog",
        "--box",
        "0",
        "16",
        "32",
        "32",
        "--feather",
        "0",
        "--seed",
        "9",
        "-o",
        str(out),
    ]
    done = fluid(service.settings, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}  seed 9\n"
    assert pixels(out, (0, 0, 32, 16)) == pixels(original, (0, 0, 32, 16))
    assert pixels(out, (0, 16, 32, 32)) != pixels(original, (0, 16, 32, 32))


def test_a_mask_edits_several_images_into_numbered_files(service: Service, original: Path, tmp_path: Path) -> None:
    mask = Image.new("RGBA", (32, 32), "black")
    mask.paste((0, 0, 0, 0), (0, 16, 32, 32))
    mask.save(tmp_path / "mask.png")
    words = ["edit", str(original), "a dog", "--mask", str(tmp_path / "mask.png"), "--n", "2", "--seed", "9"]
    done = fluid(service.settings, *words, "-o", str(tmp_path / "new" / "dog.webp"))
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in made] == ["dog-0.webp", "dog-1.webp"]
    assert all(Image.open(io.BytesIO(path.read_bytes())).format == "WEBP" for path in made)


def test_a_variation_takes_its_prompt_from_the_file(service: Service, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    done = fluid(service.settings, "vary", str(original), "--keep", "0.3", "--seed", "5", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "The prompt was taken from the image: 'a cat'." in done.stderr
    assert pixels(out) != pixels(original)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edit", "none.png", "a dog", "--box", "0", "0", "9", "9", "-o", "x.png"], "cannot read none.png"),
        (["edit", "{original}", "a dog", "--box", "0", "0", "99", "9", "-o", "x.png"], "which has 32x32 pixels"),
        (["edit", "{original}", "a dog", "--box", "0", "0", "9", "9", "-o", "x.gif"], ".png, .webp or .jpg"),
        (["vary", "{text}", "-o", "x.png"], "not a complete PNG, WebP or JPEG file"),
        (["edit", "{text}", "a dog", "--box", "0", "0", "9", "9", "-o", "x.png"], "is not a PNG, WebP or JPEG file"),
        (["vary", "{original}", "--keep", "1", "-o", "x.png"], "'keep'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    service: Service, original: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not an image")
    done = fluid(service.settings, *(word.format(original=original, text=text) for word in words))
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2 and "Traceback" not in done.stderr
