"""Whole runs on two ranks."""

import json
import re
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
    losses_of,
    run_here,
    run_ranks,
    settings,
    write_small_data,
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


COMPILING = """
import functools
import sys

import torch
from torch._dynamo import lookup_backend

import main
import ssd.training.step as step

graphs = []


def traced(graph, inputs):
    graphs.append(graph)
    return lookup_backend("aot_eager")(graph, inputs)


# Buckets that the small detector fills, the first of which is DDP's constant. The compiler cuts its graph between them.
torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 2**18
step.DistributedDataParallel = functools.partial(step.DistributedDataParallel, bucket_cap_mb=0.25)
torch.compile = functools.partial(torch.compile, backend=traced)
code = main.main(sys.argv[1:])
print(f"{len(graphs)} graphs")
sys.exit(code)
"""


def test_compiled_it_has_the_losses_of_the_plain_run(tmp_path: Path) -> None:
    """fullgraph=True raises where the model or the loss is not one graph. aot_eager traces all that inductor is given,
    in a tenth of its time. The second step's losses tell what the ranks exchanged in the first."""
    program = tmp_path / "compiling.py"
    program.write_text(COMPILING)
    data = write_small_data(tmp_path / "data")
    fixed = ["--data", data, "--data_pipeline", "no_dali", *settings(), "--bs", 4, "--epochs", 2, "--evaluation", 2]
    losses = {}
    for name, graphs, more in (("plain", "0 graphs", []), ("compiled", r"[3-9] graphs", ["--compile"])):
        ended = run_ranks([*fixed, *more, "--output", tmp_path / name], 2, program=program)
        assert [each.code for each in ended] == [0, 0], ended
        assert all(re.search(rf"^{graphs}$", each.said, re.MULTILINE) for each in ended), ended
        losses[name] = losses_of(tmp_path / name)
    assert [step for step, *_ in losses["plain"]] == [1, 2]
    # The same operators in another order.
    for plain, compiled in zip(losses["plain"], losses["compiled"], strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3)


def test_mistakes_under_torchrun_end_all_ranks(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--data", tmp_path / "none", "--device", "cpu"]
    process = Forked(*torchrun, ROOT / "main.py", *flags, environment=ENVIRONMENT)
    _, complaint = process.communicate(WITHIN_S)
    assert process.returncode != 0
    assert f"error: {tmp_path / 'none'}: no such data folder" in complaint
