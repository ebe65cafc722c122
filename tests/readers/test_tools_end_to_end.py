"""Tools' layouts as they come: `check` and a batch of each data path for eight, a training by one command for four."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tool_data
from runs import last_of, losses_of, small_checkpoint
from square_view import VIEW

import main
import pipelines
from pipelines.exif import look_at_images
from ssd.cli.splits import find_splits, read_both_splits
from ssd.config import Config
from ssd.distributed import Ranks
from ssd.options.flags import config_of

TOOLS = [
    tool_data.roboflow, tool_data.fiftyone, tool_data.label_studio_coco, tool_data.cvat_coco, tool_data.label_img,
    tool_data.voc_devkit, tool_data.ultralytics, tool_data.darknet,
]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_check_and_the_loaders_of_both_paths(
    tool: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    import numpy as np
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    tool(data)
    assert main.main(["check", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "would stop a run" not in shown
    assert f"{3 if tool is tool_data.roboflow else 2} categories" in shown  # Roboflow's parent of all others, unused

    config = config_of({"data": str(data)}, Config())
    here = Ranks(0, 0, 1, torch.device("cpu"))
    train, val = read_both_splits(config, find_splits(config), here)
    looks = [train.trainable_indices(), np.arange(len(val))]
    (train, val), _ = look_at_images([train, val], looks, here)
    seen = {}
    for path in ("dali", "no_dali"):
        loader = pipelines.build_train(path, train, batch_size=2, num_workers=0, seed=0, ranks=here, view=VIEW)
        assert set(next(loader.batches(0)).labels.unique().tolist()) > {0}
        batches = pipelines.build_eval(path, val, batch_size=8, num_workers=0, ranks=here, view=VIEW)
        seen[path] = torch.cat([batch.images for batch in batches])
    assert len(seen["dali"]) == len(val) and (seen["dali"] - seen["no_dali"]).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "path"),
    [
        (tool_data.roboflow, "dali"),
        (tool_data.label_studio_coco, "no_dali"),
        (tool_data.voc_devkit, "no_dali"),
        (tool_data.darknet, "no_dali"),
    ],
    ids=lambda case: getattr(case, "__name__", case),
)
def test_a_training_by_command(tool: Callable[[Path], None], path: str, tmp_path: Path) -> None:
    """What the tool exports, unzipped, with no other flag than --data that is of it."""
    if path == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    data, run = tmp_path / "data", tmp_path / "run"
    tool(data)
    flags = f"--device cpu --checkpoint {small_checkpoint()} --epochs 1 --batch-size 4 --num-workers 0 --no-plots"
    flags += f" --data_pipeline {path} --log-interval 1 --output {run}"
    assert main.main(["--data", str(data), *flags.split()]) == 0
    config = json.loads((run / "config.json").read_text())["settings"]
    assert config["train_split"] and config["val_split"]
    assert losses_of(run)[0][0] == 1  # the step
    names = [name for _, name in last_of(run)["categories"]]
    assert sorted(names) == ["green", "red", *(["shapes"] if tool is tool_data.roboflow else [])]
    shutil.rmtree(run)
