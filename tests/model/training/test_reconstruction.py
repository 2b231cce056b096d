"""The command that puts a decoder that was trained further into a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import load_checkpoint
from model.networks.factory import new_tokenizer
from model.networks.tokenizer import to_pixels
from model.presets import PRESETS
from model.training.reconstruction.__main__ import main
from model.training.train_tokenizer import train as train_tokenizer
from tests.model.conftest import saved
from tests.model.image_set import squares


def test_a_decoder_is_put_into_a_checkpoint_that_keeps_model_and_tokens(tmp_path: Path) -> None:
    """A decoder trained further once had no way back into the checkpoint whose tokens it decodes."""
    before = load_checkpoint(saved(tmp_path / "old", dtype=torch.bfloat16))
    trained = train_tokenizer(
        "tiny", squares(), tmp_path / "run", 0.0, 3, 8, 0, decoder_of=tmp_path / "old", progress=False
    )
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, tmp_path / "new.safetensors")
    main([str(tmp_path / "old"), str(tmp_path / "new.safetensors"), "--out", str(tmp_path / "new")])
    after = load_checkpoint(tmp_path / "new")
    pixels = to_pixels(torch.from_numpy(squares().images[:4]))
    tokens = before.tokenizer.encode(pixels)  # type: ignore[union-attr]
    assert torch.equal(after.tokenizer.encode(pixels), tokens)  # type: ignore[union-attr]
    assert not torch.equal(after.tokenizer.decode(tokens), before.tokenizer.decode(tokens))  # type: ignore[union-attr]
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name]), name
    assert "metrics" not in after.about
    assert after.about["training"] == {"steps": 1, "other_decoder_than": {"name": "tiny", "sha256": before.sha256}}


def test_a_decoder_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    old = saved(tmp_path / "old", dtype=torch.bfloat16)
    torch.manual_seed(2)
    other = new_tokenizer(PRESETS["tiny"])
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "other.safetensors")
    for source, out, says in (
        (str(tmp_path / "other.safetensors"), tmp_path / "new", r"makes other tokens.*--decoder-of"),
        (str(saved(tmp_path / "large", preset="compare-random-continuous-small")), tmp_path / "new", "does not fit"),
        (str(tmp_path / "none"), tmp_path / "new", "no tokenizer at"),
        (str(tmp_path / "other.safetensors"), old, "is one of those that are read"),
    ):
        with pytest.raises(SystemExit, match=says):
            main([str(old), source, "--out", str(out)])
    assert not (tmp_path / "new").exists()
