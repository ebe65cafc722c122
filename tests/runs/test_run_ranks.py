"""Whole runs on two ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from runs import (
    ENVIRONMENT,
    ROOT,
    WITHIN_S,
    assert_equal,
    log_of,
    run_here,
    run_ranks,
)
from test_run import JUDGED, PATHS, _document, load, succeeded, trained

from ssd.evaluation.coco import METRIC_NAMES
from ssd.precision import has_16_bit_units

pytestmark = pytest.mark.slow


RECORDER = """
import sys
from pathlib import Path

import numpy as np
import torch

import main
import ssd.evaluation.parts
import ssd.training.loop

folder = Path(sys.argv.pop(1))
coco_metrics, average_statistics = ssd.evaluation.parts.coco_metrics, ssd.training.loop.average_statistics


def recording_metrics(ground_truth, results, engine):
    np.save(folder / "results.npy", results)
    return coco_metrics(ground_truth, results, engine)


def recording_average(model, ranks):
    torch.save(model.state_dict(), folder / f"own{ranks.rank}.pt")
    average_statistics(model, ranks)
    torch.save(model.state_dict(), folder / f"rank{ranks.rank}.pt")


ssd.evaluation.parts.coco_metrics, ssd.training.loop.average_statistics = recording_metrics, recording_average
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("data_pipeline", PATHS)
def test_two_ranks(data_pipeline: str, demo_data: Path, tmp_path: Path) -> None:
    """Equal weights on both ranks, and every image judged exactly once."""
    recorder = tmp_path / "recorder.py"
    recorder.write_text(RECORDER)
    output, flags = tmp_path / "run", ["--data_pipeline", data_pipeline, "--max-per-image", 3, *JUDGED]
    fixed = trained(demo_data, output, *flags, "--fp16", "--epochs", 1, "--evaluation", 1)
    ended = run_ranks([tmp_path, *fixed], 2, program=recorder)
    assert [each.code for each in ended] == [0, 0], ended
    said = "".join(each.said for each in ended)
    precision = "bfloat16" if has_16_bit_units(torch.device("cpu")) else "float32"
    assert said.count("wrote ") == 1 and f"2 x cpu, {precision}, batch 8" in said
    assert json.loads((output / "config.json").read_text())["world_size"] == 2
    assert [line["step"] for line in log_of(output, "train")] == [1, 2]  # 11 images in batches of 4 on 2 ranks

    last = load(output / "checkpoints" / "last.pt")
    for rank in range(2):
        assert_equal(dict(last["model"]), dict(load(tmp_path / f"rank{rank}.pt")), f"rank {rank}")
    assert len(last["data_states"]) == 2
    # Each rank saw other images, and what is judged has the mean of their statistics.
    own = [load(tmp_path / f"own{rank}.pt") for rank in range(2)]
    statistics = [name for name in last["model"] if name.endswith(("running_mean", "running_var"))]
    assert statistics and not all(torch.equal(own[0][name], own[1][name]) for name in statistics)
    for name in statistics:
        torch.testing.assert_close(last["model"][name], (own[0][name] + own[1][name]) / 2)

    image_ids = [row["id"] for row in _document(demo_data, "val2017")["images"]]
    results = np.load(tmp_path / "results.npy")
    assert sorted(results[:, 0].tolist()) == sorted(3 * image_ids)
    # The scores of an image fall: its rows come from one rank, once.
    for image_id in image_ids:
        assert (np.diff(results[results[:, 0] == image_id][:, 5]) <= 0).all()

    # In bfloat16 the batch an image is in changes the last bits of its scores, which swap detections of no merit.
    succeeded(run_here(
        "evaluate", "--checkpoint", output / "checkpoints" / "last.pt", "--data", demo_data, *flags, "--fp16",
        "--json", tmp_path / "metrics.json",
    ))  # fmt: skip
    alone, together = (json.loads(file.read_text()) for file in (tmp_path / "metrics.json", output / "results.json"))
    for name in METRIC_NAMES:
        assert alone[name] == pytest.approx(together[name], abs=0.01), name


def test_mistakes_under_torchrun_end_all_ranks(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--data", tmp_path / "none", "--device", "cpu"]
    process = Forked(*torchrun, ROOT / "main.py", *flags, environment=ENVIRONMENT)
    _, complaint = process.communicate(WITHIN_S)
    assert process.returncode != 0
    assert f"error: {tmp_path / 'none'}: no such data folder" in complaint
