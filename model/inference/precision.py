"""Numeric precision of a model, and the packing of its linear layers for it.

Matrix products run in bfloat16 where the hardware multiplies it. The residual stream, normalisation statistics, softmax
sums, the head's update and everything small stay float32: bfloat16's 8 bits round each product once, and rounding does
not accumulate.
float16 is never chosen: on CPUs it is slower than float32. int8, if asked for, is for the backbone's weights alone, and
everything around them is as with bfloat16.
"""

from __future__ import annotations

import torch
from torch import nn

from fluid_kernels.ops.int8_linear import Int8Linear
from fluid_kernels.ops.linear import PackedLinear, native_bfloat16
from model.checkpoint import CheckpointError
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.layers.blocks import Attention, Mlp, PostNormBlock, SelfBlock
from model.networks.transformer import Block

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
# Layers narrower than this read so few weights that packing gains nothing, and rounding their inputs would cost.
PACKED_FROM = 64


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights in products, by name; "auto" is bfloat16 where the hardware multiplies it, else float32.

    Raises:
        CheckpointError: the name is unknown.
    """
    if name == "auto":
        # Emulated, as on GPUs before Ampere, it is slower than float32.
        native = native_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def product_dtype(weights: torch.dtype) -> torch.dtype:
    """The dtype of products, and of keys and values, for weights of this dtype."""
    return torch.bfloat16 if weights == torch.int8 else weights


def autocast(device: torch.device) -> torch.autocast:
    """Autocast for training and encoding, in the dtype that "auto" serves with.

    Without native bfloat16 everything stays float32: emulated bfloat16 is several times slower.
    """
    dtype = choose_dtype("auto", device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def pack(model: AutoregressiveModel, dtype: torch.dtype, fuse: bool | None = None, triton: bool = False) -> None:
    """Replace the backbone's linear layers by packed ones, in place, for inference only; float32 leaves it as it is.

    With int8 they are quantised; nothing is fused.

    A layer with an attribute `unpacked` stays as it is: convolutions, or the residual stream, follow it.

    The head's loop packs its own weights (fluid_kernels/loops/torch_loop.py).

    Args:
        fuse: compute self-attention's queries, keys and values in one product. None: on a GPU only, where a product of
            few rows does not fill the device; on a CPU nothing is gained by it.
        triton: run each sum with the norm behind it, and each GELU with the product before it, as one Triton kernel.
    """
    if dtype == torch.float32:
        return
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay float32
    if dtype == torch.int8:
        _quantize(model.backbone)
        _accept_any_input(model.backbone)
        return
    if next(model.parameters()).device.type != "cpu" if fuse is None else fuse:
        for module in list(model.backbone.modules()):
            if isinstance(module, SelfBlock | PostNormBlock | Block):
                _fuse(module.self_attn if isinstance(module, Block) else module.attn, dtype)
    for module in list(model.backbone.modules()):
        if isinstance(module, Mlp) and isinstance(module[0], nn.Linear) and isinstance(module[1], nn.GELU):
            activation = "gelu_tanh" if module[1].approximate == "tanh" else "gelu_erf"
            module[0] = _mlp_layer(triton)(module[0].weight, module[0].bias, dtype, activation)
            module[1] = nn.Identity()  # the activation runs inside the product before it
    for module in list(model.backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.in_features >= PACKED_FROM and not hasattr(child, "unpacked"):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
    _accept_any_input(model.backbone)
    if triton:
        model.backbone.fused = dtype  # type: ignore[assignment]


def _quantize(backbone: nn.Module) -> None:
    for module in list(backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child.in_features >= PACKED_FROM and not hasattr(child, "unpacked"):
                setattr(module, name, Int8Linear(child.weight, child.bias))


def _accept_any_input(backbone: nn.Module) -> None:
    """Let the layers that stay as they are follow packed ones, whose output is in bfloat16."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and not module._forward_pre_hooks:  # a packed model may be packed again
            module.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))


def _mlp_layer(triton: bool) -> type[nn.Module]:
    """The class of an MLP's first layer, called with weight, bias, dtype and activation."""
    if not triton:
        return PackedLinear
    from fluid_kernels.ops.linear_gelu import LinearGelu  # importing Triton costs seconds

    return LinearGelu


def _fuse(attention: Attention, dtype: torch.dtype) -> None:
    q, kv = attention.q, attention.kv
    if q.in_features < PACKED_FROM:
        return
    attention.qkv = PackedLinear(torch.cat([q.weight, kv.weight]), torch.cat([q.bias, kv.bias]), dtype)
    del attention.q, attention.kv
