"""Imported families in the engine: the same images as the plain algorithm, alone, in company, resumed and edited."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.known_tokens import KnownTokens
from model.inference.precision import pack
from model.inference.requests import Request
from model.networks.autoregressive_model import AutoregressiveModel
from tests.model.conftest import fitted, row_request, run_alone
from tests.model.imported_models import FAMILIES, conditioner_of, imported_model

pytest.importorskip("diffusers")
LONG = "a prompt of more words than the first " * 4  # another length of the condition


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> AutoregressiveModel:
    return imported_model(request.param)


def ask(model: AutoregressiveModel, prompt: str, seed: int, steps: int, guidance: float, **more: str) -> Request:
    request = row_request(prompt, seed, steps, 1, guidance, order="confidence", **more)
    return fitted(request, model.config)


def by_definition(model: AutoregressiveModel, request: Request, start: KnownTokens | None = None) -> Tensor:
    """(N,) tokens from generate.py."""
    conditioner = conditioner_of(model)
    length = conditioner.unconditional_length(request.prompt)
    null = conditioner(request.negative_prompt) if length is None else conditioner.unconditional(length)
    seeds = torch.tensor([request.seed])
    return generate(model, conditioner(request.prompt), null, seeds, request.sampling, start)[0]


@pytest.mark.parametrize("static", [False, True])
def test_rows_that_join_and_leave_are_those_of_the_definition(model: AutoregressiveModel, static: bool) -> None:
    """Different prompts, numbers of steps, guidance and negative prompts, and one resumed from a snapshot."""
    away = {"negative_prompt": "rain"} if conditioner_of(model).takes_negative_prompts else {}
    asks = [
        ask(model, "a red cat", 3, 6, 4.0), ask(model, LONG, 2**62, 9, 2.0, **away),
        ask(model, "", 11, 4, 1.0), ask(model, "sun", 5, 5, 3.0),
    ]  # fmt: skip
    wanted = [by_definition(model, each) for each in asks]
    assert len({tuple(each.tolist()) for each in wanted}) == 4
    engine = Engine(model, conditioner_of(model), 4, static=static)
    rows = engine.admit(asks[:2])
    found: dict[int, Tensor] = {}
    for step in range(40):
        for row in engine.step():
            found[rows.index(row)] = engine.peek(row)
        if step == 1:
            rows += engine.admit(asks[2:])
        if step == 2:
            snapshot = engine.snapshot(rows[0])
            engine.release(rows[0])
            rows[0] = -1
        if step == 3:
            rows[0] = engine.restore(snapshot)
        if len(found) == 4:
            break
    for index, tokens in enumerate(wanted):
        assert found[index].tolist() == tokens.tolist(), index


def test_an_edit_keeps_its_tokens(model: AutoregressiveModel) -> None:
    kept = torch.zeros(16, dtype=torch.bool)
    kept[[0, 1, 2, 5, 6, 11]] = True
    start = KnownTokens(torch.arange(16) + 20, kept)
    request = ask(model, "a red cat", 3, 6, 4.0)
    engine = Engine(model, conditioner_of(model), 2)
    (row,) = engine.admit([request], [start])
    while row not in engine.step():
        pass
    found = engine.peek(row)
    batch = KnownTokens(start.tokens[None], kept[None])
    assert found.tolist() == by_definition(model, request, batch).tolist()
    assert torch.equal(found[kept], start.tokens[kept])
    assert found.tolist() != run_alone(engine, request).tolist()


def test_in_bfloat16_the_head_reads_nearly_the_same(model: AutoregressiveModel) -> None:
    """Products in bfloat16, the residual stream in float32; nothing warns."""
    conditioner = conditioner_of(model)
    tokens, known = torch.arange(16)[None] + 20, torch.arange(16)[None] < 8
    with torch.no_grad():
        exact = model.backbone(tokens, known, conditioner("a red cat"))
        other = imported_model(model.config.family)
        pack(other, torch.bfloat16)
        rounded = other.backbone(tokens, known, conditioner_of(other)("a red cat"))
    assert rounded.dtype == torch.float32
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 0.05
