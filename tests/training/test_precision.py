"""Which type a run computes in."""

import pytest
import torch

from ssd.config import Config
from ssd.precision import compute_dtype, grad_scaler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("units", "flags", "device", "expected"),
    [
        ("AVX512", {}, CPU, None),
        ("AVX512", {"bf16": True}, CPU, torch.bfloat16),
        ("AVX512", {"fp16": True}, CPU, torch.bfloat16),
        ("DEFAULT", {"bf16": True}, CPU, torch.bfloat16),  # not x86, or not known
        ("AVX2", {"bf16": True}, CPU, None),
        ("AVX2", {"fp16": True}, CPU, None),
        ("AVX2", {"fp16": True}, GPU, torch.float16),
        ("AVX2", {"bf16": True}, GPU, torch.bfloat16),
        ("AVX2", {}, GPU, None),
    ],
)
def test_a_cpu_without_16_bit_units_computes_in_float32(
    units: str,
    flags: dict[str, bool],
    device: torch.device,
    expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: units)
    assert compute_dtype(Config(**flags), device) is expected


def test_only_float16_scales_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert not grad_scaler(Config(fp16=True), CPU).is_enabled()
