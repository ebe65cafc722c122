"""Losses and gradients that are not finite: what a step, and a run, makes of them."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_training import (
    GOOD,
    INFINITE,
    NAN,
    Loader,
    batch_of,
    equal,
    lines_of,
    log_of,
    losses_of,
    names,
    new_training,
    run_training,
    weights_of,
)

from ssd.checkpoints import checkpoint
from ssd.training.loss_log import MAX_LOST_STEPS, NonFiniteLossError


@pytest.mark.parametrize("bad", [NAN, INFINITE], ids=["nan", "infinite"])
@pytest.mark.parametrize("good_steps", [0, 3])
def test_a_bad_batch_changes_nothing_and_is_counted(bad: Tensor, good_steps: int) -> None:
    """Not even the momentum of a first step, nor batch norm's statistics; and the next good step is as without it."""
    training, without = new_training(), new_training()
    for one in (training, without):
        for step in range(good_steps):
            torch.manual_seed(step)
            one.train_step(one.model, batch_of(Loader.random_images(step)), lr=0.1)
    before = weights_of(training)
    assert not training.train_step(training.model, batch_of(bad), lr=0.1).isfinite().all()
    assert equal(weights_of(training), before) and int(training.skipped_steps) == 1
    for one in (training, without):
        torch.manual_seed(7)
        assert one.train_step(one.model, batch_of(GOOD), lr=0.1).isfinite().all()
    assert equal(weights_of(training), weights_of(without)) and not equal(weights_of(training), before)
    assert int(training.skipped_steps) == 1


def test_an_infinite_loss_with_finite_gradients_changes_nothing() -> None:
    training = new_training()
    training.losses_of = lambda model, batch: {**losses_of(model, batch), "constant": torch.tensor(math.inf)}
    before = weights_of(training)
    training.train_step(training.model, batch_of(GOOD), lr=0.1)
    assert equal(weights_of(training), before) and int(training.skipped_steps) == 1


def test_a_finite_loss_with_infinite_gradients_changes_nothing() -> None:
    training = new_training()
    # The square root's slope at 0 is infinite.
    training.losses_of = lambda model, batch: {"box": (model(batch.images) * 0).sum().abs().sqrt()}
    before = weights_of(training)
    assert training.train_step(training.model, batch_of(GOOD), lr=0.1).isfinite().all()
    assert equal(weights_of(training), before) and int(training.skipped_steps) == 1


def test_an_overflow_of_the_scaled_gradients_is_skipped_and_counted() -> None:
    """As fp16's first steps do: the scale is halved until they fit, and those steps changed nothing."""
    training = new_training(torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000))
    before, skipped = weights_of(training), 0
    while equal(weights_of(training), before) and skipped < 20:
        skipped = int(training.skipped_steps)
        losses = training.train_step(training.model, batch_of(100 * GOOD), lr=0.1)
        assert losses.isfinite().all()
    assert 0 < skipped == int(training.skipped_steps) < 20
    assert training.scaler.get_scale() == 2.0 ** (127 - skipped)


def test_a_lost_step_is_told_and_its_images_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = Loader(lambda step: NAN if step in (2, 5) else Loader.random_images(step))
    training = new_training(log_interval=2)
    results, _ = run_training(training, tmp_path, loader)
    assert results["skipped_steps"] == 2
    assert lines_of(tmp_path / "lost-batches.jsonl") == [
        {"step": 3, "image_ids": [20, 21]},
        {"step": 6, "image_ids": [50, 51]},
    ]
    assert "warning: the loss was not finite at step 3" in capsys.readouterr().out
    lines = log_of(tmp_path, "train")
    assert [line["skipped_steps"] for line in lines if line["step"] in (2, 4, 6, 8)] == [0, 1, 2, 2]
    assert all(line["loss"] is None or math.isfinite(line["loss"]) for line in lines)
    assert all(value.isfinite().all() for value in weights_of(training).values())


def test_a_loss_that_stays_infinite_ends_the_run(tmp_path: Path) -> None:
    """Also between two lines of the log; its checkpoints are those from before."""
    loader = Loader(lambda step: NAN if step >= 4 else Loader.random_images(step))
    training = new_training(checkpoint_every=(1, "steps"), epochs=9)
    with pytest.raises(NonFiniteLossError, match=r"5 steps in a row up to step 9; .*--learning-rate"):
        run_training(training, tmp_path, loader)
    assert training.step == 4 + MAX_LOST_STEPS == int(training.skipped_steps) + 4
    assert [line["step"] for line in lines_of(tmp_path / "lost-batches.jsonl")] == [5, 6, 7, 8, 9]
    assert names(tmp_path) == ["last.pt", "step-00000004.pt", "step-00000005.pt"]
    last = checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")
    assert last["step"] == 5 and all(value.isfinite().all() for value in last["model"].values())


def test_losses_that_are_lost_now_and_then_do_not_end_a_run(tmp_path: Path) -> None:
    run_training(new_training(), tmp_path, Loader(lambda step: NAN if step % 5 else Loader.random_images(step)))
    assert log_of(tmp_path, "train")[-1]["skipped_steps"] == 9


def test_a_run_that_ends_with_lost_steps_has_failed(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="2 steps in a row up to step 12"):
        run_training(new_training(), tmp_path, Loader(lambda step: NAN if step > 9 else Loader.random_images(step)))


class Graph:
    """What training needs of a captured step."""

    resets = 0

    def reset(self) -> None:
        self.resets += 1


@pytest.mark.parametrize("bad_from", [None, 4])
def test_a_captured_step_is_reset_at_the_end(bad_from: int | None, tmp_path: Path) -> None:
    """Also by an error, after which the ranks leave their group: NCCL waits there for graphs that hold its kernels."""
    training = new_training(epochs=9)
    training.graph = graph = Graph()  # type: ignore[assignment]
    ends_badly = pytest.raises(NonFiniteLossError) if bad_from else nullcontext()
    with ends_badly:
        run_training(training, tmp_path, Loader(lambda step: NAN if bad_from and step >= bad_from else GOOD))
    assert graph.resets == 1
