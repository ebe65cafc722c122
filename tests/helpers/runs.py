"""What the tests of interrupted runs share: the smallest runs there are, and what is equal of two of them."""

import contextlib
import functools
import io
import itertools
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forked import OWN, ROOT, Forked, temporary_folder

from ssd.checkpoints import checkpoint

MORTAL, SLOW = (Path(__file__).with_name(f"{name}_main.py") for name in ("mortal", "slow"))
ENVIRONMENT = {**os.environ, **OWN}
SETTINGS = [
    *("--bs", "2", "--lr", "0.05", "--seed", "3"),
    *("--device", "cpu", "--num-workers", "1", "--log-interval", "1", "--no-plots"),
]
WHOLE_DETECTOR = ["--backbone", "resnet18", "--backbone-weights", "none"]
WITHIN_S = 1200  # a hang; beside much other work the rest may take minutes


@functools.cache
def small_checkpoint(detector: Any = None) -> Path:
    """A thinned detector with an eighth of its channels, untrained, of one category.

    detector: its settings, by default those of an SSD300-R18. A run that starts from that one takes a sixth of the time
    that one of the whole detector takes, and writes checkpoints of 2 MB in the place of 58. On other categories its
    class heads are fresh, drawn by the run's seed.
    """
    from ssd.detectors.channels import Plan, thinned
    from ssd.detectors.ssd300.settings import SSD300Settings
    from ssd.detectors.table import detector_of, to_dict

    detector = detector or SSD300Settings("resnet18")
    record = detector_of(detector)
    torch.manual_seed(0)
    model = record.build(detector, 2)
    assert record.streams is not None
    layers: dict[str, Any] = dict(model.named_modules())
    streams = [(stream.writers, stream.readers) for stream in record.streams(model)]
    for part in ("mask", "keypoint"):  # in Detectron's, main.py thin leaves them
        names = [name for name in layers if name.startswith(f"roi_heads.{part}_head.")]
        convolutions = [name for name in names if isinstance(layers[name], torch.nn.Conv2d)]
        streams += [([(writer, "")], [reader]) for writer, reader in itertools.pairwise(convolutions)]
    plan: Plan = {}
    for writers, readers in streams:
        for layer, norm in writers:
            for name in filter(None, (layer, norm)):
                plan.setdefault(name, {})["out"] = layers[layer].weight.shape[0] // 8
        for layer in readers:
            plan.setdefault(layer, {})["in"] = layers[layer].weight.shape[1] // 8
    file = temporary_folder() / f"{detector.name}.pt"
    content = {
        "format": checkpoint.FORMAT,
        "detector": to_dict(detector),
        "categories": [(1, "thing")],
        "model": thinned(model, plan).state_dict(),
        "channels": plan,
    }
    checkpoint.save(file, content)
    return file


def settings() -> list[str]:
    """Of a small run; on the data of `write_small_data`, epochs of three steps on one rank and of two steps on two.
    With `WHOLE_DETECTOR` and `SETTINGS` in their place, a step takes about a second."""
    return ["--checkpoint", str(small_checkpoint()), *SETTINGS]


class Ended(NamedTuple):
    """How a rank's process ended."""

    code: int
    said: str


def run_ranks(command: list[object], ranks: int, program: Path = ROOT / "main.py") -> list[Ended]:
    """The program with this command line on so many ranks of one host, as torchrun would start them."""
    (port,) = free_ports(1)
    job = {**os.environ, **OWN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    each = [
        Forked(program, *command, environment={**job, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]
    return [Ended(one.wait(WITHIN_S), one.said()) for one in each]


def write_small_data(folder: Path) -> Path:
    """Five images to train on, of which one has no box, and two to judge by."""
    from pipelines.demo.data_set import write_demo_data

    return write_demo_data(folder, train_images=6, val_images=2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run_script_on_two_ranks(script: str, folder: Path) -> None:
    """The text of a program whose argument is the folder."""
    program = folder / "script_of_a_rank.py"
    program.write_text(script)
    ended = run_ranks([folder], 2, program)
    assert [each.code for each in ended] == [0, 0], ended


def run_all(commands: list[list[object]], ranks: int) -> str:
    """Each command on this number of ranks, one after the other; what the ranks said. One rank is this process."""
    said = []
    for command in commands:
        if ranks == 1:
            done = run_here(*command)
            ended = [Ended(done.returncode, done.stdout + done.stderr)]
        else:
            ended = run_ranks(command, ranks)
        assert not any(each.code for each in ended), ended
        said += [each.said for each in ended]
    return "".join(said)


def run_here(*command: object) -> subprocess.CompletedProcess[str]:
    """The command line in this process, on one thread as `ENVIRONMENT` has it: what a process of its own would have
    said and ended with, without the seconds that imports take."""
    import main

    threads, out, err = torch.get_num_threads(), io.StringIO(), io.StringIO()
    words = [*map(str, command)]
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(words)
    finally:
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def last_of(folder: Path) -> dict[str, Any]:
    return checkpoint.load_run(folder / "checkpoints" / "last.pt")


def log_of(folder: Path, event: str) -> list[dict[str, Any]]:
    """The lines of this event; none before the run has written any."""
    file = folder / "log.jsonl"
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if line["event"] == event]


def losses_of(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["box_loss"], line["class_loss"]) for line in log_of(folder, "train")]


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_equal(left, right, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_equal_runs(a: dict[str, Any], b: dict[str, Any]) -> None:
    """All of two checkpoints, but their settings and what is a matter of time."""
    a, b = ({**content, "tally": {**content["tally"], "elapsed_s": 0, "seconds": 0}} for content in (a, b))
    for key in a.keys() - {"settings"}:
        assert_equal(a[key], b[key], key)


def killed_and_not(command: list[object], ranks: int, folder: Path, dies_after: int) -> tuple[Path, Path]:
    """The folders of a run that was not disturbed, and of one that was killed after so many steps and went on."""
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    run_all([[*command, "--output", undisturbed]], ranks)
    command = [*command, "--output", killed, "--checkpoint-every", "1 step"]
    dead, *others = run_ranks([folder / "died", dies_after, 0, "itself", 9, *command], ranks, program=MORTAL)
    assert dead.code == -9 and all(each.code not in (0, -9) for each in others), (dead, others)
    run_all([[*command, "--resume", "auto"]], ranks)
    assert [line["step"] for line in log_of(killed, "resumed")] == [dies_after]
    assert_equal_runs(last_of(killed), last_of(undisturbed))
    return undisturbed, killed
