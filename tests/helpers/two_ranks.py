"""A task on each of two ranks, as torchrun would start them, in processes that begin fast."""

import os
from collections.abc import Callable
from typing import Any

from forked import context
from runs import free_ports

from ssd.distributed import process_group


def rank_of(rank: int, local_rank: int, port: int, task: Callable[..., Any], arguments: Any, results: Any) -> None:
    own = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    with process_group("cpu", timeout_minutes=1) as ranks:
        results.put((rank, task(ranks, *arguments)))


def on_two_ranks(task: Callable[..., Any], *arguments: Any, hosts: int = 1) -> list[Any]:
    """What task(ranks, *arguments) returns on each of two ranks of one host, or of one each."""
    (port,) = free_ports(1)
    results = context().SimpleQueue()
    each = [(rank, rank if hosts == 1 else 0, port, task, arguments, results) for rank in range(2)]
    processes = [context().Process(target=rank_of, args=one, daemon=True) for one in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [value for _, value in sorted((results.get() for _ in processes), key=lambda pair: pair[0])]
