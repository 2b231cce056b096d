"""NOVA, imported from a published folder of random weights, against a restatement that shares no code with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS, HeadWeights
from fluid_kernels.heads import HeadPathError, make_head
from fluid_kernels.loops.torch_loop import TorchHead
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.config import KlConfig
from model.conversion.import_nova import nova_config
from model.conversion.kinds import import_weights
from model.conversion.options import Options
from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.orders import masked_after, random_order
from model.inference.precision import PACKED_FROM, pack
from model.inference.prompts import NovaPrompts, build_conditioner
from model.inference.requests import Sampling
from model.networks.factory import build_model
from model.networks.imported.nova import NovaBackbone, NovaContext
from tests.model import nova_restated as plain
from tests.model.conftest import row_request, run_alone
from tests.model.networks.test_mar import apart

SCHEDULERS = {"flow": plain.FLOW, "ddpm": plain.DDPM}
QUIET = Options(heads=plain.HEADS, report=lambda line: None)


def official(tokens: Tensor) -> Tensor:
    """Our tokens (..., 16), channel by channel -> pixel by pixel, as NOVA has them."""
    return tokens.unflatten(-1, (4, 4)).transpose(-1, -2).flatten(-2)


def ours(tokens: Tensor) -> Tensor:
    """Inverse of `official`; the same operation, because there are as many channels as pixels."""
    return official(tokens)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published folder with each scheduler, and the checkpoint imported from it."""
    base = tmp_path_factory.mktemp("nova")
    for name, scheduler in SCHEDULERS.items():
        plain.random_folder(base / f"official-{name}", scheduler)
        import_weights(base / f"official-{name}", base / name, options=QUIET)
    return {name: base / name for name in SCHEDULERS}


@pytest.fixture(scope="module")
def checkpoints(folders: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: load_checkpoint(folder) for name, folder in folders.items()}


def prompts(checkpoint: Checkpoint) -> NovaPrompts:
    conditioner = build_conditioner(checkpoint.model, checkpoint.about)
    assert isinstance(conditioner, NovaPrompts)
    return conditioner


def backbone(checkpoint: Checkpoint) -> NovaBackbone:
    assert isinstance(checkpoint.model.backbone, NovaBackbone)
    return checkpoint.model.backbone


