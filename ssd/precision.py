"""Mixed precision: which 16-bit type a run computes in, if any, and the gradient scaling that fp16 needs."""

import torch

from ssd.config import Config


def compute_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """float16 or bfloat16 for convolutions and matrix products, or None for float32 throughout.

    --fp16 on a CPU computes in bfloat16, the 16-bit type that CPUs have instructions for.
    """
    if config.fp16:
        return torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.bfloat16 if config.bf16 else None


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context in which the model runs; the loss is computed in float32 inside it too."""
    dtype = compute_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def grad_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that fp16's gradients do not vanish; does nothing in the other types."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(config, device) is torch.float16)
