"""What can be chosen of training: frozen trunk, moving average, parts of batches, clipping, schedule, apex."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import assert_equal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy_training import (
    CPU,
    GOOD,
    NAN,
    Loader,
    batch_of,
    equal,
    interrupt_at,
    new_training,
    resumed,
    run_training,
    weights_of,
)

from ssd.batch import MatchedBatch
from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.detectors.ssd300.model import SSD300
from ssd.errors import InputError
from ssd.schedule import Warmup, lr_at
from ssd.training.ema import Average
from ssd.training.interruption import Preempted
from ssd.training.optimizer import build_optimizer, set_rate
from ssd.training.state import Training
from ssd.training.step import build_step

ALL: dict[str, Any] = {
    "ema": 0.9,
    "bias_rate": 2.0,
    "clip_norm": 0.5,
    "accumulate": 2,
    "schedule": "cosine",
    "warmup": 2,
}


def averages_of(training: Training) -> dict[str, Tensor]:
    assert training.average is not None
    return {name: value.clone() for name, value in training.average.model.state_dict().items()}


# --- all of them, interrupted ---


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_with_all_options_resumes_bit_for_bit(stop: int, tmp_path: Path) -> None:
    settings = {**ALL, "epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    run_training(new_training(**settings), tmp_path / "undisturbed")
    training = new_training(**settings)
    with pytest.raises(Preempted):
        run_training(training, tmp_path / "run", interrupt_at(stop, training))
    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", **settings)
    run_training(training, tmp_path / "run", loader)
    last, expected = (checkpoint.load_run(tmp_path / name / "checkpoints/last.pt") for name in ("run", "undisturbed"))
    for key in ("model", "trained_model", "average_statistics", "statistics", "optimizer", "scaler"):
        assert_equal(last[key], expected[key], key)
    assert not torch.equal(last["model"]["layer.weight"], last["trained_model"]["layer.weight"])


# --- the moving average ---


def test_the_average_is_that_of_the_formula() -> None:
    training = new_training(ema=0.3)
    expected = averages_of(training)
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]):  # min(0.3, (1 + step) / (10 + step))
        build_step(training)(batch_of(Loader.random_images(step)), 0.1)
        training.step += 1
        now = training.model.state_dict()
        for name in expected:
            if "num_batches" not in name:
                expected[name] = decay * expected[name] + (1 - decay) * now[name]
    for name, value in averages_of(training).items():
        if "num_batches" not in name:  # which no evaluation reads
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)  # a few roundings of float32


def test_the_average_counts_what_its_model_counts() -> None:
    """As YOLOv2 counts the images that it has seen, by which its loss goes."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    average = Average(model, 0.9)
    model.seen += 7
    average.update(0)
    assert int(average.model.seen) == 7


def test_the_average_leaves_the_training_as_it_was() -> None:
    plain, averaged = new_training(), new_training(ema=0.9)
    for training in (plain, averaged):
        torch.manual_seed(1)
        for step in range(3):
            build_step(training)(batch_of(Loader.random_images(step)), 0.1)
    assert equal(weights_of(plain), weights_of(averaged))


def test_a_lost_step_keeps_the_average_finite() -> None:
    training = new_training(ema=0.5)
    build_step(training)(batch_of(NAN), 0.1)
    assert int(training.skipped_steps) == 1
    assert all(value.isfinite().all() for value in averages_of(training).values())


def test_what_is_judged_and_saved_is_the_average() -> None:
    training = new_training(ema=0.9)
    for _ in range(3):
        build_step(training)(batch_of(GOOD), 0.5)
    content = training.state()
    assert training.average is not None and training.judged_model is training.average.model
    assert equal(content["model"], averages_of(training))
    assert equal(content["trained_model"], training.model.state_dict())
    assert not training.judged_model.training and training.model.training
    # Without --ema a run goes on from the weights that were trained.
    plain = new_training()
    plain.model.load_state_dict(content["model"])
    plain.restore(content)
    assert equal(weights_of(plain), weights_of(training))
    assert plain.judged_model is plain.model and "trained_model" not in plain.state()


# --- a batch in parts ---


