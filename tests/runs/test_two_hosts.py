"""Two hosts, as two network namespaces joined by a cable, of which one is cut off and brought back."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from runs import ENVIRONMENT, last_of, log_of, write_small_data
from test_faults import MAIN, WITHIN_S, command, steps_done, torchrun, wait_until, world_size_of

pytestmark = pytest.mark.slow

EPOCHS = 999  # more than it gets to
PORT = 29400  # in a network of its own
ADDRESSES = ("10.99.0.1", "10.99.0.2")


def ip(*arguments: object) -> None:
    subprocess.run(["ip", *map(str, arguments)], check=True, capture_output=True, text=True)


class Hosts:
    """Two network namespaces; the first holds the rendezvous."""

    def __init__(self) -> None:
        self.names = [f"ssd-test-{os.getpid()}-{i}" for i in range(2)]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        first, second = self.names
        ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", name, "link", "set", link, "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def set_cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", "cable", state)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs the ip command of iproute2")
    hosts = Hosts()
    try:
        hosts.make()
    except subprocess.CalledProcessError as error:
        hosts.remove()
        pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
    try:
        yield hosts
    finally:
        hosts.remove()


@contextmanager
def agent(hosts: Hosts, i: int, arguments: list[str], said: Path) -> Iterator[subprocess.Popen[str]]:
    """torchrun on host i, of which nothing is left at the end."""
    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "cable"}
    line = ["ip", "netns", "exec", hosts.names[i], sys.executable, *arguments]
    with said.open("a") as stream:
        process = subprocess.Popen(line, env=environment, stdout=stream, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        for each in [
            process,
            *(psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []),
        ]:
            each.kill()
        process.wait()


def test_a_host_that_is_cut_off_and_comes_back(hosts: Hosts, tmp_path: Path) -> None:
    """An elastic job goes on with the host that is left, and on both again once the other one is back."""
    data, output = write_small_data(tmp_path / "data"), tmp_path / "run"
    endpoint = ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=test"]
    # A cut cable says nothing, only time can tell. --timeout is in minutes.
    flags = ["--epochs", EPOCHS, "--timeout", 0.5, "--checkpoint-every", "5 steps"]

    def host(i: int) -> AbstractContextManager[subprocess.Popen[str]]:
        conf = f"--rdzv-conf=is_host={1 - i},last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
        job = ["--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=20", *endpoint, conf]
        arguments = [*torchrun(*job, f"--local-addr={ADDRESSES[i]}"), MAIN, *command(data, output, *flags)]
        return agent(hosts, i, [*map(str, arguments)], tmp_path / f"{i}.txt")

    def world_sizes() -> list[int]:
        return [line["world_size"] for line in log_of(output, "resumed")]

    with host(0) as first, ExitStack() as others:
        second = others.enter_context(host(1))
        wait_until(lambda: world_size_of(output) == 2 and steps_done(output) > 10, [first])
        hosts.set_cable("down")
        wait_until(lambda: world_sizes()[-1:] == [1] and world_size_of(output) == 1, [first])
        alone_from = steps_done(output)
        wait_until(lambda: steps_done(output) > alone_from, [first])
        assert last_of(output)["epoch"] < EPOCHS
        hosts.set_cable("up")
        if second.poll() is not None:  # it may have given up, and then its scheduler starts it anew
            others.enter_context(host(1))
        wait_until(lambda: world_sizes()[-1:] == [2], [first])
        together_from = steps_done(output)
        wait_until(lambda: steps_done(output) > together_from, [first])
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=WITHIN_S)
    last = last_of(output)
    assert last["data"]["world_size"] == 2 and last["step"] > together_from, (tmp_path / "0.txt").read_text()
