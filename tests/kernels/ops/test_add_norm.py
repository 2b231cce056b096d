"""The backbone's fused operations against their definitions, and a backbone built from them against the plain one."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from fluid_kernels.ops import linear_gelu
from fluid_kernels.ops.add_norm import add_norm, add_norm_ref
from fluid_kernels.ops.linear import linear_ref
from fluid_kernels.ops.linear_gelu import LinearGelu
from fluid_kernels.ops.linear_triton import linear
from model.config import KlConfig, MarConfig
from model.inference.precision import pack
from model.networks.autoregressive_model import Fluid
from model.networks.layers.residual import FusedResidual, PlainResidual
from model.networks.mar import ClassContext, Mar
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from tests.kernels.ops.test_triton_ops import DTYPES, drawn

BF16 = torch.bfloat16


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 123), (5, 224), (2, 1152)])
def test_add_norm(rows: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    """The stream stays float32 and exact; a mean far from 0 must not cost the variance its digits."""
    x, delta = drawn(0, rows, width) + 30, drawn(1, rows, width).to(dtype)
    weight, bias = drawn(2, width), drawn(3, width)
    guarded = torch.full((rows + 1, width), 7.0, dtype=dtype)
    stream, normed = add_norm_ref(x, delta, weight, bias)
    add_norm(x, delta, weight, bias, guarded[:rows])
    assert torch.equal(x, stream)
    torch.testing.assert_close(guarded[:rows].float(), normed, rtol=tolerance, atol=tolerance)
    assert (guarded[rows] == 7).all()


def test_norm_without_a_sum_writes_nothing_else() -> None:
    x, weight, bias, n = drawn(0, 3, 40), drawn(1, 40), drawn(2, 40), torch.empty(3, 40)
    before = x.clone()
    add_norm(x, None, weight, bias, n)
    torch.testing.assert_close(n, add_norm_ref(x, None, weight, bias)[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_what_does_not_fit_is_rejected() -> None:
    x, w = drawn(0, 3, 40), drawn(1, 40)
    with pytest.raises(ValueError, match="do not fit"):
        add_norm(x, drawn(2, 3, 39), w, w, x.clone())
    with pytest.raises(ValueError, match="must be float32"):
        add_norm(x.to(BF16), None, w, w, x.to(BF16))
    with pytest.raises(ValueError, match="contiguous"):
        add_norm(x, drawn(2, 40, 3).T, w, w, x.clone())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh"])
def test_linear_with_gelu(
    activation: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far into both tails, where exp overflows."""
    x, weight, bias = drawn(0, 5, 123).to(dtype), drawn(1, 77, 123, scale=0.3).to(dtype), torch.linspace(-40, 40, 77)
    y = torch.empty(5, 77, dtype=dtype)
    linear(x, weight, bias, y, activation)
    assert y.isfinite().all()
    torch.testing.assert_close(y.float(), linear_ref(x, weight, bias, activation), rtol=tolerance, atol=tolerance)
    layer = LinearGelu(weight, bias, dtype, activation)
    assert torch.equal(layer(x.view(5, 1, 123)), y.view(5, 1, 77))
    monkeypatch.setattr(linear_gelu, "by_library", lambda *_: True)  # as with many rows on a GPU
    by_library = layer(x.view(5, 1, 123)).view(5, 77)
    assert by_library.dtype == dtype
    torch.testing.assert_close(by_library, y, rtol=2 * tolerance, atol=2 * tolerance)  # rounded twice


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_fused_stream_equals_the_plain_one(dtype: torch.dtype) -> None:
    norms = [torch.nn.LayerNorm(48, 1e-6) for _ in range(3)]
    for i, norm in enumerate(norms):
        norm.weight.data, norm.bias.data = drawn(i, 48), drawn(i + 5, 48)
    x, deltas = drawn(9, 2, 7, 48), [drawn(10 + i, 2, 7, 48).to(dtype) for i in range(2)]
    plain, fused = PlainResidual(x.clone()), FusedResidual(x.clone(), dtype)
    with torch.inference_mode():
        for i, norm in enumerate(norms):
            one, other = plain.normed(norm, last=i == 2), fused.normed(norm, last=i == 2)
            assert other.dtype == (torch.float32 if i == 2 else dtype)
            torch.testing.assert_close(one.to(dtype).float(), other.to(dtype).float(), rtol=0.01, atol=0.01)
            if i < 2:
                plain.add(deltas[i])
                fused.add(deltas[i])
    with pytest.raises(RuntimeError, match="without a norm"):
        fused.add(deltas[0])
        fused.add(deltas[1])


@pytest.mark.parametrize("family", ["fluid", "mar"])
def test_a_backbone_of_kernels_equals_the_plain_one(family: str) -> None:
    """The plain one rounds at the same places but one: it keeps what a norm returns in float32 up to the cast."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    known = torch.arange(16) < torch.tensor([0, 5, 12])[:, None]
    model: Fluid | Mar
    if family == "fluid":
        config = dataclasses.replace(PRESETS["tiny"], width=64, depth=1)
        model = Fluid(config).eval().requires_grad_(False)
        states = HashEncoder(config.text).encode(["a red apple", "", "cat"])
    else:
        model = Mar(MarConfig(
            image_size=16, width=64, heads=4, encoder_depth=1, decoder_depth=1, buffer=4, classes=3, head_width=64,
            head_depth=1, tokenizer=KlConfig(widths=(32, 32, 32), layers=1, latent_channels=4),
        )).eval().requires_grad_(False)  # fmt: skip
    tokens = torch.randn(3, 16, model.config.channels, generator=generator)
    fused, plain = copy.deepcopy(model), copy.deepcopy(model)
    pack(fused, BF16, fuse=True, triton=True)
    pack(plain, BF16, fuse=True)
    layers = [layer for layer in fused.backbone.modules() if isinstance(layer, LinearGelu)]
    assert len(layers) >= 1 and not any(isinstance(layer, LinearGelu) for layer in plain.modules())
    with torch.inference_mode():
        one, other = (
            each.backbone(
                tokens, known, ClassContext(drawn(3, 3, 64)) if family == "mar" else each.backbone.encode_text(*states)
            )
            for each in (fused, plain)
        )
    assert one.dtype == other.dtype == torch.float32
    assert (one - other).abs().mean() < 0.01 * other.abs().mean()