def linear_training(accumulate: int, **settings: Any) -> Training:
    """Without batch norm, which sees the parts, and dropout, which draws otherwise for them."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    config = Config(accumulate=accumulate, learning_rate=1.0, **settings)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def losses_of(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
        box, class_ = model(batch.images).square().mean(dim=0)
        return {"box": box, "class": class_}

    return Training(model, build_optimizer(model, config), scaler, losses_of, config, CPU)


IMAGES = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_trains_as_the_whole(parts: int) -> None:
    whole, in_parts = linear_training(1), linear_training(parts)
    for _ in range(3):
        losses = [t.train_step(t.model, batch_of(IMAGES), lr=0.1) for t in (whole, in_parts)]
        torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    assert whole.optimizer.param_groups[0]["lr"] == 0.1
    # Sums in another order: a few roundings of float32.
    for mine, other in zip(in_parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad_image", [0, 5])
def test_a_bad_image_in_any_part_skips_the_step(bad_image: int) -> None:
    training = linear_training(4)
    before = [p.clone() for p in training.model.parameters()]
    images = IMAGES.clone()
    images[bad_image] = math.nan
    assert not training.train_step(training.model, batch_of(images), lr=0.1).isfinite().all()
    assert int(training.skipped_steps) == 1
    assert all(map(torch.equal, training.model.parameters(), before))


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("parts", [1, 4])
def test_ranks_exchange_gradients_once_a_step(parts: int, group_of_one: None) -> None:
    training = linear_training(parts)
    forward = DistributedDataParallel(training.model, gradient_as_bucket_view=True)
    exchanged: list[Tensor] = []

    def exchange(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(bucket.buffer().clone())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    forward.register_comm_hook(None, exchange)
    training.train_step(forward, batch_of(IMAGES), lr=0.1)
    assert len(exchanged) == 1
    alone = linear_training(1)
    alone.train_step(alone.model, batch_of(IMAGES), lr=0.1)
    for mine, other in zip(training.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


# --- a rate that falls ---


def test_momentum_stays_as_it_is_where_the_rate_falls() -> None:
    """Detectron multiplies it by the new rate over the old, as Caffe2's has the rate in it. PyTorch's has not."""
    training = linear_training(1, momentum=0.9, weight_decay=0.0, bias_rate=1.0)
    parameters = list(training.model.parameters())
    velocities = [torch.zeros_like(each) for each in parameters]
    for lr in (0.1, 0.1, 0.01, 0.01):
        loss = training.model(IMAGES).square().mean(dim=0).sum()
        gradients = torch.autograd.grad(loss, parameters)
        velocities = [0.9 * velocity + gradient for velocity, gradient in zip(velocities, gradients, strict=True)]
        expected = [p.detach() - lr * velocity for p, velocity in zip(parameters, velocities, strict=True)]
        training.train_step(training.model, batch_of(IMAGES), lr=lr)
        for parameter, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)


# --- clipping ---


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_long_gradients_are_shortened_and_short_ones_are_not(scale: float | None) -> None:
    """Also where fp16 scales them up: it is the true gradient whose length counts."""

    def step_with(clip_norm: float | None) -> Tensor:
        training = linear_training(1, clip_norm=clip_norm, momentum=0.0, weight_decay=0.0)
        if scale is not None:
            training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = torch.cat([p.detach().flatten().clone() for p in training.model.parameters()])
        training.train_step(training.model, batch_of(IMAGES), lr=1.0)
        return before - torch.cat([p.detach().flatten() for p in training.model.parameters()])

    free = step_with(None)
    length = float(free.norm())
    torch.testing.assert_close(step_with(2 * length), free)
    shortened = step_with(length / 4)
    assert float(shortened.norm()) == pytest.approx(length / 4, rel=1e-4)  # torch divides by the norm + 1e-6
    torch.testing.assert_close(4 * shortened, free, rtol=1e-3, atol=1e-5)


def test_clipping_still_skips_what_is_not_finite() -> None:
    training = new_training(clip_norm=1.0)
    before = weights_of(training)
    training.train_step(training.model, batch_of(NAN), lr=0.1)
    assert equal(weights_of(training), before) and int(training.skipped_steps) == 1


# --- the cosine ---


def cosine(step: int, **settings: Any) -> float:
    plain: dict[str, Any] = {"base_lr": 0.08, "global_batch_size": 32}
    return lr_at(step, **{**plain, "falls": ((10, 0.1),), "cosine_steps": 40, **settings})


@pytest.mark.parametrize(
    ("step", "expected"),
    # cos of 0, 60, 90, 120, 180 degrees: 1, 1/2, 0, -1/2, -1
    [(0, 0.08), (10, 0.08 * (2 + math.sqrt(2)) / 4), (20, 0.04), (30, 0.08 * (2 - math.sqrt(2)) / 4), (40, 0.0)],
)
def test_half_a_cosine_to_zero(step: int, expected: float) -> None:
    assert cosine(step) == pytest.approx(expected, rel=1e-12, abs=1e-17)


def test_the_cosine_begins_after_the_warmup() -> None:
    # 20 steps of warm-up, then 60: a third of the way at 40, two thirds at 60.
    settings = {"warmup": Warmup(20), "cosine_steps": 80}
    assert [cosine(step, **settings) for step in (9, 19, 20)] == pytest.approx([0.04, 0.08, 0.08], rel=1e-12)
    assert [cosine(step, **settings) for step in (40, 60)] == pytest.approx([0.06, 0.02], rel=1e-12)
    assert cosine(5, warmup=Warmup(50), cosine_steps=40) == pytest.approx(0.08 * 6 / 50, rel=1e-12)  # no time to fall


# --- the frozen trunk ---


def test_a_frozen_trunk_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = SSD300("resnet18", 3)
    model.freeze_trunk()
    config = Config(weight_decay=0.1)
    optimizer = build_optimizer(model, config)

    def losses_of(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
        predictions = model(batch.images)
        return {"box": predictions.offsets.square().mean(), "class": predictions.logits.square().mean()}

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(model, optimizer, scaler, losses_of, config, CPU)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.train_step(model, batch_of(torch.randn(2, 3, 300, 300)), lr=0.1)
    assert int(training.skipped_steps) == 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"extra_blocks", "box_heads", "class_heads"}
    assert "extra_blocks.0.1.running_mean" in changed
    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.training and model.extra_blocks.training
    assert not any(module.training for module in model.trunk.modules())


# --- rates and decays of their own ---


class WithGroupNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.norm = nn.GroupNorm(2, 4)


def by_name(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_biases_and_norms_have_rates_and_decays_of_their_own() -> None:
    """SGD's first step is w - rate x (g + decay w); Detectron's rule: biases, a norm's too, at twice the rate."""
    torch.manual_seed(0)
    model = WithGroupNorm()
    nn.init.normal_(model.conv.bias)
    nn.init.normal_(model.norm.bias)
    config = Config(weight_decay=0.1, bias_rate=2.0, bias_decay=0.3, norm_decay=0.5, momentum=0.9)
    optimizer = build_optimizer(model, config)
    before = by_name(model)
    set_rate(optimizer, 0.01)
    for value in model.parameters():
        value.grad = torch.full_like(value, 0.25)
    optimizer.step()
    rules = {"conv.weight": (0.01, 0.1), "conv.bias": (0.02, 0.3), "norm.weight": (0.01, 0.5), "norm.bias": (0.02, 0.3)}
    for name, value in by_name(model).items():
        rate, decay = rules[name]
        expected = before[name] - rate * (0.25 + decay * before[name])
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)  # a rounding


