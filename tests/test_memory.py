"""Twenty epochs of images leave each data path's memory, workers included, where the warm-up had it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.demo.data_set import write_demo_data
from ssd.config import DATA_PIPELINES

ROOT = Path(__file__).parents[1]
EPOCHS, WARM_UP_EPOCHS = 30, 10  # the allocator has seen its largest blocks by then
# A batch kept by mistake each epoch would be 17 MiB an epoch; sixteen images' pixels, 4.
MAX_SLOPE_MIB_AN_EPOCH = 0.5

SCRIPT = """
import json, sys
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
name, data, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
loader = pipelines.build_train(
    name, read_annotations(data, "train2017"), batch_size=16, num_workers=1, seed=0,
    ranks=Ranks(0, 0, 1, torch.device("cpu")), view=view_of(SSD300Settings()))
batches = loader.batches(0)
resident = []
for _ in range(epochs):
    # The least of the epoch: allocators breathe, by 50 MiB here, but what leaks does not come down again.
    resident.append(min(memory_mib() for _ in islice(batches, loader.steps_per_epoch)))
print(json.dumps(resident))
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


def test_a_leak_has_a_slope_where_a_block_has_none() -> None:
    epochs, noise = np.arange(EPOCHS - WARM_UP_EPOCHS), np.random.default_rng(0).normal(0, 0.3, EPOCHS - WARM_UP_EPOCHS)
    assert least_slope(600 + epochs + noise) > MAX_SLOPE_MIB_AN_EPOCH
    assert least_slope(600 + 20 * (epochs > 5) + noise) < MAX_SLOPE_MIB_AN_EPOCH
    assert least_slope(600 + 20 * (epochs > 12) + noise) < MAX_SLOPE_MIB_AN_EPOCH


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_PIPELINES)
def test_memory_is_flat(name: str, tmp_path: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data = write_demo_data(tmp_path / "demo", train_images=70, val_images=1)  # four batches an epoch
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(data), str(EPOCHS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    resident_mib = np.array(json.loads(done.stdout))[WARM_UP_EPOCHS:]
    assert least_slope(resident_mib) < MAX_SLOPE_MIB_AN_EPOCH, resident_mib
