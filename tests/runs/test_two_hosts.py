"""Two hosts, as two network namespaces joined by a cable, of which one is cut off and brought back."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest
from forked import Forked
from networks import ADDRESSES, Hosts, enter
from runs import SLOW, last_of, log_of, write_small_data
from test_faults import command, finish, started, steps_done, torchrun, wait_until, world_size_of

pytestmark = pytest.mark.slow

EPOCHS = 999  # more than it gets to
PORT = 29400  # in a network of its own


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


def test_a_host_that_is_cut_off_and_comes_back(hosts: Hosts, tmp_path: Path) -> None:
    """An elastic job goes on with the host that is left, and on both again once the other one is back."""
    data, output = write_small_data(tmp_path / "data"), tmp_path / "run"
    endpoint = ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=test"]
    # A cut cable says nothing, only time can tell. --timeout is in minutes.
    flags = ["--epochs", EPOCHS, "--timeout", 0.2, "--checkpoint-every", "5 steps"]

    def host(i: int) -> AbstractContextManager[Forked]:
        conf = f"--rdzv-conf=is_host={1 - i},last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
        job = ["--nnodes=1:2", "--nproc_per_node=1", "--max-restarts=20", *endpoint, conf]
        arguments = [*torchrun(*job, f"--local-addr={ADDRESSES[i]}"), SLOW, *command(data, output, *flags)]
        of_its_own = {"GLOO_SOCKET_IFNAME": "cable", "SECONDS_A_STEP": "0.2"}
        return started(*arguments, environment=of_its_own, before=partial(enter, hosts.names[i]))

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
        said = finish(first)
    last = last_of(output)
    assert last["data"]["world_size"] == 2 and last["step"] > together_from, said
