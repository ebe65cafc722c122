"""The loop on a model of a few weights: numbers gone wrong, when it saves, and that interruptions change nothing."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ENVIRONMENT, ROOT, free_ports
from torch import Tensor, nn

from ssd.batch import MatchedBatch
from ssd.checkpoints import checkpoint
from ssd.checkpoints.retention import kept
from ssd.config import Config
from ssd.distributed import Ranks
from ssd.mlperf.log import ComplianceLog
from ssd.run.files import Run
from ssd.training.evaluations import Judge
from ssd.training.interruption import Preempted
from ssd.training.loop import train
from ssd.training.loss_log import MAX_LOST_STEPS, NonFiniteLossError
from ssd.training.optimizer import build_optimizer
from ssd.training.state import Training

CPU = Ranks(0, 0, 1, torch.device("cpu"))
STEPS_PER_EPOCH = 3


class Tiny(nn.Module):
    """MatchedBatch norm, dropout and a layer: all kinds of state that a detector can have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout, self.layer = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.dropout(self.norm(images)))


def losses_of(model: nn.Module, batch: MatchedBatch) -> dict[str, Tensor]:
    box, class_ = model(batch.images).square().mean(dim=0)
    return {"box": box, "class": class_}


class Loader:
    """Batches of two images by their step, the images of step s (from 0) being called 10 s and 10 s + 1."""

    steps_per_epoch = STEPS_PER_EPOCH
    identity: dict[str, str] = {}
    ranks_share_state = True

    def __init__(self, images_of: Callable[[int], Tensor] | None = None):
        self.taken = 0
        self.images_of = images_of or self.random_images

    @staticmethod
    def random_images(step: int) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))

    def batches(self, first_step: int) -> Iterator[MatchedBatch]:
        for step in range(first_step, 1000):
            self.taken = step + 1
            yield MatchedBatch(
                self.images_of(step), torch.zeros(0), torch.zeros(0), torch.tensor([10 * step, 10 * step + 1])
            )

    def state(self) -> bytes:
        return bytes([self.taken])

    def restore(self, state: bytes) -> None:
        (self.taken,) = state


def new_training(scaler: torch.amp.GradScaler | None = None, ranks: Ranks = CPU, **settings: Any) -> Training:
    torch.manual_seed(0)
    config = Config(**{"learning_rate": 1.0, "batch_size": 2, "epochs": 4, "log_interval": 1, **settings})
    model = Tiny()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    return Training(model, build_optimizer(model, config), scaler, losses_of, config, ranks)


UNOFFICIAL = ComplianceLog(None, Config())
DESCRIBE = {"detector": {"family": "ssd300", "backbone": "resnet18"}, "categories": [], "seed": 0, "data": {}}


def run_training(
    training: Training, folder: Path, loader: Loader | None = None, aps: list[float] | None = None
) -> tuple[dict[str, Any], bool]:
    """aps: what the evaluations find, one after the other; 0 after them."""
    found = iter(aps or [])

    def metrics(detections: np.ndarray) -> dict[str, Any]:
        return {"AP": next(found, 0.0), "AP50": 0.0}

    judge = Judge(lambda: np.zeros((0, 7)), metrics)
    return train(training, loader or Loader(), judge, Run(folder, CPU), UNOFFICIAL, DESCRIBE)


def resumed(file: Path, **settings: Any) -> tuple[Training, Loader]:
    content = checkpoint.load_run(file)
    training, loader = new_training(**settings), Loader()
    training.model.load_state_dict(content["model"])
    training.restore(content)
    torch.set_rng_state(content["rng_states"]["cpu"][0])
    loader.restore(bytes(content["data_states"][0].tolist()))
    assert loader.taken == training.step
    return training, loader


