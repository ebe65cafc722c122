"""The waits that the tests of devices look for are seen where they are put in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_gpu import GPU, Waits, pretend, pretended_gpu
from square_view import VIEW
from test_fake_device import PLAIN, a_step, host_batch
from test_fake_device_detection import SETTINGS, noise, on_gpu, warm_up
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils.data._utils.pin_memory import pin_memory

from pipelines import augmentation
from pipelines.no_dali import loaders
from ssd import constants
from ssd.detectors.postprocess import suppression
from ssd.detectors.ssd300 import postprocess
from ssd.detectors.ssd300.postprocess import detect
from ssd.images import normalise
from ssd.training import state


def plant_item(tensor: Tensor) -> None:
    tensor.flatten()[0].item()


def plant_nonzero(tensor: Tensor) -> None:
    tensor.flatten()[:4].nonzero()


def plant_host_constant(tensor: Tensor) -> None:
    tensor.flatten()[:4] + torch.ones(4)


def plant_copied_constant(tensor: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=tensor.device)


def plant_mask(tensor: Tensor) -> None:
    tensor.flatten()[tensor.flatten() > 0]


FAULTS = [plant_item, plant_nonzero, plant_host_constant, plant_copied_constant, plant_mask]
faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


def test_faults_in_the_step_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = state.Training._sum_of_gradients
    with a_step(PLAIN) as take:
        for fault, error, text in (
            (plant_item, DataDependentOutputException, "_local_scalar_dense"),
            (plant_nonzero, DynamicOutputShapeException, "nonzero"),
            (plant_mask, DynamicOutputShapeException, "nonzero"),
            (plant_host_constant, RuntimeError, "device"),
            (plant_copied_constant, AssertionError, "a copy between the host and the GPU"),
        ):

            def with_fault(training: state.Training, fault: Callable[[Tensor], None] = fault) -> Tensor:
                fault(training.statistics)
                return norm(training)

            monkeypatch.setattr(state.Training, "_sum_of_gradients", with_fault)
            with pytest.raises(error, match=text):
                take()
            monkeypatch.undo()
            take()


def seen(waits: Waits, allowed: int, run: Callable[[], Any]) -> bool:
    """Whether the instrument tells a fault: a tensor on the wrong device, or more waits than allowed."""
    waits.found = []
    try:
        run()
    except AssertionError as error:
        return "on the GPU and on the host" in str(error)
    return len(waits.found) > allowed


@faults
def test_a_fault_in_finishing_is_seen(fault: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        host = pin_memory(host_batch())
        loaders._finish(host, GPU, VIEW)
        assert not seen(waits, 0, lambda: loaders._finish(host, GPU, VIEW))
        maps = augmentation.colour_maps

        def with_fault(colour: Tensor) -> tuple[Tensor, Tensor]:
            fault(colour)
            return maps(colour)

        monkeypatch.setattr(augmentation, "colour_maps", with_fault)
        assert seen(waits, 0, lambda: loaders._finish(host, GPU, VIEW))


def test_a_batch_that_is_not_pinned_is_seen() -> None:
    with pretended_gpu() as waits:
        loaders._finish(host_batch(), GPU, VIEW)
        assert seen(waits, 0, lambda: loaders._finish(host_batch(), GPU, VIEW))


@faults
def test_a_fault_in_detection_is_seen(fault: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        predictions = on_gpu(noise(1, 4, 8))
        warm_up()
        assert not seen(waits, 3, lambda: detect(predictions, **SETTINGS))
        share = suppression._share

        def with_fault(boxes_ltrb: Tensor, nms_iou: float) -> Tensor:
            fault(boxes_ltrb)
            return share(boxes_ltrb, nms_iou)

        monkeypatch.setattr(suppression, "_share", with_fault)
        assert seen(waits, 3, lambda: detect(predictions, **SETTINGS))


def test_rounds_on_a_gpu_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's way, which there would wait twice a round."""
    for module in (postprocess, suppression):
        monkeypatch.setattr(module, "_DROPS_AT_ONCE_ON", ("cpu", "cuda"))
    with pretended_gpu() as waits:
        warm_up()
        assert seen(waits, 20, lambda: detect(on_gpu(noise(1, 4, 8)), **SETTINGS))


def test_uncached_constants_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_gpu() as waits:
        warm_up()
        monkeypatch.setattr(constants, "_kept", constants._kept.__wrapped__)
        assert seen(waits, 0, lambda: normalise(pretend(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))))
        monkeypatch.undo()
