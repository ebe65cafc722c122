"""Annotations parsed by one rank of each host, and mapped into the memory of all.

Parsing COCO's training split takes some ten seconds and a gigabyte; the clean arrays that come of it are 60 MB. Eight
ranks that parse for themselves need eight gigabytes, here they need one, and share the pages of the arrays.
"""

import mmap
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.annotations import Annotations
from ssd.distributed import Ranks, sum_over_ranks
from ssd.errors import InputError

_OBJECT, _ARRAY = "annotations.pickle", "{}.array"


def read_once_a_host(read: Callable[[], Annotations], ranks: Ranks) -> Annotations:
    """What `read` returns, called on local rank 0 only; on more than one rank its arrays are read-only.

    All ranks call it together. Raises on all ranks of a host the InputError that `read` raises.
    """
    if ranks.world_size == 1:
        return read()
    with tempfile.TemporaryDirectory(prefix="ssd-annotations-") as own_folder:
        problem = None
        if ranks.local_rank == 0:
            try:
                _write(read(), Path(own_folder))
            except InputError as error:
                problem = str(error)
        told: list[tuple[str, str | None]] = [("", None)] * ranks.world_size
        dist.all_gather_object(told, (own_folder, problem))
        folder, problem = told[ranks.rank - ranks.local_rank]  # torchrun numbers a host's ranks without gaps
        try:
            if problem is not None:
                raise InputError(problem)
            return _map(Path(folder))
        finally:
            sum_over_ranks(torch.zeros(1), ranks)  # a barrier among CPUs; what is mapped stays when its name goes


def _write(annotations: Annotations, folder: Path) -> None:
    """The object and, in a file each, its arrays."""
    arrays: list[pickle.PickleBuffer] = []
    (folder / _OBJECT).write_bytes(pickle.dumps(annotations, protocol=5, buffer_callback=arrays.append))
    for i, array in enumerate(arrays):
        (folder / _ARRAY.format(i)).write_bytes(array.raw())


def _map(folder: Path) -> Annotations:
    files = [folder / _ARRAY.format(i) for i in range(len(list(folder.iterdir())) - 1)]
    annotations: Annotations = pickle.loads((folder / _OBJECT).read_bytes(), buffers=map(_mapped, files))
    return annotations


def _mapped(file: Path) -> mmap.mmap | bytes:
    with file.open("rb") as stream:
        # A file of no bytes cannot be mapped.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""
