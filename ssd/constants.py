"""Brings numbers from the host to a device, without waiting for the device.

A plain copy from the host waits until the GPU has done all that is before it. So constants are copied once for each
device, and what changes is copied from pinned memory.
"""

import functools

import torch
from torch import Tensor


def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values as a tensor on a device. Shared: do not write to it."""
    if torch.compiler.is_compiling():  # a tracer's stand-ins for tensors must not outlive it
        return torch.tensor(values, device=device, dtype=dtype)
    return _kept(values, device, dtype)


@functools.cache
def _kept(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, device=device, dtype=dtype)


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
