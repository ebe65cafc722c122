"""What only a GPU can show of detectors whose images keep their shapes: batches of both data paths there, and steps."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from no_waits import no_waits
from ragged_data import train_loader, write

from ssd.config import DATA_PIPELINES, Config
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.torchvision.synthetic import synthetic_batch
from ssd.distributed import Ranks
from ssd.training.build import build_training
from ssd.training.state import Training
from ssd.views import ShortSideView

pytestmark = pytest.mark.gpu

CATEGORIES = [(number, f"kind {number}") for number in (1, 2, 3)]


@pytest.fixture
def gpu() -> Ranks:
    return Ranks(0, 0, 1, torch.device("cuda", 0))


def training_of(builder: str, ranks: Ranks, precision: str = "") -> Training:
    config = Config(
        detector=settings_of(builder, "none"), backbone_weights="none", batch_size=2, seed=0,
        **({precision: True} if precision else {}),
    )  # fmt: skip
    training, _ = build_training(config, CATEGORIES, ranks)
    training.model.train()
    return training


@pytest.mark.parametrize("name", DATA_PIPELINES)
def test_gpu_and_cpu_batches_agree(name: str, tmp_path: Path, gpu: Ranks) -> None:
    """Equal seeds draw equal sizes and flips on both; pixels agree within 2/255 on average (nvJPEG differs)."""
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    split = write(tmp_path)
    on_cpu = Ranks(0, 0, 1, torch.device("cpu"))
    ours, theirs = (islice(train_loader(name, split, ranks=ranks).batches(0), 4) for ranks in (gpu, on_cpu))
    for here, there in zip(ours, theirs, strict=True):
        assert here.images.device == gpu.device
        assert torch.equal(here.image_ids, there.image_ids)
        torch.testing.assert_close(here.boxes_ltrb_px.cpu(), there.boxes_ltrb_px)
        assert (here.images.cpu() - there.images).abs().mean().item() * 0.226 < 2 / 255


@pytest.mark.parametrize("builder", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "fasterrcnn_resnet18_fpn"])
@pytest.mark.parametrize("precision", ["", "bf16", "fp16"])
def test_a_step_learns_what_it_learns_on_a_cpu(builder: str, precision: str, gpu: Ranks) -> None:
    """A few steps on one batch. A two-stage detector draws its boxes anew on each device, so of it only the fall of
    the losses is compared."""
    losses = {}
    for ranks in (gpu, Ranks(0, 0, 1, torch.device("cpu"))):
        training = training_of(builder, ranks, precision if ranks is gpu else "")
        batch = synthetic_batch(ShortSideView((96,)), 4, ranks.device, 2)
        steps = [training.train_step(training.model, batch, lr=1e-3).sum().item() for _ in range(4)]
        losses[ranks.device.type] = torch.tensor(steps)
    assert losses["cuda"][-1] < losses["cuda"][0]
    if not builder.startswith("faster"):
        torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=0.03 if precision else 0.005, atol=0)


@pytest.mark.parametrize("builder", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_do_not_wait_for_the_device(builder: str, precision: str, gpu: Ranks) -> None:
    training = training_of(builder, gpu, precision)
    batch = synthetic_batch(ShortSideView((96,)), 4, gpu.device, 2)
    for _ in range(2):
        training.train_step(training.model, batch, lr=1e-3)
    with no_waits():
        losses = training.train_step(training.model, batch, lr=1e-3)
    assert torch.isfinite(losses).all()