def test_context_z_and_head_match_the_restatement(checkpoints: dict[str, Checkpoint]) -> None:
    """Rows with 0, 1, 7 and 15 of 16 tokens known, with text of 0 to 8 tokens; each as if it were alone."""
    state, checkpoint = plain.random_state(), checkpoints["flow"]
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randn(count, plain.TEXT, generator=generator) for count in (3, 0, 8, 1)]
    contexts = [backbone(checkpoint).encode_text(text[None]) for text in texts]
    expected = [plain.context(state, text) for text in texts]
    assert max(apart(c.context[0], e) for c, e in zip(contexts, expected, strict=True)) < 1e-5
    tokens = torch.randn(4, 16, 16, generator=generator)
    known = torch.arange(16) < torch.tensor([0, 1, 7, 15])[:, None]
    known = known[:, torch.randperm(16, generator=generator)]
    together = backbone(checkpoint)(tokens, known, NovaContext.stack(contexts))
    for row, context in enumerate(expected):
        places = known[row].nonzero()[:, 0].tolist()
        z = plain.conditioning(state, official(tokens[row]), places, context)
        assert apart(together[row], z) < 1e-5
    x, z = torch.randn(9, 16, generator=generator), torch.randn(9, plain.WIDTH, generator=generator)
    for t in (0.0, 41.625, 999.0):
        found = checkpoint.model.diffusion_head(x, torch.full((9,), t), z)
        assert apart(official(found), plain.head(state, official(x), t, z)) < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_whole_image_matches_the_restatement_and_the_engine(checkpoints: dict[str, Checkpoint], name: str) -> None:
    """Same order and noise; guidance 5, a negative prompt, an odd number of diffusion steps."""
    state, model, conditioner = plain.random_state(), checkpoints[name].model, prompts(checkpoints[name])
    condition, null = conditioner("a red apple"), conditioner("blue")
    settings = Sampling(6, 13, 5.0)
    drawn = generate(model, condition, null, torch.tensor([5]), settings)[0]
    order = random_order(torch.tensor([5]), 16)[0].tolist()
    decided = [order[masked_after(i, 6, 16) : masked_after(i - 1, 6, 16)] for i in range(6)]

    def noise(position: int, t: int) -> Tensor:
        seed, purpose = torch.tensor([5]), INITIAL if t == TRAIN_STEPS else STEP
        return official(normal_ref(seed, purpose, torch.tensor([position]), torch.tensor([t]), 16)[0])

    expected = plain.sample(
        state, condition.context[0], null.context[0], decided, noise, diffusion_steps=13, guidance=5.0,
        scheduler=SCHEDULERS[name],
    )  # fmt: skip
    assert apart(official(drawn), expected) < 1e-4
    engine = Engine(model, conditioner, max_rows=4)
    request = row_request("a red apple", 5, 6, 13, 5.0, negative_prompt="blue")
    assert apart(run_alone(engine, request), drawn) < 1e-4
    # Beside rows at other steps with other prompts, and across a snapshot.
    (row,) = engine.admit([request])
    engine.step()
    engine.admit([row_request("blue apple", 1, 3, 5, 2.0), row_request("", 2, 5, 13, 1.0)])
    engine.step()
    snapshot = engine.snapshot(row)
    engine.release(row)
    row = engine.restore(snapshot)
    while engine.progress(row)[0] < 6:
        engine.step()
    assert apart(engine.peek(row), drawn) < 1e-4


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose layers are wide enough to be packed; its cosine chain begins at t = 999."""
    monkeypatch.setattr(plain, "WIDTH", PACKED_FROM)
    monkeypatch.setattr(plain, "HEAD_WIDTH", PACKED_FROM)
    plain.random_folder(tmp_path / "official", {**plain.DDPM, "timestep_spacing": "trailing"})
    import_weights(tmp_path / "official", tmp_path / "wide", options=QUIET)
    return tmp_path / "wide"


def test_bfloat16_rounds_products_and_nothing_else(wide: Path) -> None:
    """Measured: z 1.2e-2 apart. Below 1e-4 nothing was packed; this test used layers too narrow for that."""
    exact, packed = load_checkpoint(wide), load_checkpoint(wide)
    pack(packed.model, torch.bfloat16)
    tokens = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    known = torch.arange(16) < torch.tensor([3, 9])[:, None]
    z = []
    for checkpoint in (exact, packed):
        condition = NovaContext.stack([prompts(checkpoint)(prompt) for prompt in ("a red apple", "")])
        assert all(tensor.dtype == torch.float32 for tensor in condition.tensors())
        z.append(backbone(checkpoint)(tokens, known, condition))
    assert z[1].dtype == torch.float32 and 1e-4 < apart(z[1], z[0]) < 3e-2


def test_a_step_that_magnifies_runs_in_float32(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At t = 999 the cosine chain divides by 5e-5: bfloat16's rounding of eps would be as large as the image.

    One diffusion step is that step. The backbone is exact.
    """
    checkpoint = load_checkpoint(wide)

    def drawn(dtype: torch.dtype) -> Tensor:
        engine = Engine(checkpoint.model, prompts(checkpoint), 1, dtype)
        return run_alone(engine, row_request("a red apple", 3, 1, 1, 3.0))

    exact = drawn(torch.float32)
    assert apart(drawn(torch.bfloat16), exact) < 1e-5
    monkeypatch.setattr(TorchHead, "_sharpen", lambda *arguments: None)
    assert apart(drawn(torch.bfloat16), exact) > 1e-4


