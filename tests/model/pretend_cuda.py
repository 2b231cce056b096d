"""Tensors that claim to be on a GPU, compute on the CPU, and are as strict about devices as a GPU.

An operation on a host tensor and a device tensor is an error, as on a GPU. So is reading a device tensor's values
outside `waits`, because the host would wait for a real device, and so is a copy from host memory that is not pinned: it
waits until the device has done everything before it. This finds misplaced tensors and hidden waits without a GPU; it
knows nothing of kernels, streams or graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

M = TypeVar("M", bound=nn.Module)
CUDA = torch.device("cuda")
COPIES = {"aten::copy_", "aten::_to_copy"}  # between devices
# These operations send host index tensors by themselves. A number given as a value may come from the host too.
INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
ASKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class DeviceTensor(Tensor):
    """A tensor that claims to be on the device."""

    inner: Tensor  # on the CPU
    open = 0  # inside `waits`
    waited = 0

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip

    def __init__(self, inner: Tensor):
        self.inner = inner

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        given, _ = tree_flatten((args, kwargs))
        _check(name, [value for value in given if isinstance(value, Tensor)], args)
        if str(kwargs.get("device", "")) == "cpu":
            _wait(name)
            return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        owners = {id(value.inner): value for value in given if isinstance(value, DeviceTensor)}
        if name == "aten::copy_" and not isinstance(args[0], DeviceTensor):
            return args[0]
        return tree_map(lambda t: owners[id(t)] if id(t) in owners else _wrap(t), out)


def _check(name: str, tensors: list[Tensor], args: Any) -> None:
    hosts = [t for t in tensors if not isinstance(t, DeviceTensor) and t.ndim]
    if name in ASKS or (name == "aten::copy_" and not isinstance(args[0], DeviceTensor)):
        _wait(name)
    if name in COPIES and any(t.ndim and not isinstance(t, DeviceTensor) for t in tensors[-1:]):
        _pageable(tensors[-1], name)
    if name in INDEXED and isinstance(args[0], DeviceTensor):
        for index in args[1]:
            if isinstance(index, Tensor) and not isinstance(index, DeviceTensor) and index.ndim:
                _pageable(index, f"{name} with a host index")
        if any(isinstance(t, DeviceTensor) and t.dtype == torch.bool for t in args[1] if t is not None):
            _wait(f"{name} with a mask")  # its shape depends on the values
        hosts = [t for t in hosts if not any(t is index for index in args[1])]
    if hosts and name not in COPIES:
        shapes = [tuple(t.shape) for t in hosts]
        raise RuntimeError(f"{name}: expected all tensors on cuda, found {shapes} on the cpu")


def _wait(name: str) -> None:
    if not DeviceTensor.open:
        raise RuntimeError(f"{name} waits for the device")
    DeviceTensor.waited += 1


class Pinned(Tensor):
    """A host tensor in pinned memory; what is computed from it is not pinned."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _pageable(source: Tensor, name: str) -> None:
    if not isinstance(source, Pinned | DeviceTensor):
        _wait(f"{name} from pageable memory")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _wrap(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else value


@contextmanager
def waits() -> Iterator[None]:
    """Allow values to be read, and the host to wait, in this block."""
    DeviceTensor.open += 1
    try:
        yield
    finally:
        DeviceTensor.open -= 1


def moved(module: M) -> M:
    """A copy on the device, for inference. nn.Module.to would ask torch's C++ side, which knows no such device."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: DeviceTensor(value.detach()) for name, value in table.items() if value is not None})
    return twin


class PretendCuda(TorchFunctionMode):
    """Within this context, device="cuda" makes DeviceTensors."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0].as_subclass(Pinned)
        if name in ("tolist", "numpy") and isinstance(args[0], DeviceTensor):
            _wait(name)
            return func(args[0].inner)
        if name == "__setitem__" and isinstance(args[0], DeviceTensor):
            # By itself torch would first put a number on the device that it believes the tensor to be on.
            target, index, value = args
            _check("aten::index_put_", [value] if isinstance(value, Tensor) else [], (target, _indices(index)))
            target.inner[tree_map(_inner, index)] = _inner(value)
            return None
        if name == "cuda" or (name == "to" and any(_is_cuda(value) for value in (*args[1:], *kwargs.values()))):
            _pageable(args[0], name)
            moved = args[0] if isinstance(args[0], DeviceTensor) else DeviceTensor(args[0].as_subclass(Tensor).clone())
            dtype = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)), moved.dtype)
            return moved.to(dtype)
        if _is_cuda(kwargs.get("device")):
            del kwargs["device"]
            if name in ("tensor", "as_tensor"):  # of Python's numbers
                _wait(f"{name} from pageable memory")
            return _wrap(tree_map(_inner, func(*args, **kwargs)))
        return func(*args, **kwargs)


def _indices(index: Any) -> list[Tensor]:
    return [part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, Tensor)]


def _is_cuda(value: Any) -> bool:
    return isinstance(value, str | torch.device) and torch.device(value).type == "cuda"
