"""Which type a run computes in."""

import pytest
import torch

from ssd.config import Config
from ssd.precision import compute_dtype, grad_scaler
from ssd.speed.comparison import Row, computed_in, show_table
from ssd.speed.steps import Measurement

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


@pytest.mark.parametrize(
    ("precision", "capability", "allowed", "expected"),
    [
        ("fp32", (8, 0), True, "float32, convolutions in TF32"),
        ("fp32", (9, 0), True, "float32, convolutions in TF32"),
        ("fp32", (7, 5), True, "float32"),
        ("fp32", (9, 0), False, "float32"),
        ("bf16", (9, 0), True, "bfloat16"),
    ],
)
def test_benchmarks_say_where_a_gpu_rounds_to_tf32(
    precision: str,
    capability: tuple[int, int],
    allowed: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert computed_in(precision, GPU) == expected
    show_table("train", [Row(precision, False, 2, Measurement(1.0, {"forward": 2.0}, 0.5, 2**20))], GPU)
    assert (f"{precision}: {expected}" in capsys.readouterr().out) == ("TF32" in expected)


def test_only_float16_scales_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    assert not grad_scaler(Config(fp16=True), CPU).is_enabled()
