"""apex's FusedSGD in the place of torch's own fused SGD."""

from collections.abc import Iterable
from typing import Any

import torch

from ssd.errors import InputError


def apex_sgd(groups: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> torch.optim.Optimizer:
    """groups: as torch's optimisers take them. Raises InputError where apex, or what it needs, is not there.

    Like torch's fused SGD, and unlike apex's, it takes the verdict on a step (`found_inf`) and fp16's scale
    (`grad_scale`) on the device, from the attributes that torch.amp.GradScaler sets: the host waits for neither.
    """
    try:
        from apex.optimizers import FusedSGD
    except ImportError as error:
        raise InputError(
            f"--optimizer apex: apex cannot be imported ({error}); use NVIDIA's PyTorch image, which has it, or build "
            "it with its CUDA extensions, or pass --optimizer sgd, which is fused too"
        ) from error

    class SkippingFusedSGD(FusedSGD):
        _step_supports_amp_scaling = True  # how GradScaler knows

        def step(self, closure: None = None) -> None:
            if (scale := getattr(self, "grad_scale", None)) is not None:
                gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
                torch._foreach_mul_(gradients, scale.double().reciprocal().float())
            # apex's kernel returns at once where this is not 0.
            self._dummy_overflow_buf = self.found_inf.int().reshape(1)
            super().step(closure)

    try:
        optimizer: torch.optim.Optimizer = SkippingFusedSGD(groups, lr=lr, momentum=momentum)
    except RuntimeError as error:  # of an apex without its extensions, or without a GPU
        raise InputError(f"--optimizer apex: {str(error).splitlines()[0]}; pass --optimizer sgd") from error
    return optimizer
