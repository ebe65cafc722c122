"""What only a GPU can show: the graph on GPU operators, fp16 with its scaler, and that no step waits for the device."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from no_waits import no_waits
from square_view import VIEW

import pipelines
from pipelines.readers.coco import read_annotations
from ssd.config import DATA_PIPELINES, Config
from ssd.detectors.ssd300.loss import ssd_losses
from ssd.detectors.ssd300.model import SSD300
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.ssd300.synthetic import synthetic_batch
from ssd.distributed import Ranks
from ssd.precision import grad_scaler
from ssd.training.build import build_training
from ssd.training.optimizer import build_optimizer
from ssd.training.prefetch import on_side_stream
from ssd.training.state import Training
from ssd.training.step import build_step

pytestmark = pytest.mark.gpu


@pytest.fixture(params=DATA_PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return request.param


@pytest.fixture
def gpu() -> Ranks:
    return Ranks(0, 0, 1, torch.device("cuda", 0))


def _loader(name: str, data: Path, ranks: Ranks):
    split = read_annotations(data, "train2017")
    return pipelines.build_train(name, split, batch_size=4, num_workers=2, seed=3, ranks=ranks, view=VIEW)


def _training(config: Config, ranks: Ranks) -> Training:
    torch.manual_seed(0)
    model = SSD300("resnet18", 7).to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config)
    return Training(model, optimizer, grad_scaler(config, ranks.device), ssd_losses, config, ranks)


def test_batches_lie_on_the_gpu(name: str, demo_data: Path, gpu: Ranks) -> None:
    (batch,) = islice(_loader(name, demo_data, gpu).batches(0), 1)
    assert all(tensor.device == gpu.device for tensor in (batch.images, batch.offsets, batch.labels))
    assert batch.image_ids.device.type == "cpu"
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.labels > 0).any(dim=1).all()


def test_gpu_and_cpu_batches_agree(name: str, demo_data: Path, gpu: Ranks) -> None:
    """Equal seeds draw equal crops on both; targets agree, and pixels within 2/255 on average (nvJPEG differs)."""
    on_cpu = Ranks(0, 0, 1, torch.device("cpu"))
    (ours,) = islice(_loader(name, demo_data, gpu).batches(0), 1)
    (theirs,) = islice(_loader(name, demo_data, on_cpu).batches(0), 1)
    assert (ours.labels.cpu() != theirs.labels).float().mean().item() < 1e-4
    torch.testing.assert_close(ours.offsets.cpu(), theirs.offsets, atol=1e-3, rtol=1e-3)
    assert (ours.images.cpu() - theirs.images).abs().mean().item() * 0.226 < 2 / 255


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "clip_norm": 1.0, "accumulate": 2}], ids=["plain", "options"])
@pytest.mark.parametrize("flag", ["fp16", "bf16"])
def test_steps_do_not_wait_for_the_device(
    name: str, flag: str, options: dict[str, Any], demo_data: Path, gpu: Ranks
) -> None:
    training = _training(Config(batch_size=4, **{flag: True}, **options), gpu)
    batches = _loader(name, demo_data, gpu).batches(0)
    for batch in islice(batches, 2):
        training.train_step(training.model, batch, lr=1e-3)
    batch = next(batches)
    with no_waits():
        losses = training.train_step(training.model, batch, lr=1e-3)
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("settings", [{"cuda_graphs": True}, {"compile": True}, {"compile": True, "cuda_graphs": True}])
@pytest.mark.parametrize("flag", ["fp16", "bf16"])
def test_other_ways_to_take_a_step_learn_the_same(settings: dict[str, bool], flag: str, gpu: Ranks) -> None:
    """A graph is captured after 11 steps. 16-bit types and other orders part two runs by a few parts in a thousand a
    step; a graph that read a stale batch or rate would not learn at all."""
    batches = [synthetic_batch(4, 7, gpu.device, seed=number) for number in range(3)]

    def losses_of(config: Config) -> torch.Tensor:
        training, _ = build_training(config, [(number, str(number)) for number in range(1, 7)], gpu)
        training.model.train()
        take_step = build_step(training)
        return torch.stack([take_step(batches[step % 3], 1e-4).sum() for step in range(18)])

    plain = Config(detector=SSD300Settings("resnet18"), backbone_weights="none", batch_size=4, seed=0, **{flag: True})
    expected, found = losses_of(plain), losses_of(replace(plain, **settings))
    assert expected[-1] < 0.9 * expected[2]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_replays_do_not_wait_for_the_device(gpu: Ranks) -> None:
    config = Config(
        detector=SSD300Settings("resnet18"), backbone_weights="none", batch_size=4, seed=0, bf16=True, cuda_graphs=True
    )
    training, _ = build_training(config, [(1, "one")], gpu)
    training.model.train()
    take_step, batch = build_step(training), synthetic_batch(4, 2, gpu.device)
    for _ in range(13):
        take_step(batch, 1e-3)
    with no_waits():
        losses = take_step(batch, 1e-3)
    assert torch.isfinite(losses).all()


def test_batches_of_the_side_stream_are_the_loaders(name: str, demo_data: Path, gpu: Ranks) -> None:
    """DALI shares images between the GPU's JPEG engine and CUDA's decoder as they are free, and the two round in their
    own ways: two runs may part by two levels of 255. A batch that is read before it is whole differs by far more."""
    levels = 2 if name == "dali" else 0
    images_atol = levels / 255 / min(VIEW.std)
    plain = islice(_loader(name, demo_data, gpu).batches(0), 3)
    beside = islice(on_side_stream(_loader(name, demo_data, gpu).batches(0), gpu.device), 3)
    for ours, theirs in zip(beside, plain, strict=True):
        torch.testing.assert_close(ours.images, theirs.images, atol=images_atol + 1e-5, rtol=0)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(a, b)


def test_a_cpu_checkpoint_goes_on_in_fp16_on_a_gpu(demo_data: Path, gpu: Ranks) -> None:
    on_cpu = Ranks(0, 0, 1, torch.device("cpu"))
    config = Config(batch_size=4)
    before = _training(config, on_cpu)
    (batch,) = islice(_loader("no_dali", demo_data, on_cpu).batches(0), 1)
    before.train_step(before.model, batch, lr=1e-3)
    after = _training(Config(batch_size=4, fp16=True), gpu)
    after.restore(before.state())
    (batch,) = islice(_loader("no_dali", demo_data, gpu).batches(0), 1)
    assert torch.isfinite(after.train_step(after.model, batch, lr=1e-3)).all()
