"""The files in launch/ are what their schedulers take, and the commands in them are what torchrun and main.py take."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ENVIRONMENT, ROOT, SLOW, free_ports, last_of, log_of, settings, write_small_data
from test_faults import finish, steps_done, wait_until
from torch.distributed.run import get_args_parser

from ssd.cli.train import train_parser
from ssd.config import Config
from ssd.options.flags import config_of

SLURM, TRAINJOB, SKYPILOT = (ROOT / "launch" / name for name in ("slurm.sh", "trainjob.yaml", "skypilot.yaml"))
TORCHRUN = ROOT / "tests" / "helpers" / "torchrun.py"
SHEBANG = f"#!{sys.executable}\n"
# Takes srun's own options away, and becomes the rest.
SRUN = SHEBANG + 'import os, sys\nrest = [a for a in sys.argv[1:]]\nwhile rest[0].startswith("-"):\n    rest.pop(0)\n'
SRUN += "os.execvp(rest[0], rest)\n"
SCONTROL = """#!/usr/bin/env bash
case $* in
    "show hostnames localhost") echo localhost ;;
    "requeue 7") echo 7 >> "$REQUEUED" ;;
    *) exit 1 ;;
esac
"""
SLURM_VARIABLES = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
# Notes its arguments, a JSON list.
NOTE = SHEBANG + 'import json, os, sys\nopen(os.environ["NOTED"], "w").write(json.dumps(sys.argv[1:]))\n'


@pytest.fixture
def commands(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """An environment in which these commands are programs of this text."""

    def make(**programs: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return {**ENVIRONMENT, "PATH": f"{folder}:{os.environ['PATH']}"}

    return make


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def slurm_command() -> tuple[list[str], dict[str, str]]:
    return ["bash", str(SLURM), "--data", "/data", "--fp16"], SLURM_VARIABLES


def trainjob_command() -> tuple[list[str], dict[str, str]]:
    _, job = documents(TRAINJOB)
    return job["spec"]["trainer"]["command"], {"PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": "29400"}


def skypilot_command() -> tuple[list[str], dict[str, str]]:
    (task,) = documents(SKYPILOT)
    told = {"NODE_IPS": "10.0.0.1\n10.0.0.2", "NUM_NODES": "2", "NUM_GPUS_PER_NODE": "8", "TASK_ID": "sky-1"}
    return ["bash", "-euc", task["run"]], {f"SKYPILOT_{name}": value for name, value in told.items()}


@pytest.mark.parametrize("command", [slurm_command, trainjob_command, skypilot_command])
def test_the_command_is_what_torchrun_and_main_take(
    command: Callable[[], tuple[list[str], dict[str, str]]],
    commands: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    arguments, variables = command()
    environment = commands(torchrun=NOTE, srun=SRUN, scontrol=SCONTROL) | variables | {"NOTED": str(tmp_path / "noted")}
    subprocess.run(arguments, env=environment, cwd=ROOT, check=True, timeout=60)
    noted = json.loads((tmp_path / "noted").read_text())
    torchrun = get_args_parser().parse_args(noted)
    assert torchrun.training_script == "main.py" and torchrun.max_restarts > 0
    # Static rendezvous would not notice that a node begins anew.
    assert torchrun.rdzv_backend == "c10d" and torchrun.rdzv_endpoint.endswith(":29400") and torchrun.rdzv_id
    flags = vars(train_parser().parse_args(torchrun.training_script_args))
    config = config_of({name: value for name, value in flags.items() if name not in ("recipe", "local_rank")}, Config())
    assert config.resume == "auto" and config.output and config.data and config.fp16
    assert config.checkpoint_every == (10, "minutes")


def test_the_slurm_script_is_sound() -> None:
    subprocess.run([Path(sys.executable).with_name("shellcheck"), str(SLURM)], check=True)
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in SLURM.read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert "requeue" in options and options["open-mode"] == "append"
    # To the script alone, which requeues, and with more time than the 30 s that torchrun leaves its ranks.
    target, name, seconds = options["signal"].replace("@", ":").split(":")
    assert (target, name) == ("B", "USR1") and int(seconds) > 60
    assert options["ntasks-per-node"] == "1"  # a torchrun each


def test_the_train_job_is_of_kubeflows_schema() -> None:
    """Its models pass over what they do not know, so nothing may be missing of what went in."""
    import kubeflow_trainer_api.models as models

    runtime, job = documents(TRAINJOB)
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    assert {"kind": runtime["kind"], **runtime["metadata"]}.items() >= {
        name: job["spec"]["runtimeRef"][name] for name in ("kind", "name")
    }.items()
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30  # torchrun's, to its ranks
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_skypilot_task_is_of_its_schema() -> None:
    """By SkyPilot itself where it is installed; it brings 70 packages."""
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    task = sky.Task.from_yaml(str(SKYPILOT))
    assert task.num_nodes == 2
    (resources,) = task.resources
    assert resources.use_spot and resources.job_recovery["max_restarts_on_errors"] > 0


def test_the_skypilot_task_names_what_its_command_uses() -> None:
    (task,) = documents(SKYPILOT)
    assert set(task) == {"name", "num_nodes", "workdir", "resources", "file_mounts", "setup", "run"}
    assert set(task["file_mounts"]) == {"/data", "/runs"} and task["num_nodes"] > 1


@pytest.mark.slow
def test_the_slurm_script_trains_is_requeued_and_ends(commands: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """One node of two ranks on a CPU: signalled as before its time limit, and started anew as by the queue."""
    data, output, (port,) = write_small_data(tmp_path / "data"), tmp_path / "run", free_ports(1)
    torchrun = f'#!/usr/bin/env bash\nexec {sys.executable} {TORCHRUN} "$@"\n'
    environment = commands(torchrun=torchrun, srun=SRUN, scontrol=SCONTROL) | SLURM_VARIABLES
    environment |= {"REQUEUED": str(tmp_path / "requeued"), "RANKS_PER_NODE": "2", "RENDEZVOUS_PORT": str(port)}
    environment |= {"SECONDS_A_STEP": "0.5"}
    flags = ["--data", data, "--output", output, "--data_pipeline", "no_dali", "--epochs", 4]
    flags += settings()
    (tmp_path / "main.py").symlink_to(SLOW)  # which the script starts

    def start() -> subprocess.Popen[str]:
        command = ["bash", str(SLURM), *map(str, flags)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)

    with start() as job:
        wait_until(lambda: steps_done(output) >= 1, [job])
        job.send_signal(signal.SIGUSR1)
        said = finish(job)
    assert (tmp_path / "requeued").read_text() == "7\n", said
    saved = last_of(output)["step"]
    assert 1 <= saved < 8
    with start() as job:
        said = finish(job)
        assert job.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert [line["step"] for line in log_of(output, "resumed")] == [saved]
    assert last_of(output)["step"] == 8