def test_without_them_there_are_the_two_groups_of_before() -> None:
    optimizer = build_optimizer(WithGroupNorm(), Config(weight_decay=0.1))
    groups = [([tuple(p.shape) for p in g["params"]], g["weight_decay"]) for g in optimizer.param_groups]
    assert groups == [([(4,), (4,), (4,)], 0.0), ([(4, 2, 1, 1)], 0.1)]
    assert all("rate" not in group for group in optimizer.param_groups)


def test_a_run_that_goes_on_with_other_groups_is_refused(tmp_path: Path) -> None:
    run_training(new_training(epochs=1), tmp_path / "run")
    with pytest.raises(InputError, match="pass --bias-rate 1 --bias-decay 0 --norm-decay 0$"):
        resumed(tmp_path / "run" / "checkpoints" / "last.pt", epochs=2, bias_rate=2.0)


# --- apex ---


class FusedSGD(torch.optim.Optimizer):
    """apex's, as far as it matters here: an overflow buffer of one integer prevents a step."""

    def __init__(self, params: Any, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert self._dummy_overflow_buf.dtype == torch.int32 and self._dummy_overflow_buf.shape == (1,)
        if self._dummy_overflow_buf.item():
            return
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p]["momentum_buffer"]
                momentum.mul_(group["momentum"]).add_(p.grad + group["weight_decay"] * p)
                p.sub_(group["lr"] * momentum)


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    package, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedSGD = FusedSGD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_apex_takes_the_steps_that_torch_takes(scale: float | None, apex: None) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)

    ours, theirs = (new_training(scaler(), optimizer=name) for name in ("sgd", "apex"))
    assert isinstance(theirs.optimizer, FusedSGD)
    for images in (GOOD, NAN, GOOD):
        for training in (ours, theirs):
            torch.manual_seed(0)
            training.train_step(training.model, batch_of(images), lr=0.1)
    assert int(ours.skipped_steps) == int(theirs.skipped_steps) == 1
    mine, other = weights_of(ours), weights_of(theirs)
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-6, atol=1e-7)  # fused or not: a rounding
    # A run may go on with the other one.
    theirs.restore(ours.state())
    assert equal(weights_of(theirs), {**weights_of(theirs), **{n: v for n, v in mine.items() if "momentum" in n}})


def test_without_apex_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(InputError, match=r"--optimizer apex: apex cannot be imported .*--optimizer sgd"):
        new_training(optimizer="apex")


def test_apex_without_its_extensions_says_so(apex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("apex.optimizers.FusedSGD requires cuda extensions")

    monkeypatch.setattr(FusedSGD, "__init__", refuse)
    with pytest.raises(InputError, match="requires cuda extensions; pass --optimizer sgd"):
        new_training(optimizer="apex")
