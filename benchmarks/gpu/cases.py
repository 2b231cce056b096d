"""Cases of the GPU check and benchmark: head loops and engines with random weights, and the shipped model.

Needs torch, safetensors, numpy and tqdm; prompt_states.py stands in for the shipped model's text encoder. Random
weights are generated on their own device: a CPU would take minutes for billions of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu.prompt_states import StoredStates
from fluid_kernels.head_loop import Chains, HeadWeights, Rows
from fluid_kernels.heads import PATHS, HeadPathError, choose_path, make_head
from model.checkpoint import load_checkpoint
from model.config import MarConfig, ModelConfig
from model.inference.engine import Engine
from model.inference.heads.chains import make_chains
from model.inference.load import find_checkpoint
from model.inference.precision import pack
from model.inference.prompts import LabelPrompts, TextPrompts
from model.inference.requests import Request
from model.networks.autoregressive_model import AutoregressiveModel, Fluid
from model.networks.diffusion_head import DiffusionHead
from model.networks.factory import build_model
from model.networks.mar import Mar
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.transformer import count_parameters
from model.presets import MAR_PRESETS, PRESETS

LABELS = [str(i) for i in range(1000)]
# The smallest model of each family, for rehearsals on a CPU.
SMALL: dict[str, ModelConfig] = {
    "fluid-small": PRESETS["tiny"],
    "mar-small": MarConfig(
        image_size=128, width=64, heads=4, encoder_depth=1, decoder_depth=1, buffer=4, head_width=128, head_depth=2,
    ),
}  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    **PRESETS, **MAR_PRESETS, **SMALL, "head-768": replace(MAR_PRESETS["mar-b"], head_width=768),
}  # fmt: skip


@dataclass(frozen=True)
class HeadCase:
    """Inputs of one call of the head's loop."""

    head: DiffusionHead
    weights: HeadWeights
    rows: Rows
    chains: Chains
    prediction: str
    clamp: float

    @property
    def flops(self) -> int:
        """FLOPs of every product of the head, over all steps, rows and guided rows; see the formula in head_loop.py."""
        w, steps = self.weights, self.chains.steps[self.rows.chain]
        evaluations = int(steps.sum()) + int(steps[self.rows.guided].sum())
        return 2 * evaluations * w.width * ((5 * w.depth + 2) * w.width + w.channels + len(w.out))


def head_case(
    config: ModelConfig, device: str, rows: int, counts: tuple[int, ...], guided: float = 1.0, seed: int = 0
) -> HeadCase:
    """Make rows spread evenly over chains of `counts` steps (longest first), a share `guided` of them guided."""
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    with torch.device(device):
        head = DiffusionHead(config).eval().requires_grad_(False)
    fill_zero_init(head, generator)
    half = torch.arange(round(rows * guided), device=device)
    chain = torch.arange(rows, device=device) * len(counts) // rows
    uniform = torch.rand(rows, generator=generator, device=device)
    packed = Rows(
        condition=head.embed_condition(normal(rows + len(half), config.width)), guided=half, chain=chain,
        guidance=1.5 + 2 * uniform, temperature=0.9 + 0.2 * uniform,
        seed=torch.arange(rows, device=device) * 7919 + seed, position=torch.arange(rows, device=device) % 256,
    )  # fmt: skip
    return HeadCase(
        head, HeadWeights.from_head(head), packed, make_chains(head, counts), config.update_rule, config.clamp
    )


def paths(device: str, name: str, wanted: Sequence[str] = PATHS[1:]) -> list[str]:
    """Return those of the wanted paths of the head's loop that can run on `device` with the head of a named model."""
    weights = HeadWeights.from_head(DiffusionHead(MODELS[name]).to(device))
    found = []
    for path in wanted:
        try:
            make_head(weights, torch.bfloat16, path)
        except HeadPathError as error:
            print(f"  {name} cannot run {path}: {error}")
        else:
            found.append(path)
    return found


def fill_zero_init(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Replace zero initialisation by random values, so that no term vanishes from a comparison."""
    for name, value in module.named_parameters():
        if "modulation" in name or ".out." in f".{name}":
            value.data.normal_(0, 0.5 * value.shape[-1] ** -0.5, generator=generator)


def random_engine(name: str, device: str, rows: int, dtype: torch.dtype, kernels: str = "auto") -> tuple[Engine, int]:
    """Return an engine for a named model with random weights, and its number of parameters."""
    model, size = random_model(name, device)
    pack(model, dtype, triton=choose_path(kernels, torch.device(device)) != "torch")
    return engine_over(model, rows, dtype, kernels), size


def random_model(name: str, device: str) -> tuple[AutoregressiveModel, int]:
    """Return a named model with random weights, the same at each call, and its number of parameters."""
    torch.manual_seed(0)
    with torch.device(device):
        model = build_model(MODELS[name]).eval().requires_grad_(False)
    fill_zero_init(model, torch.Generator(device).manual_seed(0))
    return model, count_parameters(model)


def engine_over(model: AutoregressiveModel, rows: int, dtype: torch.dtype, kernels: str = "auto") -> Engine:
    """Return an engine for a model: with labels, stored encoder states where they fit, else hashed words."""
    if isinstance(model, Mar):
        return Engine(model, LabelPrompts(model, LABELS), rows, dtype, kernels)
    assert isinstance(model, Fluid)
    text = model.config.text
    encoder = StoredStates(text) if text == PRESETS["atlas-128"].text else HashEncoder(text)
    return Engine(model, TextPrompts(model, encoder), rows, dtype, kernels)


def shipped(
    device: str, rows: int, dtype: torch.dtype, kernels: str = "auto"
) -> tuple[Engine, PcaSkipTokenizer]:  # fmt: skip
    """Return an engine for the shipped model, which knows the stored prompts only, and its image tokenizer."""
    checkpoint = load_checkpoint(find_checkpoint("atlas-128"), device)
    assert isinstance(checkpoint.tokenizer, PcaSkipTokenizer)
    pack(checkpoint.model, dtype, triton=choose_path(kernels, torch.device(device)) != "torch")
    return engine_over(checkpoint.model, rows, dtype, kernels), checkpoint.tokenizer


def decode(engine: Engine, requests: list[Request]) -> Tensor:
    """Decode B requests together; return (B, N, C) tokens."""
    rows = engine.admit(requests)
    left = set(rows)
    while left:
        left -= set(engine.step())
    tokens = torch.stack([engine.peek(row) for row in rows])
    for row in rows:
        engine.release(row)
    return tokens


def synchronise(device: str) -> None:
    """Wait until the device has finished all launched work."""
    if device == "cuda":
        torch.cuda.synchronize()
