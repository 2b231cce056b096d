"""The pass in fixed shapes against the eager one; on a CPU it does everything but capture the graph."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.config import FluidConfig, KlConfig, MarConfig, TextConfig, TokenizerConfig
from model.inference.backbone_pass import PlainPass, StaticPass, bucket
from model.inference.engine import Engine
from model.inference.prompts import LabelPrompts, TextPrompts, text_room
from model.inference.requests import Request
from model.networks.autoregressive_model import Fluid
from model.networks.mar import ClassContext, Mar
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import SYSTEMS, fitted, random_model, row_request, system_config

MAR = MarConfig(
    image_size=16, width=48, heads=4, encoder_depth=2, decoder_depth=1, buffer=4, classes=3, head_width=32,
    head_depth=2, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def mar() -> Mar:
    torch.manual_seed(0)
    model = Mar(MAR).eval().requires_grad_(False)
    for name, value in model.head.named_parameters():
        if "modulation" in name or name.startswith("out."):
            torch.nn.init.normal_(value, std=0.2)
    return model


def decode(engine: Engine, asks: list[Request], most: int) -> list[Tensor]:
    """Finished tokens of every request, at most `most` rows at a time: rows join and leave at different steps."""
    found: dict[int, Tensor] = {}
    running: dict[int, int] = {}
    waiting = list(range(len(asks)))
    while waiting or running:
        while waiting and len(running) < most:
            (row,) = engine.admit([asks[waiting[0]]])
            running[row] = waiting.pop(0)
        for row in engine.step():
            found[running.pop(row)] = engine.peek(row)
            engine.release(row)
    return [found[i] for i in range(len(asks))]


def asks_for(prompts: list[str]) -> list[Request]:
    return [
        row_request(prompts[i % len(prompts)], 50 + i, num_inference_steps=2 + i % 4, guidance_scale=1.0 + i % 3,
            guidance_interval=(0.3, 1.0) if i % 2 else (0.0, 1.0))
        for i in range(12)
    ]  # fmt: skip


@pytest.mark.parametrize("system", [*SYSTEMS, "mar"])
def test_fixed_shapes_generate_the_same_images(system: str, mar: Mar, encoder: HashEncoder) -> None:
    """Rows at different steps, guided and not, 1 to 10 evaluations: neither padding nor stale inputs may leak."""
    model, conditioner = mar, LabelPrompts(mar, ["a", "b", "c"])  # type: AutoregressiveModel, Conditioner
    asks = asks_for(["a", "b", "c"])
    if system != "mar":
        model = random_model(system_config(system))
        conditioner = TextPrompts(model, encoder)  # type: ignore[arg-type]
        asks = [fitted(ask, model.config) for ask in asks_for(["a red apple", "a blue car", "x"])]
    plain, fixed = (decode(Engine(model, conditioner, 5, static=static), asks, 5) for static in (False, True))
    for one, other in zip(plain, fixed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_the_number_of_captured_shapes_is_bounded(mar: Mar) -> None:
    """Every shape costs a capture: rows come in buckets, known tokens in units."""
    engine = Engine(mar, LabelPrompts(mar, ["a", "b", "c"]), 12, static=True)
    decode(
        engine, [row_request("a", i, num_inference_steps=2 + i % 7, guidance_scale=1.0 + i % 2) for i in range(40)], 12
    )
    shapes = set(engine._backbone._replays)  # type: ignore[union-attr]
    assert shapes <= {(bucket(rows), known, 0) for rows in range(1, 25) for known in (0, 32, 64)}


LONG = FluidConfig(
    image_size=16, width=32, depth=2, heads=2, aligner_depth=1, head_width=32, head_depth=2, prediction="v", clamp=6.0,
    tokenizer=TokenizerConfig(kind="pca_skip", stride=4, channels=4, widths=(8, 8, 8)),
    text=TextConfig(kind="hash", name="words", dim=16, max_tokens=100),
)  # fmt: skip


@pytest.mark.parametrize("static", [False, True])
def test_text_that_is_cut_generates_the_same_images(static: bool) -> None:
    """Prompts of 2, 41 and more than 100 tokens, alone and together, against conditions of full length."""
    torch.manual_seed(0)
    model, encoder = Fluid(LONG).eval().requires_grad_(False), HashEncoder(LONG.text)
    for name, value in model.head.named_parameters():
        if "modulation" in name or name.startswith("out."):
            torch.nn.init.normal_(value, std=0.2)
    asks = asks_for(["apple", "blue " * 40, "car " * 150])
    full = Engine(model, TextPrompts(model, encoder, cut=False), 5, static=False)
    cut = Engine(model, TextPrompts(model, encoder, cut=True), 5, static=static)
    for one, other in zip(decode(full, asks, 5), decode(cut, asks, 5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
    lengths = {condition.length for condition in cut._conditions._found.values()}
    assert lengths == {32, 64, 100}
    run = cut._backbone
    if isinstance(run, StaticPass):
        assert {text for _, _, text in run.shapes} == {32} and {key[2] for key in run._replays} <= lengths
        assert {32} < set(run._conditions) <= lengths
        run.forget()
        assert set(run._conditions) == {32}


@given(st.integers(1, 300), st.sampled_from([24, 28, 32, 100, 128]))
def test_a_conditions_room_is_one_of_few(tokens: int, most: int) -> None:
    room = text_room(tokens, most)
    assert min(tokens, most) <= room <= max(32, 2 * tokens) and room <= most
    assert room in {most, 32, 64}


def test_a_shorter_encoding_has_the_same_states(encoder: HashEncoder) -> None:
    full, real = encoder.encode(["a red apple", "x"])
    tight, mask = encoder.encode(["a red apple", "x"], tight=True)
    assert tight.shape[1] == int(real.sum(1).max()) == 4
    assert torch.equal(full[:, :4], tight) and torch.equal(real[:, :4], mask)


class Recorder(nn.Module):
    """A backbone that returns its condition and records the addresses it was called with."""

    packs_known = False

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[int] = []

    def forward(self, tokens: Tensor, known: Tensor, condition: ClassContext, most_known: int = 0) -> Tensor:
        self.addresses.append(condition.embedding.data_ptr())
        return condition.embedding[:, None].expand(-1, tokens.shape[1], -1) + tokens.sum()


def test_inputs_keep_the_addresses_they_were_captured_with() -> None:
    """A graph reads the addresses it was captured with, so changed conditions must be written there."""
    backbone, tokens, known = Recorder(), torch.zeros(6, 4, 2), torch.zeros(6, 4, dtype=torch.bool)
    conditions = [ClassContext(torch.full((1, 3), float(i))) for i in range(4)]
    run = StaticPass(backbone, tokens, known, conditions[0])
    for chosen in ([0], [1], [1, 2], [3, 0, 1], [2]):
        z = run(chosen, [conditions[i] for i in chosen], 0)
        assert z.shape == (len(chosen), 4, 3) and z[:, 0, 0].tolist() == chosen
    assert len(set(backbone.addresses)) == 1
    run.forget()
    assert run([2], [conditions[2]], 0)[0, 0, 0] == 2


def test_a_changed_condition_is_copied_in() -> None:
    """The same rows with other prompts, as after a release and an admission between two steps."""
    backbone, tokens = Recorder(), torch.zeros(2, 4, 2)
    first, second = (ClassContext(torch.full((1, 3), float(i))) for i in (1, 2))
    for run in (PlainPass(backbone, tokens, tokens > 0), StaticPass(backbone, tokens, tokens > 0, first)):
        assert run([0], [first], 0)[0, 0, 0] == 1 and run([0], [second], 0)[0, 0, 0] == 2


@pytest.mark.parametrize("bound", [32, 48, 64])
def test_any_bound_on_known_tokens_gives_the_same_z(mar: Mar, bound: int) -> None:
    """The bound decides how much padding follows a row's own tokens, and padding is masked."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 64, 4, generator=generator)
    known = torch.arange(64)[None] < torch.tensor([0, 11, 32])[:, None]
    condition = ClassContext(mar.backbone.classes(torch.tensor([0, 1, 2])))
    counted = mar.backbone(tokens, known, condition)
    torch.testing.assert_close(mar.backbone(tokens, known, condition, bound), counted, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 5000))
def test_buckets_are_few_and_pad_by_at_most_a_quarter(rows: int) -> None:
    size = bucket(rows)
    assert rows <= size <= max(8, rows * 1.25) and bucket(size) == size
    assert len({bucket(n) for n in range(1, 513)}) <= 8 + 4 * 6