def test_an_engine_says_what_its_head_runs_on(checkpoints: dict[str, Checkpoint], monkeypatch: Any) -> None:
    """On a GPU it said triton, which NOVA's head has not."""
    for name in ("model.inference.engine", "fluid_kernels.heads"):
        monkeypatch.setattr(f"{name}.choose_path", lambda *_: "triton")
    checkpoint = checkpoints["flow"]
    assert Engine(checkpoint.model, prompts(checkpoint), 1).kernels == "torch"


def test_kernels_without_the_norm_refuse_the_head(checkpoints: dict[str, Checkpoint], monkeypatch: Any) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    weights = HeadWeights.from_head(checkpoints["flow"].model.diffusion_head)
    with pytest.raises(HeadPathError, match="no norm behind a block's MLP"):
        make_head(weights, torch.float32, "triton")


@pytest.mark.parametrize(
    ("size", "width", "millions"),
    [(512, 1024, 645.7), (1024, 768, 363.9), (1024, 1024, 645.7), (1024, 1536, 1449.8)],
)
def test_the_published_sizes(tmp_path: Path, size: int, width: int, millions: float) -> None:
    """The configuration that the published folder and its shapes give has as many parameters as the released class."""
    folder = plain.random_folder(tmp_path / "official", plain.FLOW, {"x": torch.zeros(1)})
    file = folder / "transformer" / "config.json"
    raw = json.loads(file.read_text()) | {
        "image_size": [size, size], "image_base_size": [size // 16] * 2, "text_token_dim": 2560, "text_token_len": 256,
    }  # fmt: skip

    class Shapes:
        file = folder

        def shape(self, key: str, dims: int) -> tuple[int, ...]:
            return (width,) * dims

        def count(self, prefix: str) -> int:
            return {"video_encoder.blocks.": 16, "image_encoder.blocks.": 32, "image_decoder.blocks.": 6}[prefix]

    kl = KlConfig(widths=(128, 256, 512, 512), latent_channels=4, attention=False, patch=2)
    config = nova_config(folder, raw, Shapes(), kl, Options())  # type: ignore[arg-type]
    with torch.device("meta"):
        model = build_model(config)
    unused = 64 * width + width  # the layer that reads a video's previous frame
    table = 256 * 2560  # the rows behind the longest text; and the table is a buffer there
    total = sum(p.numel() for p in model.parameters()) + unused - table
    assert total / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_wrong_folder_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = plain.random_folder(tmp_path / "official", plain.FLOW)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            import_weights(folder, tmp_path / "out", options=QUIET)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]

    save_file({k: v for k, v in state.items() if k != "image_decoder.blocks.1.norm2.bias"}, weights)
    refused(r"'image_decoder\.blocks\.1\.norm2\.bias' is missing")
    save_file(state | {"motion_embed.x": torch.zeros(1)}, weights)
    refused(r"'motion_embed\.x' has no place")
    save_file(state | {"image_encoder.blocks.3.attn.proj.weight": torch.zeros(2, 2)}, weights)
    refused(r"'image_encoder\.blocks\.3\.attn\.proj\.weight' has shape \(2, 2\), \(32, 32\) is expected")
    save_file(state, weights)
    for name, change, message in (
        ("transformer/config.json", {"rotary_pos_embed": True}, "video model, or one with rotary positions"),
        ("transformer/config.json", {"video_base_size": [9, 2, 2]}, "video model"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EulerDiscreteScheduler"},
            "'EulerDiscreteScheduler' is not",
        ),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        (
            "transformer/config.json",
            {"text_token_len": None},
            "official does not fit: TypeError",
        ),
        ("scheduler/scheduler_config.json", {"shift": None}, "official does not fit: TypeError"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(before) | change))
        refused(message)
        (folder / name).write_text(before)
    weights.unlink()
    refused("has no diffusion_pytorch_model.safetensors")
