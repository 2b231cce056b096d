"""The engine on a simulated GPU: tensors on the right device, no hidden waits in a step, the CPU's images."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.machine import without_zero_init
from fluid_kernels.head_loop import HeadWeights, Rows
from fluid_kernels.transfers import send
from model.config import KlConfig, MarConfig
from model.diffusion import make_schedule
from model.inference import engine as engine_module
from model.inference.engine import Engine
from model.inference.heads.chains import ChainCache
from model.inference.precision import pack
from model.inference.prompts import LabelPrompts, TextPrompts
from model.networks.autoregressive_model import AutoregressiveModel, Fluid
from model.networks.condition import Conditioner
from model.networks.mar import Mar
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from model.training.auxiliary.layout_loss import LayoutHead
from model.training.captions.caption_cache import CaptionCache
from model.training.distributed.losses import StepLosses
from model.training.loop import step_loss
from model.training.recipe import Recipe
from model.training.run import Run
from model.training.trainer import Clock
from tests.model.conftest import fitted, random_model, row_request, run_alone, system_config
from tests.model.pretend_cuda import CUDA, DeviceTensor, PretendCuda, moved, waits

F32, BF16 = torch.float32, torch.bfloat16
WIDE = dataclasses.replace(PRESETS["tiny"], width=64, head_width=64)
MAR = MarConfig(
    image_size=16, width=64, heads=4, encoder_depth=2, decoder_depth=1, buffer=4, classes=3, head_width=64,
    head_depth=2, clamp=4.0, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
)  # fmt: skip


def test_the_simulated_device_is_strict() -> None:
    with PretendCuda():
        a, b = torch.ones(3, device="cuda"), torch.arange(3.0)
        assert a.device.type == "cuda" and isinstance(a + 1, DeviceTensor)
        with pytest.raises(RuntimeError, match="on the cpu"):
            a + b
        with pytest.raises(RuntimeError, match="waits"):
            a.sum().item()
        with pytest.raises(RuntimeError, match="waits"):
            a.cpu()
        for copy in (lambda: b.to("cuda"), lambda: torch.tensor([1, 2], device="cuda"), lambda: a[torch.tensor([0])]):
            with pytest.raises(RuntimeError, match="pageable memory waits"):
                copy()
        assert isinstance(b.pin_memory().to("cuda"), DeviceTensor)
        a[1:] = 5.0
        with waits():
            assert torch.equal((a + b.to("cuda")).cpu(), torch.tensor([1.0, 6.0, 7.0]))


class OnDevice:
    """The head's loop, which checks that its inputs are on the device, but for what the host knows."""

    def __init__(self, head: object):
        self.head = head

    def __call__(self, rows: object, chains: object, prediction: str, clamp: float) -> Tensor:
        for part in (rows, chains):
            for name, value in vars(part).items():
                known = name in ("host", "flow")
                assert known != isinstance(value, DeviceTensor), f"{name} is on the host"
        return self.head(rows, chains, prediction, clamp)  # type: ignore[operator,no-any-return]


ASKS = [
    row_request("a red apple", 3, num_inference_steps=4, guidance_scale=3.0),
    row_request("a blue car", 1 << 40, num_inference_steps=3, diffusion_steps=6, guidance_scale=1.0, order="halton"),
    row_request(
        "", 5, num_inference_steps=5, guidance_schedule="linear", guidance_interval=(0.3, 0.8), diffusion_steps_final=2
    ),
]


