#!/usr/bin/env python3
"""Kills runs at random points until enough kills are done; every run must end as if nothing had happened.

    python tests/runs/soak_kills.py --kills 50
    python tests/runs/soak_kills.py --kills 50 --launcher

Each run goes on with --resume auto until it is over, and then its weights, optimiser and log are held against those of
an undisturbed run, bit for bit. The points are uniform in time from the start of a process to its third step or so, the
writing of checkpoints included. With --launcher, torchrun alone is killed, which leaves its two ranks, and the run is
started anew at once: no process may write into the folder once another one has begun to. Not a test that pytest
collects: it takes minutes.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums over several threads come in no fixed order
sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from launcher_kills import Launcher, assert_one_writer_at_a_time  # noqa: E402
from runs import SETTINGS, assert_equal_runs, last_of, log_of, losses_of, write_small_data  # noqa: E402

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


def flags_of(path: str, data: Path) -> list[str]:
    """A run that goes on by itself; the folder is to follow."""
    # Without worker processes the torch path takes less time, and has as many points to be killed at.
    fixed = ["--data", str(data), "--data_pipeline", path, *SETTINGS, "--num-workers", str(int(path == "dali"))]
    return [*fixed, "--epochs", str(EPOCHS), "--checkpoint-every", "1 step", "--resume", "auto", "--output"]


def soak(kills: int, path: str, folder: Path) -> dict[str, object]:
    fixed = flags_of(path, write_small_data(folder / "data"))
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


def soak_launcher(kills: int, path: str, folder: Path) -> dict[str, object]:
    """As `soak`, of torchrun; and no process may write into the folder once another one has begun to."""
    fixed = flags_of(path, write_small_data(folder / "data"))

    undisturbed, began = folder / "undisturbed", time.monotonic()
    with Launcher([*fixed, str(undisturbed)], undisturbed, folder / "undisturbed.txt") as launcher:
        assert launcher.wait(3600) == 0, launcher.said()
    longest_s = time.monotonic() - began
    expected, expected_losses = last_of(undisturbed), losses_of(undisturbed)

    killed, runs, left, waited, at_steps = 0, 0, 0, 0, []
    with ExitStack() as stack:
        while killed < kills:
            run, journal, code = folder / f"run{runs}", folder / f"journal{runs}.txt", None
            while code is None:
                launcher = stack.enter_context(Launcher([*fixed, str(run)], run, journal))
                before = len(log_of(run, "train"))
                # Some within the start; most once it trains, or it would get nowhere beside much other work.
                trains, more_s = random.random() < 0.8, random.uniform(0, longest_s)
                while trains and (code := launcher.wait(0.02)) is None and len(log_of(run, "train")) <= before:
                    pass
                if code is None and (code := launcher.wait(more_s / (8 if trains else 1))) is None:
                    launcher.kill_alone()
                    killed += 1
                    left += any(rank.is_running() for rank in launcher.ranks)
                    at_steps.append(max((line["step"] for line in log_of(run, "train")), default=0))
                    print(f"kill {killed} of run {runs}, after step {at_steps[-1]}", flush=True)
                waited += "waiting up to" in launcher.said()
            assert code == 0, launcher.said()
            assert_one_writer_at_a_time(journal, at_least=1)
            assert_equal_runs(last_of(run), expected)
            assert losses_of(run) == expected_losses
            runs += 1
    return {"data_pipeline": path, "kills": killed, "runs": runs, "kills that left ranks": left,
            "starts that waited for them": waited, "kills after step": at_steps}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="at least so many (default: %(default)s)")
    parser.add_argument("--launcher", action="store_true", help="kill torchrun alone, of two ranks")
    parser.add_argument("--seed", type=int, default=0, help="of the kill points (default: %(default)s)")
    parser.add_argument(
        "--data_pipeline", choices=("dali", "no_dali"), default="no_dali", help="(default: %(default)s)"
    )
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ssd-soak-") as place:
        chosen = soak_launcher if options.launcher else soak
        print(json.dumps(chosen(options.kills, options.data_pipeline, Path(place))))
