"""The causal backbone: z depends on what came before, and steps over a cache compute what one pass over all does."""

from __future__ import annotations

import pytest
import torch

from fluid_kernels.ops.linear import ROWS_OF_ONE_ORDER
from model.inference.precision import pack
from model.networks.autoregressive_model import Fluid
from model.networks.causal import CausalBackbone, make_cache
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import context, random_model, some_tokens, system_config

CPU = torch.device("cpu")


@pytest.fixture(params=["raster-continuous", "raster-discrete"])
def raster(request: pytest.FixtureRequest) -> Fluid:
    return random_model(system_config(request.param))


def test_z_depends_on_earlier_tokens_only(raster: Fluid, encoder: HashEncoder) -> None:
    torch.manual_seed(0)
    text = context(raster, encoder, "a cat")
    tokens = some_tokens(raster.config, 1)
    other = tokens.clone()
    other[0, 7] = 3
    known = torch.ones(1, 16, dtype=torch.bool)
    one, two = raster.backbone(tokens, known, text), raster.backbone(other, known, text)
    assert torch.equal(one[:, :8], two[:, :8])
    changed = (one - two).abs().amax(-1)[0] > 1e-6
    assert changed[8:].all()


def test_a_step_of_one_row_reads_its_token_among_others(encoder: HashEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few inputs stay float32 in bfloat16 models too, and a product of one row is summed in another order than of many:
    an image in raster order depended on its company."""
    raster = random_model(system_config("raster-continuous"))
    pack(raster, torch.bfloat16)
    backbone, rows = raster.backbone, []
    assert isinstance(backbone, CausalBackbone) and isinstance(backbone.token_in, torch.nn.Linear)
    backbone.token_in.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    cache = make_cache(raster.config, 1, CPU, torch.bfloat16)
    assert cache is not None
    text = context(raster, encoder, "a cat")
    backbone.step(some_tokens(raster.config, 1), torch.tensor([0]), torch.tensor([3]), text, cache, 4)
    assert len(rows) == 1 and rows[0] >= ROWS_OF_ONE_ORDER


@pytest.mark.parametrize("filled", [0, 1, 9])
def test_steps_equal_one_pass_with_rows_at_different_positions(
    raster: Fluid, encoder: HashEncoder, filled: int
) -> None:
    """Row 1 starts from a prefilled cache, two positions behind or ahead of row 0, in slots of another order."""
    torch.manual_seed(0)
    backbone = raster.backbone
    assert isinstance(backbone, CausalBackbone)
    tokens, text = some_tokens(raster.config, 3), context(raster, encoder, "a cat", "a red dog")
    cache = make_cache(raster.config, 6, CPU, torch.float32)
    assert cache is not None
    whole = backbone(tokens[[2, 0]], None, text)
    if filled:
        backbone.prefill(tokens[:1, :filled], torch.tensor([3]), text[1:2], cache)  # row 3 belongs to image 0 of 3
    for step in range(16):
        places = [step, filled + step]
        count = 2 if places[1] < 16 else 1
        z = backbone.step(
            tokens, torch.tensor([2, 3])[:count], torch.tensor(places)[:count], text[:count], cache,
            max(places[:count]) + 1,
        )  # fmt: skip
        for row in range(count):
            torch.testing.assert_close(z[row, 0], whole[row, places[row]], atol=1e-5, rtol=1e-5)
