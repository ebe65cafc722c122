"""Twenty epochs of real images leave each data path's resident memory, workers included, where five epochs had it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssd.config import DATA_PIPELINES

ROOT = Path(__file__).parents[1]
EPOCHS, WARM_UP_EPOCHS = 20, 5
# A batch kept by mistake each epoch would be 17 MiB an epoch; an image's pixels, 0.26.
MAX_SLOPE_MIB_AN_EPOCH = 0.5

SCRIPT = """
import json, sys
from itertools import islice
from pathlib import Path
import torch
import pipelines
from pipelines.annotations import read_annotations
from pipelines.benchmark import resident_mib
from ssd.distributed import Ranks

name, data, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
loader = pipelines.build_train(
    name, read_annotations(data, "train2017"), batch_size=16, num_workers=1, seed=0,
    ranks=Ranks(0, 0, 1, torch.device("cpu")),
)
batches = loader.batches(0)
resident = []
for _ in range(epochs):
    # The least of the epoch: allocators breathe, by 50 MiB here, but what leaks does not come down again.
    resident.append(min(resident_mib() for _ in islice(batches, loader.steps_per_epoch)))
print(json.dumps(resident))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA_PIPELINES)
def test_memory_is_flat(name: str, coco256: Path) -> None:
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(coco256), str(EPOCHS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    resident_mib = np.array(json.loads(done.stdout))[WARM_UP_EPOCHS:]
    epochs = np.arange(len(resident_mib))
    (slope, _), covariance = np.polyfit(epochs, resident_mib, 1, cov=True)
    # Three standard errors: what a fluctuation of some 15 MiB may look like by chance.
    assert slope - 3 * np.sqrt(covariance[0, 0]) < MAX_SLOPE_MIB_AN_EPOCH, resident_mib
