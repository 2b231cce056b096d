"""`fluid import` of MAR: both kinds of file, both layouts, and an error for every kind of wrong file."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import CheckpointError, load_checkpoint
from model.conversion.import_mar import read_kl
from model.conversion.kinds import import_weights
from model.conversion.options import Options
from model.inference.load import load_engine
from server.cli.main import main
from tests.model import kl_restated, mar_restated
from tests.model.conftest import row_request


def import_mar(source: Path, target: Path, heads: int | None = None, dtype: torch.dtype = torch.float32) -> Path:
    import_weights(source, target, "mar", Options(heads=heads, dtype=dtype))
    return target


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """A user's downloads: the official file with averaged and raw weights, its mirror, and the autoencoder."""
    state = mar_restated.random_state(classes=1000)
    worse = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save(
        {"model": worse, "model_ema": state, "epoch": 399, "args": argparse.Namespace(lr=1e-4)},
        tmp_path / "checkpoint-last.pth",
    )
    save_file(state, tmp_path / "mar-base.safetensors")
    torch.save({"model": kl_restated.random_state()}, tmp_path / "kl16.ckpt")
    return tmp_path


def test_both_files_give_the_same_checkpoint_which_generates(downloads: Path) -> None:
    """The .pth contributes its averaged weights, and the engine generates from them by label."""
    torch_file, mirror = downloads / "checkpoint-last.pth", downloads / "mar-base.safetensors"
    first = load_checkpoint(import_mar(torch_file, downloads / "a", heads=4))
    second = load_checkpoint(import_mar(mirror, downloads / "b", heads=4))
    assert first.sha256 == second.sha256 and first.about["license"] == "MIT"
    config = first.config
    assert (config.image_size, config.tokens, config.channels, config.family) == (8, 16, 4, "mar")
    engine = load_engine(str(downloads / "a"), 1, "cpu", 0)
    (row,) = engine.admit([row_request("golden retriever", num_inference_steps=3)])
    while row not in engine.step():
        pass
    assert len(engine.image(row)) == 8 * 8 * 3
    assert engine.info()["labels"][207] == "golden retriever"


def test_the_autoencoder_equals_its_restatement(downloads: Path) -> None:
    state = kl_restated.random_state()
    tokenizer = read_kl(downloads / "kl16.ckpt").eval()
    scale, generator = tokenizer.config.scale, torch.Generator().manual_seed(1)
    pixels, z = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        tokens = tokenizer.encode(pixels)  # (2, 64, 4)
        torch.testing.assert_close(
            tokens.transpose(1, 2).unflatten(2, (8, 8)) / scale, kl_restated.encode(state, pixels),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        decoded = tokenizer.decode(z.flatten(2).transpose(1, 2) * scale)
    torch.testing.assert_close(decoded, kl_restated.decode(state, z), rtol=1e-4, atol=1e-5)


def test_bfloat16_halves_the_files(downloads: Path) -> None:
    for name, dtype in (("wide", torch.float32), ("narrow", torch.bfloat16)):
        import_mar(downloads / "mar-base.safetensors", downloads / name, heads=4, dtype=dtype)
    wide, narrow = (next((downloads / n).glob("*.safetensors")).stat().st_size for n in ("wide", "narrow"))
    assert narrow < 0.52 * wide
    load_checkpoint(downloads / "narrow")


def _broken(downloads: Path, how: str) -> tuple[Path, str]:
    """A file that is wrong in one way, and a pattern that the message must match."""
    state, file = mar_restated.random_state(classes=1000), downloads / f"{how}.safetensors"
    if how == "truncated":
        whole = (downloads / "checkpoint-last.pth").read_bytes()
        file = file.with_suffix(".pth")
        file.write_bytes(whole[: len(whole) // 2])
        return file, "is damaged or not a torch.save file"
    if how == "cut":
        file.write_bytes((downloads / "mar-base.safetensors").read_bytes()[:-100])
        return file, "is damaged"
    if how == "foreign":
        save_file({"transformer.wte.weight": torch.zeros(2, 2)}, file)
        return file, r"'z_proj.weight' is missing; .* 'transformer.wte.weight'"
    if how == "other":
        torch.save([1, 2, 3], file.with_suffix(".pth"))
        return file.with_suffix(".pth"), "neither 'model_ema'"
    if how == "missing":
        del state["decoder_blocks.1.mlp.fc2.bias"]
        message = r"'decoder_blocks\.1\.mlp\.fc2\.bias' is missing"
    elif how == "misshapen":
        state["diffloss.net.final_layer.linear.weight"] = torch.zeros(7, 40)
        message = r"'diffloss\.net\.final_layer\.linear\.weight' has shape \(7, 40\), \(8, 40\) is expected"
    else:
        state["surprise.weight"] = torch.zeros(1)
        message = r"'surprise\.weight' has no place"
    save_file(state, file)
    return file, message


@pytest.mark.parametrize("how", ["truncated", "cut", "foreign", "other", "missing", "misshapen", "extra"])
def test_a_wrong_file_is_named_and_leaves_nothing_behind(downloads: Path, how: str) -> None:
    file, message = _broken(downloads, how)
    before = sorted(downloads.iterdir())
    with pytest.raises(CheckpointError, match=message):
        import_mar(file, downloads / "out", heads=4)
    assert sorted(downloads.iterdir()) == before


def test_a_pickle_that_would_run_code_is_rejected(downloads: Path) -> None:
    """torch.load without weights_only would have run it."""
    torch.save({"model_ema": subprocess.Popen}, downloads / "evil.pth")
    with pytest.raises(CheckpointError, match="damaged or not a torch"):
        import_mar(downloads / "evil.pth", downloads / "out")


def test_messages_name_the_missing_option(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = downloads / "mar-base.safetensors"
    with pytest.raises(CheckpointError, match=r"width 48 is not one of the released sizes .* --heads"):
        import_mar(source, downloads / "out")
    (downloads / "kl16.ckpt").rename(downloads / "elsewhere.ckpt")
    assert main(["import", "mar", str(source), str(downloads / "out"), "--heads", "4"]) == 2
    assert "no autoencoder beside" in capsys.readouterr().err
    vae = str(downloads / "elsewhere.ckpt")
    assert main(["import", "mar", str(source), str(downloads / "out"), "--heads", "4", "--vae", vae]) == 0
    assert main(["import", "mar", str(source), str(downloads / "out"), "--heads", "4", "--vae", vae]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_imports_and_generates(downloads: Path) -> None:
    """The README's two commands, in processes of their own, then a misspelt label."""

    def fluid(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "server.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    folder, image = str(downloads / "mar-b"), downloads / "dog.png"
    done = fluid("import", "mar", str(downloads / "checkpoint-last.pth"), folder, "--heads", "4")
    assert done.returncode == 0, done.stderr
    done = fluid(
        "generate", "--checkpoint", folder, "a Golden Retriever", "--steps", "3", "--diffusion-steps", "3",
        "--out", str(image),
    )  # fmt: skip
    assert done.returncode == 0 and image.exists(), done.stderr
    done = fluid("generate", "--checkpoint", folder, "golden retreiver", "--out", str(image))
    assert done.returncode == 2 and "golden retriever" in done.stderr
