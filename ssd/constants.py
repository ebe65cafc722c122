"""Small constants, once on each device.

Made anew for each batch, a constant is a copy from the host that waits until the GPU has done all that is before it.
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
