"""Each data path's memory, workers included, stops growing and stays."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.demo.data_set import write_demo_data
from ssd.config import DATA_PIPELINES

ROOT = Path(__file__).parents[2]
# A leak goes on for ever. An allocator ends once it has seen its largest blocks, and when that is depends on the
# machine: on one it took 3 epochs, on a busy one more than 25. So we wait for a flat stretch, and not too long.
FLAT_EPOCHS, MAX_EPOCHS = 20, 120
# A batch kept by mistake each epoch would be 17 MiB an epoch; sixteen images' pixels, 4.
MAX_SLOPE_MIB_AN_EPOCH = 0.5

SCRIPT = """
import sys
from itertools import islice
from pathlib import Path
import torch
import pipelines
from pipelines.readers.coco import read_annotations
from pipelines.speed import memory_mib
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import view_of
from ssd.distributed import Ranks
from ssd.host_memory import keep_freed_memory

keep_freed_memory()  # as a run on a CPU does
name, data = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)
loader = pipelines.build_train(
    name, read_annotations(data, "train2017"), batch_size=16, num_workers=1, seed=0,
    ranks=Ranks(0, 0, 1, torch.device("cpu")), view=view_of(SSD300Settings()))
batches = loader.batches(0)
while True:
    # The least of the epoch: allocators breathe, by 50 MiB here, but what leaks does not come down again.
    print(min(memory_mib() for _ in islice(batches, loader.steps_per_epoch)), flush=True)
"""


def least_slope(resident_mib: np.ndarray) -> float:
    """MiB an epoch, of the half in which it is less: an allocator takes a block once and stays there, a leak goes on.

    Less three standard errors, which is what a fluctuation of some 15 MiB may look like by chance.
    """
    slopes = []
    for half in np.array_split(resident_mib, 2):
        (slope, _), covariance = np.polyfit(np.arange(len(half)), half, 1, cov=True)
        slopes.append(slope - 3 * np.sqrt(covariance[0, 0]))
    return min(slopes)


def is_flat(resident_mib: list[float]) -> bool:
    stretch_mib = np.array(resident_mib[-FLAT_EPOCHS:])
    return len(stretch_mib) == FLAT_EPOCHS and least_slope(stretch_mib) < MAX_SLOPE_MIB_AN_EPOCH


def test_a_leak_has_a_slope_where_a_block_has_none() -> None:
    epochs, noise = np.arange(MAX_EPOCHS), np.random.default_rng(0).normal(0, 0.3, MAX_EPOCHS)
    leak, block = 600 + epochs + noise, 600 + 20 * (epochs > 5) + noise
    assert not any(is_flat(list(leak[:end])) for end in range(MAX_EPOCHS))
    assert is_flat(list(block[:FLAT_EPOCHS]))
    assert not is_flat(list(block[: FLAT_EPOCHS - 1]))  # too short to say


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_PIPELINES)
def test_memory_is_flat(name: str, tmp_path: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = write_demo_data(tmp_path / "demo", train_images=70, val_images=1)  # four batches an epoch
    resident_mib: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, str(data)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            resident_mib.append(float(line))
            if is_flat(resident_mib) or len(resident_mib) == MAX_EPOCHS:
                break
        process.terminate()
    assert is_flat(resident_mib), resident_mib
