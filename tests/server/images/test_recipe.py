"""Any picture can be made again from its own file."""

import io
from pathlib import Path

import pytest
from PIL import Image

from server.errors import InvalidRequest
from server.images.codec import MIME, encode, read_metadata
from server.images.recipe import difference, read_recipe
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from tests.server.harness import Service, fluid

DIALS = {
    "n": 2, "num_inference_steps": 5, "diffusion_steps": 6, "guidance_scale": 2.5, "guidance_schedule": "constant",
    "temperature": 0.9, "order": "halton", "diffusion_steps_final": 3, "guidance_interval": [0.1, 0.9],
}  # fmt: skip


@pytest.mark.parametrize("format", MIME)
def test_the_client_draws_a_picture_again_from_its_file(service: Service, format: str) -> None:
    """Every dial of the recipe, in every format; the second image of a request as well."""
    pictures = service.client.generate("a ☕ cat", seed=2**62, output_format=format, **DIALS)
    for picture in pictures:
        [again] = service.client.like(picture.data, output_format=format)
        assert again.data == picture.data
        assert again.warnings == ()


def test_other_weights_are_told(service: Service) -> None:
    [picture] = service.client.generate("a cat", seed=1)
    recipe = (read_metadata(picture.data) or {}) | {"checkpoint_sha256": "ab" * 32}
    file = encode(bytes(12), (2, 2), "png", 100, recipe)
    [again] = service.client.like(file)
    assert again.data == picture.data  # the fake's weights draw alike
    assert "drawn by checkpoint abababababab" in again.warnings[0]
    assert difference({}, "x")[0].startswith("The picture was drawn by checkpoint unknown")


def test_edits_and_variations_by_our_client(service: Service) -> None:
    """They cannot come again from their file alone, which is said with the way that works."""
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(buffer, "PNG")
    [edited] = service.client.edit("a cat", buffer.getvalue(), seed=3, guidance_interval=[0.0, 0.5])
    [varied] = service.client.vary(edited.data, keep=0.5, seed=4)
    assert "a cat" in varied.warnings[0]
    for picture, kind, seed in ((edited, "edit", 3), (varied, "variation", 4)):
        with pytest.raises(InvalidRequest, match=f"is the {kind} of another one.*seed {seed}"):
            read_recipe(picture.data)


def test_the_command_draws_it_again_and_changes_what_is_asked(settings: Settings, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first.webp", "again.webp", "other.webp"))
    assert fluid(settings, "generate", "a cat", "--seed", "5", "--steps", "3", "--out", str(first)).returncode == 0
    done = fluid(settings, "generate", "--like", str(first), "--out", str(again))
    assert done.returncode == 0 and done.stderr.count("checkpoint") == 0, done.stderr
    assert again.read_bytes() == first.read_bytes()
    done = fluid(settings, "generate", "a dog", "--like", str(first), "--out", str(other))
    assert (read_metadata(other.read_bytes()) or {})["prompt"] == "a dog"
    assert (read_metadata(other.read_bytes()) or {})["seed"] == 5
    foreign = encode(bytes(12), (2, 2), "png", 100, {"seed": 1, "prompt": "x", "checkpoint_sha256": "ab" * 32})
    (tmp_path / "foreign.png").write_bytes(foreign)
    done = fluid(settings, "generate", "--like", str(tmp_path / "foreign.png"), "--out", str(other))
    assert done.returncode == 0
    assert f"this one is by {FakeEngine(1, 0, settings.checkpoint).sha256[:12]}" in done.stderr


def test_files_without_a_recipe_are_refused(settings: Settings, tmp_path: Path) -> None:
    """A message, never a traceback."""
    cases = {
        "missing.png": None,
        "text.png": b"hello",
        "bare.png": encode(bytes(12), (2, 2), "png", 100, {}),
        "wrong.png": encode(bytes(12), (2, 2), "png", 100, {"seed": "x", "prompt": "x"}),
    }
    for name, data in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        done = fluid(settings, "generate", "--like", str(tmp_path / name), "--out", str(tmp_path / "out.png"))
        assert done.returncode == 2, name
        assert "Traceback" not in done.stderr and done.stderr.startswith("fluid generate: "), done.stderr
    assert fluid(settings, "generate").returncode == 2
