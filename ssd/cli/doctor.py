"""What a run needs of the machine, and what to do where it is not there.

Loads neither torch nor DALI: other interpreters try these, so that one which cannot be loaded is a finding and not the
end.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from ssd.config import Config
from ssd.console import Console
from ssd.detectors.names import family_of
from ssd.errors import InputError
from ssd.options.detectors import add_detector_flags, detector_in
from ssd.options.flags import COUNT, COUNT_FROM_0, Parser, config_of, flag
from ssd.options.recipes import base_of

OK, WARN, STOP = "ok", "warn", "stop"

# By the release notes of the CUDA toolkit: the least driver for minor version compatibility.
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
# Each worker process of the PyTorch path has two batches in shared memory (DataLoader's default), and one is taken. Of
# images that are handed over one by one it has two, or more where all workers' would not make a batch.
_AHEAD_A_WORKER = 2
LEAST_FILES, ENOUGH_FILES = 256, 1024
# Estimates: torch, CUDA and DALI alone are about 1 GB of the host; data, workers and CPU training come on top.
LEAST_MEMORY_BYTES, ENOUGH_MEMORY_BYTES = 1e9, 4e9
# Of the checkpoints of one run: for plots and predictions, and for runs that come after it.
ENOUGH_RUNS = 5

_TRY_TORCH = """
import json, torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # built for this torch?
gpus = [[torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in range(torch.cuda.device_count())]
for i in range(len(gpus)):
    torch.zeros(1, device=f"cuda:{i}").add_(1).item()
print(json.dumps({"cuda": torch.version.cuda, "gpus": gpus}))
"""
_TRY_DALI = """
import json, sys, nvidia.dali
from nvidia.dali import fn, pipeline_def
gpu = sys.argv[1] == "gpu"
@pipeline_def(batch_size=1, num_threads=1, device_id=0 if gpu else None)
def graph():
    values = fn.constant(idata=[1])
    return values.gpu() if gpu else values
pipeline = graph()
pipeline.build()
pipeline.run()
print(json.dumps({"cuda": nvidia.dali.__cuda_version__}))
"""


_TRY_NEEDS = """
import json, sys
from ssd.detectors.table import from_dict
from ssd.run.needs import needs_of
print(json.dumps(needs_of(from_dict(json.loads(sys.argv[1])))))
"""
_ROOT = Path(__file__).parents[2]


class Finding(NamedTuple):
    """One thing looked at. state: OK, WARN (slow, or stops some runs) or STOP. remedy: '' where all is well."""

    what: str
    value: str
    state: str = OK
    remedy: str = ""


def examine(output: Path, config: Config) -> list[Finding]:
    """All findings. output: where runs will be written. config: of such a run."""
    torch = _try(_TRY_TORCH)
    gpus = torch.get("gpus", [])
    ranks = max(1, len(gpus))
    return [
        Finding("Python", f"{platform.python_version()}, {platform.platform(terse=True)}"),
        *packages(),
        judge_torch(torch, driver_version()),
        *(judge_gpu(number, *gpu) for number, gpu in enumerate(gpus)),
        judge_dali(dali_packages(), lambda: _try(_TRY_DALI, "gpu" if gpus else "cpu")),
        judge_cores(cores(), ranks),
        judge_memory(memory_bytes(), ranks),
        judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        *([] if "error" in torch else _judge_needs(config, ranks, output)),
    ]


def show(findings: Sequence[Finding], console: Console) -> None:
    """Prints the table, and what to do below it."""
    style = {OK: "green", WARN: "yellow", STOP: "bold red"}
    table = Table(box=None, pad_edge=False)
    for column in ("", "looked at", "found"):
        table.add_column(column, overflow="fold")
    for what, value, state, _ in findings:
        table.add_row(f"[{style[state]}]{state}[/]", what, escape(value))
    console.print(table)
    for what, _, state, remedy in findings:
        if remedy:
            console.print(f"[{style[state]}]{state}[/] {escape(f'{what}: {remedy}')}", soft_wrap=True)
    stops = sum(finding.state == STOP for finding in findings)
    console.print(f"[{style[STOP]}]{stops} would stop a run[/]" if stops else "nothing here would stop a run")


def exit_code(findings: Sequence[Finding]) -> int:
    return int(any(finding.state == STOP for finding in findings))


# Packages


def requirements() -> list[Requirement]:
    """What the package needs, as installed or by the checkout's pyproject.toml."""
    try:
        texts = metadata.requires("ssd-dali") or []
    except metadata.PackageNotFoundError:
        file = _ROOT / "pyproject.toml"
        texts = tomllib.loads(file.read_text())["project"]["dependencies"] if file.exists() else []
    return [each for each in map(Requirement, texts) if each.marker is None or each.marker.evaluate({"extra": ""})]


def packages() -> Iterator[Finding]:
    """A finding for all packages but DALI, and one for each that is missing or too old."""
    fine = []
    for required in requirements():
        if required.name.startswith("nvidia-dali"):
            continue
        try:
            installed = metadata.version(required.name)
        except metadata.PackageNotFoundError:
            yield Finding(required.name, "not installed", STOP, f"pip install '{required}'")
            continue
        if required.specifier.contains(installed, prereleases=True):
            fine.append(f"{required.name} {installed}")
        else:
            yield Finding(required.name, installed, STOP, f"pip install '{required}'")
    yield Finding("packages", ", ".join(fine))


_NO_ANSWER = "no answer in 5 minutes"


def _try(code: str, *arguments: str) -> Any:
    """What the code prints as JSON in an interpreter of its own; {"error": its last words} where it fails."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": _NO_ANSWER}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended by signal {-done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def judge_torch(torch: dict[str, Any], driver: str | None) -> Finding:
    """Whether torch and torchvision work, and with the GPUs that the driver has. torch: what _TRY_TORCH printed."""
    if "error" in torch:
        remedy = "install torch and torchvision of one release, for this CUDA"
        if torch["error"] == _NO_ANSWER:
            remedy = "the machine is busy, or its disk slow: try again"
        return Finding("torch", torch["error"], STOP, remedy)
    value = f"for CUDA {torch['cuda']}" if torch["cuda"] else "for CPUs only"
    value += f", driver {driver}" if driver else ", no NVIDIA driver"
    if driver is None:
        return Finding("GPUs", f"none: runs use the CPU (torch {value})")
    if torch["gpus"]:
        return Finding("GPUs", f"{len(torch['gpus'])}, torch {value}")
    if torch["cuda"] is None:
        return Finding("GPUs", f"none for torch, which is {value}", STOP, "install a build of torch for CUDA")
    least = LEAST_DRIVER.get(int(torch["cuda"].split(".")[0]), 0)
    if int(driver.split(".")[0]) < least:
        remedy = f"update the driver to {least} or newer, or install a torch for an older CUDA"
    else:
        remedy = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, pass --gpus all"
    return Finding("GPUs", f"none for torch, which is {value}", STOP, remedy)


def driver_version() -> str | None:
    """Of the NVIDIA driver, by nvidia-smi; None without one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def judge_gpu(number: int, name: str, free_bytes: float, total_bytes: float) -> Finding:
    value = f"{name}, {free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB free"
    if free_bytes >= total_bytes / 2:
        return Finding(f"GPU {number}", value)
    remedy = "another program holds most of its memory; end it, or choose others by CUDA_VISIBLE_DEVICES"
    return Finding(f"GPU {number}", value, WARN, remedy)


def dali_packages() -> list[tuple[str, str]]:
    """The (name, version) of every build of DALI that is installed."""
    found = ((each.metadata["Name"] or "", each.version) for each in metadata.distributions())
    return sorted({(name, version) for name, version in found if name.lower().startswith("nvidia-dali-cuda")})


def judge_dali(installed: list[tuple[str, str]], run: Callable[[], dict[str, Any]]) -> Finding:
    """installed: of `dali_packages`. run: what _TRY_DALI printed, when called."""
    value = ", ".join(f"{name} {version}" for name, version in installed)
    if not installed:
        remedy = "pip install nvidia-dali-cuda120 (on Linux), or train with --data_pipeline no_dali"
        return Finding("DALI", "not installed", WARN, remedy)
    if len(installed) > 1:  # one folder for both: the files of one lie over the other's
        remedy = f"pip uninstall -y {' '.join(name for name, _ in installed)}; then install one"
        return Finding("DALI", value, STOP, remedy)
    answer = run()
    if "error" in answer:
        remedy = "it cannot run here; does its CUDA fit the driver? Or train with --data_pipeline no_dali"
        return Finding("DALI", f"{value}: {answer['error']}", STOP, remedy)
    return Finding("DALI", f"{value}, runs")


# The machine


def cores() -> float:
    """That this process may use: of the affinity and the container's quota the lower."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    return min(allowed, int(quota[0]) / int(quota[1])) if quota and quota[0].isdecimal() else allowed


def judge_cores(cores: float, ranks: int) -> Finding:
    value = f"{cores:g}, {cores / ranks:g} a rank" if ranks > 1 else f"{cores:g}"
    if cores / ranks >= 2:
        return Finding("cores", value)
    return Finding(
        "cores", value, WARN, "fewer than two a rank: training will wait for data; measure: main.py benchmark"
    )


def memory_bytes() -> float:
    """Free memory of the machine, or of its container if that is less."""
    free = psutil.virtual_memory().available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else free


def _cgroup(name: str) -> str:
    """A limit of the container (control groups, version 2); '' where there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def judge_memory(free_bytes: float, ranks: int) -> Finding:
    each = free_bytes / ranks
    value = f"{free_bytes / 1e9:.1f} GB free" + (
        f", {each / 1e9:.1f} GB for each of {ranks} ranks" if ranks > 1 else ""
    )
    if each >= ENOUGH_MEMORY_BYTES:
        return Finding("memory", value)
    remedy = f"a rank takes up to {ENOUGH_MEMORY_BYTES / 1e9:.0f} GB; free some, or start fewer ranks and workers"
    return Finding("memory", value, STOP if each < LEAST_MEMORY_BYTES else WARN, remedy)


def _judge_needs(config: Config, ranks: int, output: Path) -> Iterator[Finding]:
    """Of what depends on the detector."""
    answer = _try(_TRY_NEEDS, json.dumps({"family": config.detector.family, **asdict(config.detector)}))
    if isinstance(answer, dict):
        yield Finding(config.detector.name, answer["error"], STOP, "a run would end so too; pass other settings of it")
        return
    image_bytes, checkpoint_bytes, one_by_one = answer
    if Path("/dev/shm").is_dir():
        free_bytes = shutil.disk_usage("/dev/shm").free
        yield judge_shared_memory(free_bytes, config, image_bytes, ranks, one_by_one=one_by_one)
    yield judge_disk(
        output, (config.keep_checkpoints + 2) * checkpoint_bytes
    )  # beside them the best, and one unfinished


def judge_shared_memory(
    free_bytes: float, config: Config, image_bytes: int, ranks: int, *, one_by_one: bool = False
) -> Finding:
    """image_bytes: the most that an image of the detector's takes. one_by_one: as `needs.Needs` has it."""
    workers, images = config.num_workers, 0
    # Training's workers wait with theirs while an evaluation has its own.
    for batch_size in (config.batch_size, config.eval_batch_size) if workers else ():
        if one_by_one:
            images += max(_AHEAD_A_WORKER, -(-batch_size // workers)) * workers + 1
        else:
            images += (_AHEAD_A_WORKER * workers + 1) * batch_size
    need = ranks * images * image_bytes
    value = f"{free_bytes / 1e9:.2f} GB free"
    if free_bytes >= need:
        return Finding("/dev/shm", value)
    remedy = (
        f"{config.detector.name} by --data_pipeline no_dali takes up to {need / 1e9:.2f} GB for {config.num_workers} "
        f"workers and batches of {config.batch_size}, in evaluation {config.eval_batch_size}, on {ranks} ranks; "
        "docker run --ipc=host or a larger --shm-size, or fewer workers"
    )
    return Finding("/dev/shm", value, WARN, remedy)


def judge_open_files(soft: int, hard: int) -> Finding:
    """The limits of getrlimit; negative is none."""
    value = "no limit" if soft < 0 else str(soft)
    if soft < 0 or soft >= ENOUGH_FILES:
        return Finding("open files", value)
    raised = ENOUGH_FILES if hard < 0 else min(hard, ENOUGH_FILES)
    remedy = f"ulimit -n {raised}" if raised > soft else f"have the administrator raise the limit to {ENOUGH_FILES}"
    return Finding("open files", value, STOP if soft < LEAST_FILES else WARN, remedy)


def judge_disk(output: Path, need_bytes: float) -> Finding:
    """Whether runs can be written there. need_bytes: all checkpoints of one that are there at once."""
    folder = next(each for each in (output, *output.absolute().parents) if each.is_dir())
    free_bytes = shutil.disk_usage(folder).free
    value = f"{free_bytes / 1e9:.1f} GB free"
    what = f"disk of {output}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(what, f"{folder} may not be written to", STOP, "pass an --output that may be")
    if free_bytes >= ENOUGH_RUNS * need_bytes:
        return Finding(what, value)
    remedy = f"a run's checkpoints take {need_bytes / 1e9:.1f} GB; free some, or pass an --output on another disk"
    return Finding(what, value, STOP if free_bytes < need_bytes else WARN, remedy)


def doctor_parser(settings: Any = Config.detector) -> Parser:
    parser = Parser(
        "main.py doctor",
        description="Look at what a run needs of this machine: packages, GPUs, DALI, memory, files and disk.",
        base=family_of(settings).defaults(settings),
        epilog="example: main.py doctor --output /scratch/runs --detector retinanet_resnet50_fpn --bs 16\n"
        "exit codes: 0 nothing would stop a run, 1 something would, 2 bad input, 130 interrupted",
    )
    parser.add_argument(
        "--output", default="runs", metavar="DIR", help="where runs will be written (default: %(default)s)"
    )
    add_detector_flags(parser, settings)
    group = parser.add_argument_group("data")
    flag(group, "--batch-size", "--bs", "-b", dest="batch_size", type=COUNT, metavar="N", help="images a rank and step")
    flag(group, "--eval-batch-size", "--ebs", dest="eval_batch_size", type=COUNT, metavar="N", help="images a rank")
    flag(group, "--num-workers", dest="num_workers", type=COUNT_FROM_0, metavar="N", help="threads or processes")
    return parser


def doctor(arguments: Sequence[str]) -> int:
    settings = detector_in(arguments)
    parser = doctor_parser(settings)
    options = vars(parser.parse_args(arguments))
    output = Path(options.pop("output"))
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: not a folder; pass another path")
    config = config_of(options, base_of(None, parser, settings, options.get("batch_size"), 1), needs_data=False)

    findings = examine(output, config)
    show(findings, Console())
    return exit_code(findings)
