"""Memory that is used up ends a command with one line that names what to pass; other errors keep their traceback."""

import numpy as np
import pytest
import torch

import main
from ssd.errors import memory_failure

FAR_TOO_MUCH = 1 << 60


def _of_torch() -> None:
    torch.empty(FAR_TOO_MUCH, dtype=torch.uint8)


def _of_numpy() -> None:
    np.empty(FAR_TOO_MUCH, dtype=np.uint8)


def _of_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize("use_up", [_of_torch, _of_numpy, _of_gpu])
def test_it_is_one_line(use_up: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(main.COMMANDS, "doctor", lambda arguments: use_up())  # type: ignore[operator]
    assert main.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory: ") and "--batch-size" in said and said.count("\n") == 1, said


def test_a_workers_cause_is_found() -> None:
    error = RuntimeError(
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        "RuntimeError: [enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 8 bytes.\n"
    )
    assert "allocate memory: 8 bytes; pass" in str(memory_failure(error))


def test_other_errors_are_not() -> None:
    assert memory_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
