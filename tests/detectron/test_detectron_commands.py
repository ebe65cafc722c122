"""Detectron's configurations and weights through the commands, and what they say to bad input."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron_files as made
import numpy as np
import pytest
import torch
from runs import small_checkpoint, write_small_data

import main
from ssd.checkpoints import conversion
from ssd.config import Config
from ssd.detectors.detectron.config.configuration import of_values
from ssd.detectors.detectron.config.shipped import configurations
from ssd.detectors.detectron.weights.saved_config import saved_text
from ssd.inference.predictor import load_predictor
from ssd.storage.pickles import read_pickle

SCRATCH = "scratch_e2e_mask_rcnn_R-50-FPN_3x_gn"
# A network of small layers, and images of 64 x 96 pixels at most.
SMALL = [str(word).replace(" ", "") for pair in made.SMALL.items() for word in pair]
SIZES = "TRAIN.SCALES (48,64) TRAIN.MAX_SIZE 96 TEST.SCALE 64 TEST.MAX_SIZE 96 TEST.SCORE_THRESH 0.0".split()
SHORT = "NUM_GPUS 2 SOLVER.MAX_ITER 2 SOLVER.STEPS [0,1] SOLVER.WARM_UP_ITERS 0".split()
FLAGS = "--device cpu --data_pipeline no_dali --num-workers 1".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


def run(*arguments: object) -> None:
    assert main.main([os.fspath(word) if isinstance(word, Path) else str(word) for word in arguments]) == 0


@pytest.mark.slow
def test_a_run_is_evaluated_and_converted(data: Path, tmp_path: Path, capfd: Any) -> None:
    flags = ["--data", data, *FLAGS]
    words = ["--set", *SMALL, *SIZES, *SHORT, "MODEL.TYPE", "generalized_rcnn"]
    run("--detector", SCRATCH, *flags, *words, "--no-plots", "--seed", 1, "--evaluation", "--output", tmp_path / "run")
    said = capfd.readouterr().out
    assert f"note: {SCRATCH}: MODEL.TYPE is not obeyed: FASTER_RCNN, RPN_ONLY, MASK_ON and KEYPOINTS_ON say" in said
    assert "learning rate 0.16 x batch 4 / 32 = 0.02" in said
    written = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (written["steps"], written["accumulate"], written["bias_rate"]) == (2, 2, 2.0)
    assert "cfg" not in written and written["short_sides_px"] == [48, 64]
    last, pkl = tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "m.pkl"
    run("convert", last, pkl)
    weights = conversion.load(last)["model"]
    assert all(torch.equal(weights[name], value) for name, value in conversion.load(pkl)["model"].items())
    evaluate = ["evaluate", *flags]
    run(*evaluate, "--checkpoint", last, "--json", tmp_path / "ours.json")
    # Another suppression and size over the checkpoint's own.
    run(*evaluate, "--checkpoint", last, "--set", "TEST.NMS", "0.9", "TEST.DETECTIONS_PER_IM", 3, "--json",
        tmp_path / "other.json")  # fmt: skip
    assert json.loads((tmp_path / "other.json").read_text()) != json.loads((tmp_path / "ours.json").read_text())
    run("predict", "--checkpoint", last, data / "val2017", "--device", "cpu", "--output", tmp_path / "found",
        "--score", 0, "--pdf", tmp_path / "all.pdf", "--set", "TEST.DETECTIONS_PER_IM", 1)  # fmt: skip
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())) == 2  # images
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF-")
    assert load_predictor(last, Config(device="cpu")).usual_batch_size == 1
    # A batch is one part here, of a single image too, whatever the configuration's ITER_SIZE.
    run("benchmark", "train", "--synthetic", "--checkpoint", last, "--device", "cpu", "--precisions", "fp32",
        "--batch-sizes", 1, "--steps", 1, "--warmup-steps", 1, "--json", tmp_path / "step.json")  # fmt: skip
    (step,) = json.loads((tmp_path / "step.json").read_text())["configurations"]
    assert step["images_per_second"] > 0


def test_proposals_alone_are_judged_and_written(data: Path, tmp_path: Path) -> None:
    r50 = (3, 4, 6, 3)
    parts = [*made.stem("bn"), *made.stages(5, 2, "bn", r50), *made.pyramid(8, r50), *made.proposals(8, 3, "_fpn2")]
    cfg = made.saved_text({**configurations()["rpn_R-50-FPN_1x"].given, **made.SMALL})
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(dict(parts)), "cfg": cfg})
    run("evaluate", "--data", data, *FLAGS, "--checkpoint", file, "--set", "TEST.SCALE", 64, "TEST.MAX_SIZE", 96,
        "--proposals", tmp_path / "rpn_proposals.pkl", "--json", tmp_path / "metrics.json")  # fmt: skip
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["recall_AR1000"] <= 1
    found = read_pickle(tmp_path / "rpn_proposals.pkl", "proposals")
    truth = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    assert found["ids"] == sorted(image["id"] for image in truth["images"])
    for boxes, scores in zip(found["boxes"], found["scores"], strict=True):
        assert 0 < len(boxes) == len(scores) <= 1000 and boxes.shape[1] == 4 and np.isfinite(boxes).all()


# --- bad input, one line each ---


def test_bad_words_and_files_are_named(data: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    train = ["--data", data, *FLAGS, "--output", tmp_path / "run", "--detector"]
    assert "did you mean TEST.NMS?" in refusal(*train, SCRATCH, "--set", "TEST.NSM", "1")
    assert "write 1.0" in refusal(*train, SCRATCH, "--set", "TEST.NMS", "1")
    assert "takes pairs of KEY and VALUE" in refusal(*train, SCRATCH, "--set", "TEST.NMS")
    assert "means nothing for ssd300" in refusal(*train, "ssd300", "--set", "TEST.NMS", "0.5")
    assert "means nothing for yolov2-voc" in refusal(*train, "yolov2-voc", "--set", "TEST.NMS", "0.5")
    assert "did you mean e2e_mask_rcnn_R-50-FPN_2x?" in refusal(*train, "e2e_mask_rcnn_R-50-FPN_3x")
    file = tmp_path / "own.yaml"
    file.write_text("MODEL:\n  FASTER_RCNN: True\n  RETINANET_ON: True\n")
    assert f"{file}:3: there is no key MODEL.RETINANET_ON; did you mean" in refusal(*train, file)
    assert "cannot be read" in refusal(*train, tmp_path / "none.yaml")
    assert "would keep random weights up to res2" in refusal(
        *train, "e2e_mask_rcnn_R-50-FPN_2x_gn", "--backbone-weights", "none", "--set", *SMALL
    )
    assert "--set: means nothing" in refusal(
        "evaluate", "--data", data, "--checkpoint", small_checkpoint(), "--set", "A", "1"
    )


class _Runs:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_files_of_weights_that_cannot_be_are_named(data: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    evaluate = ["evaluate", "--data", data, *FLAGS, "--checkpoint"]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": _Runs()}}, protocol=2))
    assert "print'" in refusal(*evaluate, tmp_path / "evil.pkl")
    values = {**configurations()["rpn_R-50-FPN_1x"].given, **made.SMALL}
    text = saved_text(of_values("m", values), 81, 0)
    shapes = dict(
        [*made.stem("bn"), *made.stages(5, 2, "bn", (3, 4, 6, 3)), *made.pyramid(8, (3, 4, 6, 3)),
         *made.proposals(8, 3, "_fpn2")]
    )  # fmt: skip
    blobs = made.arrays(shapes)
    del blobs["conv_rpn_fpn2_w"]
    assert "1 missing (conv_rpn_fpn2_w)" in refusal(
        *evaluate, made.write(tmp_path / "m.pkl", {"blobs": blobs, "cfg": text})
    )
    body = made.write(tmp_path / "R-50.pkl", {"conv1_w": np.zeros((64, 3, 7, 7), np.float32)})
    assert "pass it as --backbone-weights" in refusal(*evaluate, body)
    # Of 3 classes, and the data has 6.
    whole = made.fpn_mask((3, 4, 6, 3), 4)
    text = saved_text(of_values("m", {**configurations()["e2e_mask_rcnn_R-50-FPN_1x"].given, **made.SMALL}), 4, 0)
    file = made.write(tmp_path / "m.pkl", {"blobs": made.arrays(whole), "cfg": text})
    assert "trained on 3 categories" in refusal(*evaluate, file)
    assert "would be written over itself" in refusal("convert", file, file)


@pytest.mark.parametrize(
    ("detector", "left_out"),
    [(SCRATCH, "segmentation"), ("e2e_keypoint_rcnn_R-50-FPN_1x", "keypoints")],
)
def test_data_without_what_is_to_be_learned_is_named(
    detector: str, left_out: str, data: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for row in (*content["annotations"], *content["categories"]):
            row.pop(left_out, None)
        file.write_text(json.dumps(content))
    said = refusal("--data", folder, *FLAGS, "--output", tmp_path / "run", "--detector", detector, "--set", *SMALL)
    assert ("segmentation" if left_out == "segmentation" else "points") in said
