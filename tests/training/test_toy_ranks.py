"""What goes wrong on one of two ranks, in its numbers, by a signal or its death, and what the other one does."""

import signal
from pathlib import Path

import pytest
import torch
from toy_training import equal, lines_of, on_two_ranks

from ssd.checkpoints import checkpoint

TWO_RANKS = """
import os, signal, sys
from pathlib import Path

import torch
from toy_training import *
from ssd.distributed import process_group
from ssd.training.interruption import Preempted

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


ASKED_IN_AN_EVALUATION = """
import os, signal, sys
from pathlib import Path

import numpy as np
from toy_training import *
from ssd.distributed import process_group
from ssd.training.evaluations import Judge
from ssd.training.interruption import Preempted

with process_group("cpu") as ranks:
    def detect(is_asked_to_end):
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((0, 7)) if ranks.is_main else None

    training = new_training(ranks=ranks, epochs=2, evaluation=(1,))
    judge = Judge(detect, lambda _: {"AP": 0.0, "AP50": 0.0})
    try:
        train(training, Loader(), judge, Run(Path(sys.argv[1]), ranks), UNOFFICIAL, DESCRIBE)
    except Preempted as end:
        print(end)
"""


@pytest.mark.slow
def test_two_ranks_give_up_an_evaluation_together(tmp_path: Path) -> None:
    processes = on_two_ranks(ASKED_IN_AN_EVALUATION, tmp_path)
    told = [process.communicate(timeout=300) for process in processes]
    assert [errors for _, errors in told] == ["", ""]
    ends = "ended after step 3 of 6, before it was judged, as it was asked to\n"
    assert all(said.endswith(ends) for said, _ in told), told
    assert checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")["judged_step"] == 0


LOSES_A_RANK = """
import os, signal, sys, time
from pathlib import Path

import ssd.training.interruption
from toy_training import *
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
    assert dead.wait(timeout=300) == -signal.SIGKILL
    assert checkpoint.load_run(tmp_path / "checkpoints" / "last.pt")["step"] == 3


@pytest.mark.slow
def test_a_rank_that_stalls_ends_and_says_where(tmp_path: Path) -> None:
    """And the other one, which waits for it, says that it did so in vain."""
    waits, stalls = on_two_ranks(LOSES_A_RANK, tmp_path, "stalls", 0.2)
    complaint = waits.communicate(timeout=300)[1]
    assert waits.returncode == 3, complaint
    assert "rank 0 waited in vain" in complaint and "within 0.2 minutes (--timeout)" in complaint
    complaint = stalls.communicate(timeout=300)[1]
    assert stalls.returncode == 1 and "Timeout" in complaint and "in stalls" in complaint, complaint
