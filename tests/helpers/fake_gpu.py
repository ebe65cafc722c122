"""A GPU that is none, for tests of what is the device's and what is the host's. Two instruments, with one rule.

`pretended_gpu`: tensors that say "cuda:0" and have their values on the CPU. Operators run, so what is computed is real,
and each wait of the host for the device is counted: values that are read or chosen by, and copies between the two.
Without autograd. `fake_gpu`: torch's fake tensors, which have no values: a wait is an exception of torch's own, and
whole training steps pass in a second, with a stand-in for the backward pass, whose engine asks the driver for devices.

In both a tensor on the wrong device is an exception. The rule of copies: only pinned memory goes to a GPU without a
wait, and nothing comes back without one.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pipelines import augmentation
from ssd import constants
from ssd.detectors.ssd300 import anchors

GPU = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
# What depends on values: their kernels tell the host how much there is, or what.
_READS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.bincount.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
}
_BY_INDEX = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}


def _caches() -> list[Any]:
    return [constants._kept, augmentation._constants, anchors.default_boxes_cxcywh]


@contextmanager
def _without_driver() -> Iterator[None]:
    """torch as it is where there is a GPU. What is cached by device is neither taken from before nor left behind."""
    torch._C._ensureCUDADeviceGuardSet()  # where there is no driver: one that does nothing
    for cache in _caches():
        cache.cache_clear()
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_: True))
        yield
    for cache in _caches():
        cache.cache_clear()


# Values on the CPU


class _OnGpu(Tensor):
    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "_OnGpu":
        return Tensor._make_wrapper_subclass(
            cls, host.shape, host.stride(), host.storage_offset(), dtype=host.dtype, device=GPU
        )

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: outside of `pretended_gpu`")


class Waits(TorchDispatchMode):
    """found: what the host waited for, by the operator's name, in order. launches: how many operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.launches = 0
        self.pinned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [tensor for tensor in tensors if isinstance(tensor, _OnGpu)]
        target = kwargs.get("device")
        to_gpu = bool(on_gpu) if target is None else torch.device(target).type == "cuda"
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        self.launches += 1
        self._judge(func, args, kwargs, tensors, to_gpu)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        wrappers = {id(tensor.host): tensor for tensor in on_gpu}
        hosts = {id(tensor): tensor.host for tensor in on_gpu}
        args, kwargs = tree_map(lambda leaf: hosts.get(id(leaf), leaf), (args, kwargs))
        if func is _ATEN._to_copy.default:  # also where only the device changes, and that is the same here
            kwargs.pop("non_blocking", None)
        out = func(*args, **kwargs)
        if func is _ATEN.copy_.default:
            to_gpu = id(args[0]) in wrappers
        if not to_gpu:
            return out
        return tree_map(
            lambda leaf: (
                (wrappers.get(id(leaf)) if id(leaf) in wrappers else _OnGpu(leaf)) if isinstance(leaf, Tensor) else leaf
            ),
            out,
        )

    def _judge(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], to_gpu: bool) -> None:
        if func in _COPIES:
            source = args[1] if func is _ATEN.copy_.default else args[0]
            target_on_gpu = isinstance(args[0], _OnGpu) if func is _ATEN.copy_.default else to_gpu
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if isinstance(source, _OnGpu) and not target_on_gpu:
                self.found.append("copy to the host")
            elif target_on_gpu and not isinstance(source, _OnGpu):
                if not (non_blocking and source.untyped_storage().data_ptr() in self.pinned):
                    self.found.append("copy from memory that is not pinned")
            return
        mixed = {tensor.device.type for tensor in tensors if tensor.dim()}
        assert len(mixed) < 2, f"{func}: tensors on the GPU and on the host"
        by_mask = func in _BY_INDEX and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func in _READS or by_mask:
            self.found.append(str(func))


def pretend(tensor: Tensor) -> Tensor:
    """The tensor as if it were on the GPU."""
    return _OnGpu(tensor)


def move_to_gpu(*models: nn.Module) -> None:
    """All parameters and buffers, as if they were on the GPU. Within `pretended_gpu`."""
    for module in (module for model in models for module in model.modules()):
        held: dict[str, Any]
        for held in (module._parameters, module._buffers):
            held.update({name: pretend(value.detach()) for name, value in held.items() if value is not None})


def values(tensor: Tensor) -> Tensor:
    """What a tensor of `pretend` holds, on the CPU."""
    assert isinstance(tensor, _OnGpu), "it is on the host"
    return tensor.host


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    waits = Waits()

    def pin(tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        waits.pinned.add(pinned.untyped_storage().data_ptr())
        return pinned

    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor goes through the mode only then
    try:
        with _without_driver(), patch("torch.Tensor.pin_memory", pin), torch.no_grad(), waits:
            yield waits
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts_cpu_only)


# No values at all


class _Transfers(TorchDispatchMode):
    """Raises for a copy between the host and the GPU, whichever way."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A number that an operator takes is a tensor without dimensions, on the host.
        leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        kinds = {leaf.device.type for leaf in leaves if leaf.dim() or func in _COPIES}
        assert kinds != {"cpu", "cuda"}, f"{func}: a copy between the host and the GPU"
        return out


def _apply(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Module._apply, which cannot put a fake tensor in the place of another one."""
    for child in module.children():
        _apply(child, fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
    module._buffers |= {name: fn(buffer) for name, buffer in module._buffers.items() if buffer is not None}
    return module


def _backward(loss: Tensor, gradient: Tensor | None = None) -> None:
    """A stand-in that gives each leaf a gradient, laid out as the leaf is."""
    assert gradient is None or gradient.device == loss.device
    seen, todo = {None}, [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable.detach())


def _fused_sgd_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: Any,
    grad_scale: Any,
    found_inf: Any,
    **_: Any,
) -> None:
    """What the CUDA kernel demands; torch has no fake one."""
    for parameter, *others in zip(params, grads, momenta, strict=True):
        for other in others:
            assert (other.device, other.dtype, other.shape, other.stride()) == (
                parameter.device, parameter.dtype, parameter.shape, parameter.stride(),
            )  # fmt: skip
    assert all(number.is_cuda for number in (lr, grad_scale, found_inf) if isinstance(number, Tensor))


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Where tensors are torch's fake ones. Build what is to be looked at here, and look at it in `no_transfers`."""
    with ExitStack() as stack:
        stack.enter_context(_without_driver())
        stack.enter_context(patch("torch.nn.Module._apply", _apply))
        stack.enter_context(patch("torch.Tensor.backward", _backward))
        stack.enter_context(patch("torch._fused_sgd_", _fused_sgd_))
        # torch's own corrupts the heap here, of a buffer that is a view.
        stack.enter_context(patch("torch.Tensor.__deepcopy__", lambda tensor, memo: tensor.detach().clone()))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


no_transfers = _Transfers