@pytest.mark.parametrize(
    ("family", "dtype", "static"),
    [
        ("random-continuous", F32, False), ("random-continuous", F32, True), ("random-continuous", BF16, True),
        ("raster-continuous", F32, True), ("raster-continuous", BF16, True), ("raster-discrete", F32, False),
        ("random-discrete", F32, True), ("raster-discrete", F32, True), ("mar", F32, True), ("mar", BF16, True),
    ],
)  # fmt: skip
def test_a_step_never_waits_and_matches_the_cpu(
    family: str, dtype: torch.dtype, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different settings, joining at different steps; only reading an image may wait. In bfloat16 the layers
    are packed and fused as on a GPU."""
    torch.manual_seed(0)
    if family == "mar":
        model: AutoregressiveModel = without_zero_init(Mar(MAR))
        asks = [dataclasses.replace(ask, prompt=ask.prompt and "b") for ask in ASKS]
    else:
        model = random_model(dataclasses.replace(system_config(family), width=64, head_width=64))
        asks = [fitted(ask, model.config) for ask in ASKS]
    if family == "random-discrete":
        sampling = dataclasses.replace(asks[0].sampling, order="confidence", top_k=5)
        asks[0] = dataclasses.replace(asks[0], sampling=sampling)
    twin = copy.deepcopy(model)
    pack(twin, dtype, fuse=True)
    expected = [run_alone(Engine(twin, conditioner(twin), 3, dtype), ask) for ask in asks]
    make_head = engine_module.make_head
    monkeypatch.setattr(engine_module, "make_head", lambda *args: OnDevice(make_head(*args[:2], "torch")))
    monkeypatch.setattr(engine_module, "choose_path", lambda *_: "torch")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)  # nothing is captured
    with PretendCuda(), torch.inference_mode():
        there = moved(model)
        pack(there, dtype)
        engine = Engine(there, conditioner(there), 3, dtype, static=static)
        found: dict[int, Tensor] = {}
        rows = dict(zip(engine.admit(asks[:2]), (0, 1), strict=True))
        engine.step()
        rows |= {engine.admit(asks[2:])[0]: 2}
        while len(found) < 3:
            for row in engine.step():
                with waits():
                    found[rows[row]] = engine.peek(row).cpu()
                engine.release(row)
    rounding = 1e-4 if dtype == F32 else 0.05
    for index, tokens in enumerate(expected):
        assert (found[index] - tokens).abs().float().mean() < rounding * tokens.abs().float().mean()


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loop_of_kernels_never_waits(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step read its rows back and made four copies from pageable memory, 1.1 ms in which a GPU was idle. Only the
    kernels are left out: rows of three chains, some guided, exact first steps, and chunks in several buckets."""
    pytest.importorskip("triton")
    from fluid_kernels.loops import fused_loop, plan

    monkeypatch.setattr(fused_loop, "backend_of", lambda _: "cpu")
    monkeypatch.setattr(plan.KernelWeights, "on_device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(
        plan, "normal", lambda seed, _, __, ___, channels: torch.zeros(len(seed), channels, device=CUDA)
    )
    launched: list[str] = []
    for name in ("modulation", "token_in", "ln_modulate", "linear", "gated_residual", "head_out", "denoise_update"):
        monkeypatch.setattr(fused_loop, name, lambda *_, name=name: launched.append(name))
    head = dataclasses.replace(WIDE, prediction=prediction)
    model = without_zero_init(Fluid(head))
    with PretendCuda(), torch.no_grad():
        there = moved(model)
        chains = ChainCache(there.head)
        for lengths, chain, guided in (((9, 5, 2), [0, 0, 1, 2], [0, 2]), ((5,), [0], []), ((9, 1), [0, 1], [0, 1])):
            rows = packed(there, chain, guided)
            loop = fused_loop.TritonHead(HeadWeights.from_head(there.head), torch.bfloat16)
            found = loop(rows, chains(lengths), prediction, 3.0)
            assert isinstance(found, DeviceTensor) and found.shape == (len(chain), head.channels)
            steps = launched.count("denoise_update")
            assert steps >= max(lengths) and launched.count("token_in") == steps
            launched.clear()
            with pytest.raises(RuntimeError, match="tolist waits"):
                loop(dataclasses.replace(rows, host=None), chains(lengths), prediction, 3.0)


def packed(model: AutoregressiveModel, chain: list[int], guided: list[int]) -> Rows:
    """Rows on the device, with the host's lists beside them."""
    count, width = len(chain), model.config.head_width
    numbers, integers = torch.ones(count, device="cuda"), torch.zeros(count, dtype=torch.int64, device="cuda")
    condition = torch.zeros(count + len(guided), width, device="cuda")
    where = [send(torch.tensor(each, dtype=torch.int64), torch.device("cuda")) for each in (guided, chain)]
    return Rows(condition, *where, numbers, numbers, integers, integers, (chain, guided))


def conditioner(model: AutoregressiveModel) -> Conditioner:
    """The conditioner of the model's family."""
    if isinstance(model, Mar):
        return LabelPrompts(model, ["a", "b", "c"])
    assert isinstance(model, Fluid)
    return TextPrompts(model, HashEncoder(model.config.text))


@dataclasses.dataclass
class FourImages:
    """A feed whose captions are on the device and whose tokens are encoded there."""

    captions: CaptionCache
    images: Tensor

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        cells = torch.tensor([0, 3, 1, 2]).repeat(4, 4)[..., None].expand(4, 16, 2)
        return torch.tensor([3, 1, 0, 2]), self.images[torch.tensor([3, 1, 0, 2])], cells


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_training_step_keeps_its_tensors_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward only: the simulated device has no gradients, and no generator, so that it draws the CPU's numbers."""
    monkeypatch.setattr("model.training.loop.generator_on", lambda device, rng: rng)
    torch.manual_seed(0)
    recipe = dataclasses.replace(Recipe.load(Path("model/recipes/atlas-128.toml")), batch=4, noise_draws=2)
    model, encoder = Fluid(PRESETS["tiny"]), HashEncoder(PRESETS["tiny"].text)
    layout = LayoutHead(PRESETS["tiny"].width)
    nn.init.normal_(model.head.out.weight)  # zero at the start of training
    states, mask = encoder.encode(["red", "green", "blue", "black and white"])
    bank = CaptionCache(states[:, None].bfloat16(), mask[:, None], *encoder.encode([""]))
    images = torch.randn(4, 16, 4)
    losses = []
    with torch.inference_mode():
        for device in ("cpu", "cuda"):
            with PretendCuda() if device == "cuda" else contextlib.nullcontext():
                with waits():  # a feed is made once
                    feed = FourImages(bank.to(torch.device(device)), images.to(device))
                learner = SimpleNamespace(clock=Clock(10, 0.0, step=3))
                there = moved(model) if device == "cuda" else model
                lesson = moved(layout) if device == "cuda" else layout
                with waits():
                    schedule = make_schedule().to(torch.device(device))
                both = StepLosses(there, lesson, recipe.scenes.layout_weight)
                run = Run(recipe, PRESETS["tiny"], there, learner, schedule, feed, torch.device(device), both)  # type: ignore[arg-type]
                with waits():
                    losses.append(torch.stack(step_loss(run)).to("cpu").tolist())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # the CPU's half has bfloat16 products
    assert losses[0][1] > losses[0][0] > 0  # with the auxiliary layout loss of scenes