def weights_of(training: Training) -> dict[str, Tensor]:
    """All that a step changes: parameters, batch norm's statistics, momentum."""
    momentum = {f"momentum {i}": s["momentum_buffer"] for i, s in training.optimizer.state_dict()["state"].items()}
    weights = {name: value for name, value in training.model.state_dict().items() if "num_batches" not in name}
    return {name: value.clone() for name, value in (weights | momentum).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def log_of(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(folder / "log.jsonl") if line["event"] == event]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# --- numbers gone wrong ---


def batch_of(images: Tensor) -> MatchedBatch:
    return MatchedBatch(images, torch.zeros(0), torch.zeros(0), torch.zeros(len(images), dtype=torch.int64))


GOOD = Loader.random_images(0)
NAN, INFINITE = GOOD.clone(), GOOD.clone()
NAN[1, 1], INFINITE[1, 1] = math.nan, math.inf


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


# --- when it saves, and what it keeps ---


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ((1, "steps"), range(1, 13)),
        ((5, "steps"), [5, 10, 12]),
        ((1, "epochs"), [3, 6, 9, 12]),
        ((3, "epochs"), [9, 12]),
    ],
)
def test_checkpoints_are_written_when_they_are_due(every: tuple[int, str], steps: list[int], tmp_path: Path) -> None:
    run_training(new_training(checkpoint_every=every, evaluation=(), keep_checkpoints=99), tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", *(f"step-{step:08}.pt" for step in steps)]


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of this clock is 25 seconds: two minutes are over after steps 5 and 10."""
    training = new_training(checkpoint_every=(2, "minutes"), evaluation=(), keep_checkpoints=99)
    monkeypatch.setattr("ssd.checkpoints.retention.time.monotonic", lambda: 25.0 * training.step)
    run_training(training, tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000005.pt", "step-00000010.pt", "step-00000012.pt"]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    training = new_training(evaluation=(1, 2, 3), keep_checkpoints=2)
    run_training(training, tmp_path, aps=[0.1, 0.3, 0.2, 0.1])
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000009.pt", "step-00000012.pt"]
    last, best = (checkpoint.load_run(tmp_path / "checkpoints" / name) for name in ("last.pt", "best.pt"))
    assert (last["step"], last["best_ap"], best["step"], best["best_ap"]) == (12, 0.3, 6, 0.3)
    assert equal(last["model"], training.model.state_dict())


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run_training(new_training(keep_checkpoints=1), tmp_path)
    assert names(tmp_path) == ["best.pt", "last.pt", "step-00000012.pt"]
    assert checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")["step"] == 12


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run_training(new_training(keep_checkpoints=3), tmp_path)
    files = kept(tmp_path)
    assert [file.name for file in files] == ["last.pt", "step-00000009.pt", "step-00000006.pt"]
    assert checkpoint.load_newest(files)[0].name == "last.pt"
    for damaged, next_name in ((files[0], "step-00000009.pt"), (files[1], "step-00000006.pt")):
        damaged.write_bytes(damaged.read_bytes()[:-100])
        file, content, complaints = checkpoint.load_newest(kept(tmp_path))
        assert file.name == next_name and content["step"] == int(next_name[5:13])
        assert str(damaged) in complaints[-1]
    files[2].write_bytes(b"")
    with pytest.raises(checkpoint.InputError, match="none of these checkpoints"):
        checkpoint.load_newest(kept(tmp_path))


def test_going_back_makes_new_checkpoints_the_newest(tmp_path: Path) -> None:
    """From step 3 of a run that had got to 12, a checkpoint at step 6 is newer than that of step 12."""
    run_training(new_training(keep_checkpoints=9), tmp_path)
    training, loader = resumed(tmp_path / "checkpoints" / "step-00000003.pt", keep_checkpoints=2, epochs=2)
    run_training(training, tmp_path, loader)
    assert names(tmp_path)[-2:] == ["step-00000006.pt", "step-00000012.pt"]
    assert [checkpoint.load_run(file)["step"] for file in kept(tmp_path)] == [6, 12]


# --- interruptions ---


def interrupt_at(step: int, training: Training, number: int = signal.SIGTERM) -> Loader:
    """A loader before whose batch for this step (from 1) the process gets a signal."""

    def images_of(index: int) -> Tensor:
        if index == step - 1:
            os.kill(os.getpid(), number)
        return Loader.random_images(index)

    return Loader(images_of)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_a_signal_saves_at_the_steps_end_and_changes_nothing(stop: int, number: int, tmp_path: Path) -> None:
    """Within an epoch, and at its end with the evaluation yet to come: weights, log and results are equal."""
    settings: dict[str, Any] = {"epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    undisturbed = new_training(**settings)
    expected, _ = run_training(undisturbed, tmp_path / "undisturbed", aps=[0.2, 0.1])

    before = signal.getsignal(number)
    training = new_training(**settings)
    with pytest.raises(Preempted, match=f"ended after step {stop} of 6"):
        run_training(training, tmp_path / "run", interrupt_at(stop, training, number), aps=[0.2] * (stop > 3))
    assert signal.getsignal(number) == before
    last = checkpoint.load_run(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["step"] == stop and last["judged_step"] == 3 * (stop > 3)  # of step 6, the evaluation is yet to come

    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", **settings)
    results, _ = run_training(training, tmp_path / "run", loader, aps=[0.2, 0.1][stop > 3 :])
    assert equal(weights_of(training), weights_of(undisturbed))
    groups, expected_groups = (t.optimizer.state_dict()["param_groups"] for t in (training, undisturbed))
    assert groups == expected_groups
    assert training.best_ap == undisturbed.best_ap == 0.2
    assert results["AP"] == expected["AP"]
    for event in ("train", "evaluation"):
        told, should_be = (log_of(tmp_path / name, event) for name in ("run", "undisturbed"))
        for key in ("step", "loss", "AP", "learning_rate"):
            assert [line.get(key) for line in told] == [line.get(key) for line in should_be]


def test_an_epochs_line_counts_the_steps_before_the_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def epoch_lines() -> list[str]:
        said = capsys.readouterr().out.splitlines()
        return [line.partition("  lr")[0] for line in said if line.startswith("epoch 1/")]

    run_training(new_training(epochs=1), tmp_path / "undisturbed")
    expected = epoch_lines()
    training = new_training(epochs=1)
    with pytest.raises(Preempted):
        run_training(training, tmp_path / "run", interrupt_at(2, training))
    assert epoch_lines() == []
    training, loader = resumed(tmp_path / "run" / "checkpoints" / "last.pt", epochs=1)
    assert training.tally.elapsed_s > 0
    run_training(training, tmp_path / "run", loader)
    assert epoch_lines() == expected and len(expected) == 1


def test_a_kill_in_an_evaluation_repeats_the_evaluation_only(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die() -> np.ndarray:
        raise Killed

    settings: dict[str, Any] = {"epochs": 2, "evaluation": (1,), "checkpoint_every": (2, "epochs")}
    with pytest.raises(Killed):
        train(new_training(**settings), Loader(), Judge(die, len), Run(tmp_path, CPU), UNOFFICIAL, DESCRIBE)
    training, loader = resumed(kept(tmp_path)[0], **settings)
    assert (training.step, training.judged_step) == (3, 0)
    run_training(training, tmp_path, loader, aps=[0.5, 0.4])
    assert [(line["epoch"], line["AP"]) for line in log_of(tmp_path, "evaluation")] == [(1, 0.5), (2, 0.4)]
    assert checkpoint.load_run(tmp_path / "checkpoints" / "best.pt")["step"] == 3


def test_statistics_are_each_ranks_own_or_on_other_ranks_their_mean() -> None:
    """Within an epoch the ranks' statistics differ, and a rank that is alone goes on with all of them."""
    training, other = new_training(), new_training()
    training.train_step(training.model, batch_of(GOOD), lr=0.1)
    content = training.state()
    (own,) = content["statistics"]
    other.restore(content)
    assert torch.equal(torch.cat([other.model.norm.running_mean, other.model.norm.running_var]), own)
    other.restore({**content, "statistics": [own, 3 * own]})
    torch.testing.assert_close(torch.cat([other.model.norm.running_mean, other.model.norm.running_var]), 2 * own)


def test_rewinding_drops_what_a_checkpoint_does_not_know(tmp_path: Path) -> None:
    run = Run(tmp_path, CPU)
    run.rewind(3, 0)  # no log yet
    for step in (1, 2, 3, 4):
        run.log("train", step=step)
    run.log("evaluation", step=1, epoch=1)
    run.log("evaluation", step=2, epoch=2)
    run.log("other")
    run.write_results({"AP": 1.0})
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"event": "train", "step": 2')  # killed while it wrote
    run.rewind(2, 1)
    run.log("train", step=3)
    told = [(line["event"], line.get("step")) for line in lines_of(tmp_path / "log.jsonl")]
    assert told == [("train", 1), ("train", 2), ("evaluation", 1), ("other", None), ("train", 3)]
    assert not (tmp_path / "results.json").exists()


def test_a_step_that_stalls_ends_the_process_and_says_where() -> None:
    """The watchdog alone, in a process of its own."""
    script = (
        "import time, ssd.training.interruption as i\n"
        "i._GRACE_S = 0.2\n"
        "dog = i.Watchdog(0.3)\n"
        "dog.is_alive()\n"
        "def stalls(): time.sleep(600)\n"
        "stalls()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Timeout" in done.stderr and "in stalls" in done.stderr


# --- two ranks ---

TWO_RANKS = """
import os, signal, sys
from pathlib import Path

import torch
from test_train import *
from ssd.distributed import process_group

folder = Path(sys.argv[1])
with process_group("cpu") as ranks:
    def images_of(step):
        if ranks.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return NAN if ranks.rank == 1 and step == 1 else Loader.random_images(2 * step + ranks.rank)

    training = new_training(ranks=ranks)
    ended = None
    try:
        train(training, Loader(images_of), lambda: {"AP": 0.0, "AP50": 0.0}, Run(folder, ranks), UNOFFICIAL, DESCRIBE)
    except Preempted as end:
        ended = str(end)
    torch.save({"ended": ended, "step": training.step, "skipped": int(training.skipped_steps),
                "weights": {name: p.detach() for name, p in training.model.named_parameters()}},
               folder / f"rank{ranks.rank}.pt")
"""


def on_two_ranks(script: str, *arguments: object) -> list[subprocess.Popen[str]]:
    (port,) = free_ports(1)
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**ENVIRONMENT, **own, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_ranks_skip_and_stop_together(tmp_path: Path) -> None:
    """What goes wrong on one rank, in its numbers or by a signal, is acted upon by both at the same step."""
    processes = on_two_ranks(TWO_RANKS, tmp_path)
    assert [process.communicate(timeout=300)[1] for process in processes] == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert equal(one["weights"], two["weights"])
    assert one["skipped"] == two["skipped"] == 1
    # Rank 1 was asked to in its fourth step, which rank 0 knows one step later.
    assert one["step"] == two["step"] == 5
    assert one["ended"] == two["ended"] == "ended after step 5 of 12, as it was asked to"
    assert lines_of(tmp_path / "lost-batches.jsonl") == [{"step": 2, "image_ids": [10, 11]}]
    last = checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")
    assert last["step"] == 5 and equal({n: last["model"][n] for n in one["weights"]}, one["weights"])
    assert len(last["statistics"]) == len(last["rng_states"]["cpu"]) == len(last["data_states"]) == 2
    assert not torch.equal(*last["statistics"])


LOSES_A_RANK = """
import os, signal, sys, time
from pathlib import Path

import ssd.training.interruption
from test_train import *
from ssd.distributed import process_group
from ssd.errors import LostRankError

ssd.training.interruption._GRACE_S = 2


def stalls():
    time.sleep(600)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def images_of(step):
    if os.environ["RANK"] == "1" and step == 3:
        globals()[sys.argv[2]]()
    return Loader.random_images(step)


minutes = float(sys.argv[3])
try:
    with process_group("cpu", timeout_minutes=minutes) as ranks:
        training = new_training(ranks=ranks, timeout=minutes)
        run = Run(Path(sys.argv[1]), ranks)
        train(training, Loader(images_of), lambda: {"AP": 0.0, "AP50": 0.0}, run, UNOFFICIAL, DESCRIBE)
except LostRankError as error:
    print(error, file=sys.stderr)
    os._exit(3)
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_other(tmp_path: Path) -> None:
    waits, dead = on_two_ranks(LOSES_A_RANK, tmp_path, "dies", 60)
    complaint = waits.communicate(timeout=300)[1]
    assert waits.returncode == 3 and complaint.startswith("rank 0 waited in vain for another one, which died or")
    dead.communicate()
    assert dead.returncode == -signal.SIGKILL
    assert checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")["step"] == 3


@pytest.mark.slow
def test_a_rank_that_stalls_ends_and_says_where(tmp_path: Path) -> None:
    """And the other one, which waits for it, says that it did so in vain."""
    waits, stalls = on_two_ranks(LOSES_A_RANK, tmp_path, "stalls", 0.3)
    complaint = waits.communicate(timeout=300)[1]
    assert waits.returncode == 3, complaint
    assert "rank 0 waited in vain" in complaint and "within 0.3 minutes (--timeout)" in complaint
    complaint = stalls.communicate(timeout=300)[1]
    assert stalls.returncode == 1 and "Timeout" in complaint and "in stalls" in complaint, complaint
