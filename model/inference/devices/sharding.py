"""Tensor parallelism of a backbone: each rank has a part of every block's heads and of its MLP's hidden values.

Queries, keys, values and the first MLP layer are split by output, the two layers behind them by input (Megatron-LM,
arXiv 1909.08053): a block sums over the ranks after each attention and after the MLP, and nowhere else. The residual
stream, norms, embeddings and positions are on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from model.config import ConfigError, ModelConfig
from model.networks.layers.blocks import Attention, Mlp


def check_heads(config: ModelConfig, ranks: int) -> None:
    """Raise ConfigError unless the heads of every block can be divided among so many ranks."""
    if config.heads % ranks:
        fitting = [str(n) for n in range(2, config.heads + 1) if config.heads % n == 0]
        raise ConfigError(
            f"the model's {config.heads} attention heads cannot be divided among {ranks} devices: set "
            f"FLUID_TENSOR_PARALLEL to {' or '.join(fitting)}, or to 1"
        )


def shard_backbone(backbone: nn.Module, config: ModelConfig, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Shard a backbone in place, for inference; nothing is sent, since every rank has loaded the same weights.

    Args:
        dtype: of the products of sharded layers.
    Raises:
        ConfigError: the heads cannot be divided.
    """
    ranks = mesh.size()
    check_heads(config, ranks)
    for module in list(backbone.modules()):
        if isinstance(module, Attention) and module.heads % ranks == 0:
            _interleave(module.kv, ranks)
            module.heads //= ranks
            _split(module.q, mesh, ColwiseParallel, dtype)
            _split(module.kv, mesh, ColwiseParallel, dtype)
            _split(module.out, mesh, RowwiseParallel, dtype)
        elif isinstance(module, Mlp):
            _split(module[0], mesh, ColwiseParallel, dtype)
            _split(module[2], mesh, RowwiseParallel, dtype)
    backbone.shards = ranks  # type: ignore[assignment]
    backbone.to(mesh.device_type)


def _split(
    linear: nn.Module, mesh: DeviceMesh, style: type[ColwiseParallel] | type[RowwiseParallel], dtype: torch.dtype
) -> None:
    assert isinstance(linear, nn.Linear)
    linear.to(dtype)
    if dtype != torch.float32:  # norms give float32
        linear.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(dtype),))
    parallelize_module(linear, mesh, style(), src_data_rank=None)
    for name, parameter in list(linear.named_parameters()):
        assert isinstance(parameter, DTensor)
        local = parameter.to_local().detach().clone()  # a part of the whole would keep the whole in memory
        whole = DTensor.from_local(
            local, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
        setattr(linear, name, nn.Parameter(whole, requires_grad=False))


def _interleave(kv: nn.Linear, ranks: int) -> None:
    """Reorder the outputs of a layer of all keys, then all values: each rank's keys, then its values."""
    for parameter in (kv.weight, kv.bias):
        parts = parameter.data.unflatten(0, (2, ranks, -1)).transpose(0, 1)  # (ranks, 2, D / ranks, …)
        parameter.data = parts.flatten(0, 2).contiguous()


def local_values(module: nn.Module) -> int:
    """Number of parameter values that this process holds."""
    return sum(local(parameter).numel() for parameter in module.parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
