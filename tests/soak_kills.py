#!/usr/bin/env python3
"""Kills runs at random points until enough kills are done; every run must end as if nothing had happened.

    python tests/soak_kills.py --kills 50

Each run goes on with --resume auto until it is over, and then its weights, optimiser and log are held against those of
an undisturbed run, bit for bit. The points are uniform in time from the start of a process to its third step or so, the
writing of checkpoints included. Not a test that pytest collects: it takes minutes.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums over several threads come in no fixed order
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402
from runs import SETTINGS, assert_equal_runs, last_of, log_of, write_small_data  # noqa: E402

import main  # noqa: E402
import pipelines.dali.loaders  # noqa: E402, F401  imported once, for all that is forked
import pipelines.no_dali.loaders  # noqa: E402, F401
import ssd.evaluation.coco  # noqa: E402, F401
import ssd.training.loop  # noqa: E402, F401
from ssd.checkpoints import checkpoint  # noqa: E402
from ssd.checkpoints.retention import kept  # noqa: E402

EPOCHS = 4


def start(command: list[str], said: Path) -> int:
    """The process that runs this command line; forked, because imports take longer than the run."""
    child = os.fork()
    os.setpgid(child, child)  # by both, so that it is done before either goes on
    if child:
        return child
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os._exit(main.main(command))


def end_of(process: int, within_s: float) -> int | None:
    """Its exit code, or None if it had to be killed."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def losses_of(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["box_loss"], line["class_loss"]) for line in log_of(run, "train")]


def soak(kills: int, path: str, folder: Path) -> dict[str, object]:
    data = write_small_data(folder / "data")
    # Without worker processes the torch path takes less time, and has as many points to be killed at.
    fixed = ["--data", str(data), "--data_pipeline", path, *SETTINGS, "--num-workers", str(int(path == "dali"))]
    fixed += ["--epochs", str(EPOCHS), "--checkpoint-every", "1 step", "--resume", "auto", "--output"]

    undisturbed, began = folder / "undisturbed", time.time()
    assert end_of(start([*fixed, str(undisturbed)], folder / "undisturbed.txt"), 3600) == 0
    expected, expected_losses = last_of(undisturbed), losses_of(undisturbed)
    steps = [line["time_s"] for line in log_of(undisturbed, "train")]
    longest_s = steps[0] - began + 2 * (steps[-1] - steps[0]) / (len(steps) - 1)

    killed, runs, within_a_write, at_steps = 0, 0, 0, []
    while killed < kills:
        run, text = folder / f"run{runs}", folder / f"run{runs}.txt"
        while (code := end_of(start([*fixed, str(run)], text), random.uniform(0, longest_s))) is None:
            killed += 1
            at_steps.append(max((line["step"] for line in log_of(run, "train")), default=0))
            if at_steps[-2:-1] == at_steps[-1:]:  # beside other work a start may take longer than at first
                longest_s *= 1.05
            within_a_write += (run / "checkpoints" / ".unfinished").exists()
            if files := kept(run):
                _, _, complaints = checkpoint.load_newest(files)
                assert not complaints, complaints
            print(f"kill {killed} of run {runs}, after step {at_steps[-1]} of {len(steps)}", flush=True)
        said = text.read_text()
        assert code == 0 and "Traceback" not in said, said
        assert_equal_runs(last_of(run), expected)
        assert losses_of(run) == expected_losses
        runs += 1
    return {"data_pipeline": path, "kills": killed, "runs": runs, "steps a run": len(steps),
            "kills within the writing of a checkpoint": within_a_write, "kills after step": at_steps}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="at least so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the kill points (default: %(default)s)")
    parser.add_argument(
        "--data_pipeline", choices=("dali", "no_dali"), default="no_dali", help="(default: %(default)s)"
    )
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ssd-soak-") as place:
        print(json.dumps(soak(options.kills, options.data_pipeline, Path(place))))
