"""Text encoders of transformers: files that cannot be read are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import ConfigError, TextConfig
from model.networks.imported.encoded_text import ClipEncoder
from model.networks.text_encoder import build_text_encoder, reading
from tests.model.conversion.published import CLIP_POOLED, CLIP_WIDTH, save_clip


@pytest.mark.parametrize("fault", ["weights", "sizes"])
def test_a_damaged_text_encoder_is_named(tmp_path: Path, fault: str) -> None:
    """Half a file of weights, or sizes that cannot be, ended in safetensors' or transformers' traceback."""
    save_clip(tmp_path)
    folder = tmp_path / "text_encoder"
    weights, sizes = folder / "model.safetensors", folder / "config.json"
    if fault == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    else:
        sizes.write_text(sizes.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 5'))
    clip = TextConfig("clip", str(tmp_path), CLIP_WIDTH, 7)
    with pytest.raises(ConfigError, match=r"text encoder '.*text_encoder' cannot be loaded \(.+\): download"):
        ClipEncoder(clip, CLIP_POOLED, str(folder), str(tmp_path / "tokenizer"), torch.float32)
    with pytest.raises(ConfigError, match=r"text encoder '.*text_encoder' cannot be loaded \(.+\): download"):
        build_text_encoder(TextConfig("transformers", str(tmp_path), CLIP_WIDTH, 7))


def test_a_clip_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """It was served with random ones, and others in each worker."""
    save_clip(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if name != "text_projection.weight"}
    save_file(weights, file, {"format": "pt"})
    clip = TextConfig("clip", str(tmp_path), CLIP_WIDTH, 7)
    with pytest.raises(ConfigError, match=r"lacks 'text_projection\.weight'; import the model again"):
        ClipEncoder(clip, CLIP_POOLED, str(file.parent), str(tmp_path / "tokenizer"), torch.float32)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), ImportError()]
)
def test_a_lack_of_memory_is_not_a_damaged_file(error: Exception) -> None:
    """It was, and the message advised to download 19 GB again."""
    with pytest.raises(type(error)), reading("text encoder 't5'"):
        raise error
