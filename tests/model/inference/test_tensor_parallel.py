"""Tensor parallelism: two ranks decode what one does, in any family, with half of the blocks' matrices each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import ConfigError, MarConfig
from model.inference.devices.sharding import check_heads
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.factory import build_model, build_tokenizer
from model.presets import PRESETS
from model.tokenizer_config import TokenizerConfig
from tests.model.conftest import SYSTEMS, random_model, system_config

# Tokens of float32 models; sums over ranks add up in another order, and the steps carry the difference on.
TOLERANCE = 2e-3
MAR = MarConfig(
    image_size=16, classes=3, width=32, encoder_depth=1, decoder_depth=1, heads=2, buffer=4, head_width=32,
    head_depth=2, prediction="v", clamp=6.0,
    tokenizer=TokenizerConfig(kind="pca_skip", stride=4, channels=4, widths=(8, 8, 8)),
)  # fmt: skip


def _saved(folder: Path, model: AutoregressiveModel, **about: object) -> Path:
    tokenizer = build_tokenizer(model.config.tokenizer)
    save_checkpoint(folder, model, tokenizer, {"name": folder.name, **about}, torch.float32)
    return folder


@pytest.mark.slow
def test_two_ranks_decode_what_one_does(tmp_path: Path) -> None:
    """Bidirectional and causal, continuous and discrete, text and classes: rows that join late and resume included."""
    folders = [_saved(tmp_path / system, random_model(system_config(system))) for system in SYSTEMS]
    torch.manual_seed(0)
    mar = build_model(MAR)
    for parameter in mar.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folders.append(_saved(tmp_path / "mar", mar, labels=["ant", "bee", "cat"]))
    command = [sys.executable, "-m", "tests.model.inference.ranks", *map(str, folders)]
    place = {**os.environ, "WORLD_SIZE": "2", "PROCESS_GROUP_FILE": str(tmp_path / "meeting"), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            command, env={**place, "RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    told = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told  # the follower ends by itself once rank 0 has
    found = [json.loads(line) for line in told[0][0].splitlines()]
    assert len(found) == len(folders)
    for folder, each in zip(folders, found, strict=True):
        assert each["largest"] > 0.5 and each["again"] == 0, (folder.name, each)
        discrete = folder.name.endswith("discrete")
        assert each["apart"] <= (0 if discrete else TOLERANCE), (folder.name, each)
        # Norms and the biases behind the sums are whole on each rank; at this width they are 3 % of a block.
        assert 0.5 < each["part"] / each["whole"] < 0.53, (folder.name, each)


def test_heads_that_cannot_be_divided_are_refused() -> None:
    check_heads(PRESETS["atlas-128"], 4)
    with pytest.raises(ConfigError, match=r"4 attention heads .* among 3 devices: set FLUID_TENSOR_PARALLEL to 2 or 4"):
        check_heads(PRESETS["atlas-128"], 3)
    check_heads(replace(PRESETS["tiny"], heads=8), 8)
