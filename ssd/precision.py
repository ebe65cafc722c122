"""Mixed precision: which 16-bit type a run computes in, if any, and the gradient scaling that fp16 needs."""

import torch

from ssd.config import Config


def compute_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """float16 or bfloat16 for convolutions and matrix products, or None for float32 throughout.

    --fp16 on a CPU computes in bfloat16, the 16-bit type that CPUs have instructions for; one that has none computes
    in float32, see `has_16_bit_units`.
    """
    if not (config.fp16 or config.bf16) or not has_16_bit_units(device):
        return None
    return torch.float16 if config.fp16 and device.type == "cuda" else torch.bfloat16


def has_16_bit_units(device: torch.device) -> bool:
    """False of an x86 CPU without AVX-512: there a 3x3 convolution in bfloat16 takes 7 times as long as in float32, and
    its backward pass 9 to 16 times (torch 2.15 on an AMD EPYC, one thread)."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2"


def convolutions_in_tf32(device: torch.device) -> bool:
    """Whether convolutions in float32 round what they multiply to TF32's 10 bits of mantissa. It is torch's default on
    NVIDIA's GPUs that have it, Ampere and later. Matrix products do not."""
    if device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context in which the model runs; the loss is computed in float32 inside it too."""
    dtype = compute_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def grad_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that fp16's gradients do not vanish; does nothing in the other types."""
    return torch.amp.GradScaler(device.type, enabled=compute_dtype(config, device) is torch.float16)
