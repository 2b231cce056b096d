"""Your own images with captions: what is read, that it is encoded once, and that a model trains on it."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import load_checkpoint
from model.config import ConfigError, KlConfig
from model.conversion.kinds import import_weights
from model.data.sources import DataError
from model.networks.autoencoders.kl_tokenizer import KlTokenizer
from model.networks.tokenizer import encode_tokens, to_pixels
from model.networks.tokenizer_folder import load_tokenizer_folder
from model.presets import PRESETS
from model.training.latents.build import build, main
from model.training.latents.sources import captioned_images, square
from model.training.latents.store import LatentCache
from model.training.reconstruction.load import load_tokenizer
from model.training.train import main as train
from tests.model.conftest import system_config

pytest.importorskip("diffusers")
SMALL = KlConfig(widths=(8, 8, 8, 8), layers=1, groups=4, latent_channels=4, attention=False, patch=2, scale=0.18215)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (255, 255, 255)}


def png(colour: tuple[int, ...], size: tuple[int, int] = (48, 32)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL as diffusers saves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "sd-vae-ft-mse"
    vae = KlTokenizer(SMALL).vae
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "sd-vae"
    assert import_weights(autoencoder, folder) == ""
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images with captions, one without, and one that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, (name, colour) in enumerate(COLOURS.items()):
        path = folder / ("more" if i % 2 else ".") / f"{name}.png"
        path.write_bytes(png(colour))
        path.with_suffix(".txt").write_text(f"a {name}\nwall ")
    (folder / "alone.png").write_bytes(png((0, 0, 0)))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    (folder / "broken.txt").write_text("broken")
    return folder


def tar_of(folder: Path, tar: Path) -> None:
    with tarfile.open(tar, "w") as opened:
        for name, colour in COLOURS.items():
            text, suffix = f"a {name} wall", "txt"
            if name == "blue":
                text, suffix = json.dumps({"caption": text}), "json"
            for kind, data in (("png", png(colour)), (suffix, text.encode())):
                member = tarfile.TarInfo(f"part.0/{name}.{kind}")
                member.size = len(data)
                opened.addfile(member, io.BytesIO(data))


def test_an_autoencoder_of_diffusers_becomes_a_tokenizer(autoencoder: Path, tokenizer_folder: Path) -> None:
    """`train` used to refuse every tokenizer but our own, and blamed the sizes."""
    tokenizer = load_tokenizer_folder(tokenizer_folder)
    assert tokenizer.config == SMALL
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    official = AutoencoderKL.from_pretrained(autoencoder).eval()
    pixels = to_pixels(torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)))
    with torch.no_grad():
        latents = official.encode(pixels).latent_dist.mode() * 0.18215  # (1, 4, 4, 4)
        torch.testing.assert_close(encode_tokens(tokenizer, pixels)[0, 0], latents[0, :, :2, :2].flatten())
    with pytest.raises(ConfigError, match="import it with `fluid import"):
        load_tokenizer(PRESETS["166M"], str(autoencoder))
    with pytest.raises(ConfigError, match="does not fit the preset"):
        load_tokenizer(PRESETS["166M"], str(tokenizer_folder))


@pytest.mark.parametrize("whole", [False, True])
def test_the_autoencoder_of_a_latent_diffusion_file(tmp_path: Path, autoencoder: Path, whole: bool) -> None:
    """Alone, or inside a whole model, in the names of before diffusers."""
    from model.conversion.ldm_names import ldm_name

    torch.manual_seed(1)
    config = replace(SMALL, widths=(32, 32, 32, 32), groups=32)
    ours = KlTokenizer(config)
    state = {}
    for key, value in ours.vae.state_dict().items():
        name = ldm_name(key, len(config.widths))
        square_of = name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight"))
        state[("first_stage_model." if whole else "") + name] = value[..., None, None] if square_of else value
    if whole:
        state["model.diffusion_model.out.0.weight"] = torch.zeros(1)
    file = tmp_path / "v1-5.ckpt"
    torch.save({"state_dict": state}, file)
    import_weights(file, tmp_path / "sd", "autoencoder" if whole else None)
    found = load_tokenizer_folder(tmp_path / "sd")
    assert found.config == config
    assert all(torch.equal(value, ours.vae.state_dict()[key]) for key, value in found.vae.state_dict().items())


def test_captions_come_from_files_beside_metadata_or_tars(photos: Path, tmp_path: Path) -> None:
    expected = {f"a {name} wall" for name in COLOURS}
    assert {image.caption for image in captioned_images(photos)} == expected | {"broken"}
    tar_of(photos, tmp_path / "shard-0.tar")
    assert {image.caption for image in captioned_images(tmp_path / "shard-0.tar")} == expected
    assert [image.read() for image in captioned_images(tmp_path)] == [png(colour) for colour in COLOURS.values()]
    rows = [{"file_name": "alone.png", "text": "nothing"}]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [image.caption for image in captioned_images(photos)] == ["nothing"]
    (photos / "metadata.jsonl").write_text('{"file_name": "../../etc/passwd", "text": "x"}\n')
    with pytest.raises(DataError, match="line 1 names a file elsewhere"):
        list(captioned_images(photos))


def test_images_are_cut_to_their_centre_and_transparency_is_white() -> None:
    found = np.asarray(square(png((9, 8, 7, 0), (64, 32)), 16))
    assert found.shape == (16, 16, 3) and (found == 255).all()
    file = io.BytesIO()
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste((0, 0, 255), (16, 0, 48, 32))
    wide.save(file, "PNG")
    assert (np.asarray(square(file.getvalue(), 32)) == (0, 0, 255)).all()


def test_a_model_trains_on_encoded_images(
    photos: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From a folder of images to a checkpoint that loads; what cannot be read is listed. There was no sheet to check
    captions by, as all other data have one."""
    out = tmp_path / "encoded"
    main([str(photos), "--tokenizer", str(tokenizer_folder), "--size", "64", "--out", str(out)])
    assert "4 images" in capsys.readouterr().out and "broken.jpg" in (out / "skipped.txt").read_text()
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width == 4 * (64 + 4) + 4
    cache = LatentCache(out)
    assert cache.latents.shape == (4, 16, 16) and cache.latents.dtype == np.float16
    tiny = replace(system_config("random-continuous"), image_size=64, tokenizer=SMALL)
    monkeypatch.setitem(PRESETS, "tiny-kl", tiny)
    flags = ["--preset", "tiny-kl", "--data", str(out), "--tokenizer", str(tokenizer_folder), "--steps", "3"]
    flags += ["--minutes", "0", "--batch", "4", "--compile", "false", "--sheet-every", "100", "--save-every", "100"]
    train([*flags, "--out", str(tmp_path / "run")])
    checkpoint = load_checkpoint(tmp_path / "run/checkpoint")
    assert checkpoint.config == tiny and checkpoint.about["data"]["images"] == 4
    assert (tmp_path / "run/sheet-final.png").stat().st_size > 1000

    torch.manual_seed(5)
    other = load_tokenizer_folder(tokenizer_folder)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    from model.networks.text_encoder import build_text_encoder
    from model.training.latents.feed import LatentFeed

    with pytest.raises(ConfigError, match="encoded by another tokenizer"):
        LatentFeed(cache, other, build_text_encoder(tiny.text), 2, 0)
    with pytest.raises(DataError, match="exists"):
        build(photos, other, 64, out)
    with pytest.raises(DataError, match="not a multiple"):
        build(photos, other, 40, tmp_path / "odd")


def test_a_folder_without_captions_says_what_is_missing(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(png((1, 2, 3)))
    with pytest.raises(SystemExit, match=r"photo\.jpg needs photo\.txt"):
        main([str(tmp_path / "pictures"), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
