"""YOLOv2 through the commands, on a small network of a cfg file."""

import itertools
import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from darknet_networks import TINY
from runs import assert_equal_runs, killed_and_not, last_of, log_of, run_all, write_small_data

import main
import ssd
from pipelines.ragged.order import TrainingOrder
from pipelines.readers.coco import read_annotations
from ssd.batch import RaggedBatch
from ssd.checkpoints import checkpoint, conversion
from ssd.config import Config
from ssd.detectors.names import settings_named
from ssd.detectors.table import detector_of
from ssd.detectors.yolov2.darknet.cfg import parse
from ssd.detectors.yolov2.darknet.model import Darknet
from ssd.detectors.yolov2.darknet.weights import num_floats
from ssd.detectors.yolov2.detector import YOLOV2
from ssd.detectors.yolov2.files import foreign
from ssd.detectors.yolov2.loss import region_losses
from ssd.detectors.yolov2.recipes import darknet, defaults, notes_of, paper
from ssd.detectors.yolov2.settings import YOLOv2Settings, network_of, train_sizes_px
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.options.detectors import for_detector
from ssd.schedule import peak_lr, plan_of
from ssd.training.resume import data_identity
from ssd.views import StretchView

FLAGS = (
    "--bs 2 --accumulate 1 --lr 0.01 --warmup 2 --seed 3 --device cpu --num-workers 1 --log-interval 1 --no-plots "
    "--evaluation"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("data") / "demo")


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.cfg"
    file.write_text(TINY)
    return file


def run(*arguments: object) -> None:
    assert main.main([str(argument) for argument in arguments]) == 0


def test_a_run_from_before_images_could_be_fitted_in_goes_on() -> None:
    """What such a run's checkpoint says of its detector has no word of it."""
    loader: Any = SimpleNamespace(identity={})
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    config = Config(detector=YOLOv2Settings("tiny.cfg", TINY), seed=1)
    assert "resize" not in data_identity(config, "data", loader, ranks)
    fitted = config.with_detector(replace(config.detector, resize="letterbox"))
    assert data_identity(fitted, "data", loader, ranks)["resize"] == "letterbox"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dali", "no_dali"])
def test_a_run_goes_on_bit_for_bit(
    name: str, data: Path, cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch of three steps and of three steps in one size, before another size, with a moving
    average."""
    sides: list[int] = []

    def seen(raw: Any, batch: RaggedBatch, *others: Any) -> dict[str, torch.Tensor]:
        sides.append(batch.images.shape[-1])
        return region_losses(raw, batch, *others)

    monkeypatch.setattr("ssd.detectors.yolov2.detector.region_losses", seen)
    monkeypatch.setattr("ssd.detectors.yolov2.detector.StretchView", partial(StretchView, steps_a_size=3))
    flags = ["--detector", cfg, *FLAGS, "--data", data, "--data_pipeline", name, "--epochs", 2, "--ema", 0.9]
    flags += ["--train-size", 48, 96, *(["--resize", "letterbox"] if name == "dali" else [])]
    run(*flags, "--output", tmp_path / "whole", "--checkpoint-every", "1 steps", "--keep-checkpoints", 99)
    whole, sides[:] = sides[:], []
    run(*flags, "--output", tmp_path / "again", "--resume", tmp_path / "whole" / "checkpoints" / "step-00000002.pt")
    first, second = whole[0], whole[-1]
    assert first != second and whole == [first] * 3 + [second] * 3 and sides == whole[2:]
    assert_equal_runs(last_of(tmp_path / "whole"), last_of(tmp_path / "again"))
    lines = log_of(tmp_path / "whole", "train")
    assert len(lines) == 6 and all(line["prior_loss"] > 0 and line["loss"] is not None for line in lines)
    assert int(last_of(tmp_path / "whole")["trained_model"]["seen"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "ranks", "resize"),
    [("dali", 1, "stretch"), ("no_dali", 1, "letterbox"), ("dali", 2, "letterbox"), ("no_dali", 2, "stretch")],
)
def test_a_killed_run_goes_on_bit_for_bit(
    path: str, ranks: int, resize: str, data: Path, cfg: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch of three steps, or of two on two ranks; of ten steps in one size, or after them."""
    command = ["--detector", cfg, *FLAGS, "--data", data, "--data_pipeline", path, "--resize", resize]
    command += ["--train-size", 48, 96, "--epochs", {1: 4, 2: 6}[ranks]]
    undisturbed, _ = killed_and_not(command, ranks, tmp_path, {1: 10, 2: 9}[ranks])
    assert last_of(undisturbed)["step"] == 12


SCHEDULE = """
pruners:
  filters:
    class: GlobalFilterPruner
    desired_sparsity: 0.4
    weights: [layers.0.conv.weight, layers.2.conv.weight, layers.4.conv.weight]
extensions:
  remover: {class: FilterRemover}
policies:
  - {pruner: {instance_name: filters, args: {mask_batchnorm: true}}, epochs: [4]}
  - {extension: {instance_name: remover}, epochs: [4]}
"""


@pytest.mark.slow
def test_two_ranks_go_on_bit_for_bit(data: Path, cfg: Path, tmp_path: Path) -> None:
    """In the middle of an epoch of two steps in which filters went, before another size: one holds for ten steps."""
    view = YOLOV2.view(YOLOv2Settings("tiny.cfg", TINY, train_px=(48, 96)))
    split = read_annotations(data, "train2017")
    steps = TrainingOrder(split, view, batch_size=4, seed=3, ranks=Ranks(0, 0, 1, torch.device("cpu"))).steps((0, 0))
    drawn_px = [step.samples[0].size_px for step in itertools.islice(steps, 12)]
    assert drawn_px[8] == drawn_px[9] != drawn_px[10]
    (tmp_path / "prune.yaml").write_text(SCHEDULE)
    flags = ["--detector", cfg, *FLAGS, "--data", data, "--data_pipeline", "no_dali", "--epochs", 6]
    flags += ["--train-size", 48, 96, "--compress", tmp_path / "prune.yaml", "--keep-checkpoints", 99]
    whole, again = tmp_path / "whole", tmp_path / "again"
    said = run_all(
        [
            [*flags, "--output", whole, "--checkpoint-every", "1 step"],
            [*flags, "--output", again, "--resume", whole / "checkpoints" / "step-00000009.pt"],
        ],
        2,
    )
    assert "filters of zeros are taken out" in said
    end = last_of(whole)
    assert_equal_runs(end, last_of(again))
    assert end["step"] == 12 and end["channels"]["layers.0.conv"]["out"] < 8
    assert len(end["model"]["layers.2.conv.weight"]) % 4 == 0  # before [reorg]


@pytest.mark.slow
def test_all_commands(data: Path, cfg: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    """A run, its evaluation, detections, export, and darknet's files written, read again and trained from."""
    folder = tmp_path / "run"
    flags = [flag for flag in FLAGS if flag != "--no-plots"]
    flags += ["--data", data, "--data_pipeline", "no_dali", "--epochs", 1, "--metrics", "voc07", "coco"]
    run("--detector", cfg, *flags, "--score-threshold", 0, "--output", folder)
    file = folder / "checkpoints" / "last.pt"
    settings = checkpoint.settings_of(checkpoint.load(file))
    assert settings == YOLOv2Settings("tiny.cfg", TINY)
    saved = json.loads((folder / "config.json").read_text())["settings"]
    assert saved["detector"] == "tiny.cfg" and saved["nms_iou"] == 0.45 and "cfg" not in saved
    assert int(checkpoint.load(file)["model"]["seen"]) == 6

    results = json.loads((folder / "results.json").read_text())
    assert checkpoint.load_run(file)["best_ap"] == results["VOC07"] and results["best_by"] == "VOC07"
    assert (results["resize"], results["input_px"]) == ("stretch", [64, 64])
    assert (results["score_threshold"], results["nms_iou"]) == (0, 0.45)
    report = (folder / "report.html").read_text()
    assert "YOLOv2 tiny.cfg" in report and "VOC07" in report

    cpu = ("--device", "cpu")
    judged = ["--data", data, "--checkpoint", file, *cpu, "--data_pipeline", "no_dali", "--num-workers", 0]
    comp4 = tmp_path / "comp4"
    to_file = ["--json", tmp_path / "metrics.json", "--comp4", comp4, "--metrics", "voc12", "voc07"]
    run("evaluate", *judged, "--score-threshold", 0, *to_file)
    names = [name for _, name in checkpoint.load(file)["categories"]]
    assert {each.name for each in comp4.iterdir()} == {f"comp4_det_test_{name}.txt" for name in names}
    assert any(each.read_text() for each in comp4.iterdir())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 1 and 0 <= metrics["VOC12"] <= 1 and metrics["VOC07"] == results["VOC07"]
    said_of_images = {"resize": "stretch", "input_px": [64, 64], "score_threshold": 0, "nms_iou": 0.45}
    assert said_of_images.items() <= metrics.items()
    run("evaluate", *judged, "--score-threshold", 0, *to_file[:2], "--set", "width", 96)
    larger = json.loads((tmp_path / "metrics.json").read_text())
    assert larger["input_px"] == [96, 64] and larger["AP"] != metrics["AP"]
    judged[-1] = "0"
    assert "only width and height can be set" in refusal("evaluate", *judged, "--set", "momentum", "0.9")
    assert "height 100: sides have to be multiples of 16" in refusal(
        "evaluate", *judged, "--set", "width", "96", "height", "100"
    )
    for side in ("0", "-32", "9" * 5000, "100000", "96.0"):
        assert "is no number of pixels up to 99,999" in refusal("evaluate", *judged, "--set", "width", side)
    assert "with --set width 544 height 544" in refusal("evaluate", *judged, "--input-size", "96", "96")
    (found,) = ssd.load(file, device="cpu", score=0.0)(next((data / "val2017").glob("*.jpg")))
    assert len(found.boxes_ltrb_px)
    run("export", "--checkpoint", file, "--format", "torch", "--output", tmp_path / "tiny.pt2")

    for suffix in (".weights", ".cfg", ".names"):
        run("convert", file, tmp_path / f"own{suffix}")
    again = conversion.load(tmp_path / "own.weights")
    assert again["categories"] == [(i, name) for i, (_, name) in enumerate(checkpoint.load(file)["categories"], 1)]
    assert network_of(checkpoint.settings_of(again)).region.classes == len(again["categories"])
    for name, value in checkpoint.load(file)["model"].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, again["model"][name]), name
    run("convert", tmp_path / "own.weights", tmp_path / "again.pt")
    run("convert", tmp_path / "again.pt", tmp_path / "twice.weights")
    assert (tmp_path / "twice.weights").read_bytes() == (tmp_path / "own.weights").read_bytes()
    # Trained for longer than the cfg's max_batches, as official files are: it is no end of what begins here.
    content = (tmp_path / "own.weights").read_bytes()
    (tmp_path / "own.weights").write_bytes(content[:12] + struct.pack("<q", 80_200 * 64) + content[20:])
    fine = ["--data", data, "--checkpoint", tmp_path / "own.weights", *FLAGS[:-1], "--epochs", 1]
    run(*fine, "--data_pipeline", "no_dali", "--output", tmp_path / "fine")
    assert int(last_of(tmp_path / "fine")["model"]["seen"]) == 80_200 * 64 + 6
    assert all(line["prior_loss"] == 0 for line in log_of(tmp_path / "fine", "train"))
    run("convert", tmp_path / "own.weights", tmp_path / "anew.weights", "--seen", 0)
    assert (tmp_path / "anew.weights").read_bytes()[12:20] == bytes(8)
    assert (tmp_path / "anew.weights").read_bytes()[20:] == content[20:]
    said = refusal("convert", file, tmp_path / "own.txt")
    assert "pass a name that ends in .pt" in said


def test_a_name_or_a_file_says_the_network(cfg: Path, tmp_path: Path) -> None:
    for name in ("yolov2-voc", "yolo-voc.2.0"):
        assert settings_named(name).network == name
        assert detector_of(settings_named(name)).title(settings_named(name)) == f"YOLOv2 {name}"
    assert settings_named(str(cfg)) == YOLOv2Settings("tiny.cfg", TINY)
    with pytest.raises(InputError, match="no-such.cfg: cannot be read"):
        settings_named(str(tmp_path / "no-such.cfg"))


def test_a_predictor_suppresses_as_the_detector_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As darknet's 0.45, where SSD300 has 0.5; the score that pictures show is the caller's."""
    file, given = tmp_path / "tiny.pt", []
    model = Darknet(network_of(YOLOv2Settings("tiny.cfg", TINY)))
    content = {"format": 2, "detector": {"family": "yolov2", "network": "tiny.cfg", "cfg": TINY}}
    checkpoint.save(file, {**content, "categories": [(1, "a"), (2, "b")], "model": model.state_dict()})
    watched = YOLOV2._replace(detect=lambda settings, thresholds: given.append(thresholds))  # type: ignore[arg-type, func-returns-value]
    monkeypatch.setattr("ssd.detectors.table.detector_of", lambda settings: watched)
    ssd.load(file, device="cpu", score=0.3)
    own = defaults(YOLOv2Settings("tiny.cfg", TINY)).thresholds
    assert given == [own._replace(score_threshold=0.3)] and own.nms_iou == 0.45


def test_an_edited_cfg_is_held_against_the_checkpoints() -> None:
    """Batch, rate and classes may be others, and so may what a flag says; the rest is the checkpoint's."""
    held = YOLOv2Settings("tiny.cfg", TINY)

    def after(text: str, *flags: str, **own: Any) -> Config:
        assert text != TINY
        return for_detector(held, defaults(YOLOv2Settings("tiny.cfg", text, **own)), {"detector", *flags})

    config = after(TINY.replace("batch=4", "# a comment\nbatch=8\ndecay=0.1"))
    assert (config.detector, config.batch_size, config.weight_decay) == (held, 8, 0.1)
    assert after(TINY.replace("filters=14", "filters=18").replace("classes=2", "classes=4")).detector == held
    for old, new, line, said in (
        ("thresh=.6", "thresh=.3", 58, "thresh is 0.3 and was 0.6"),
        ("batch=4", "saturation=1.5\nbatch=4", 3, "saturation is 1.5 and was 1.0"),
        ("object_scale=5\n", "", 51, "object_scale is 1.0 and was 5.0"),
        ("layers=-1,4", "layers=4,-1", 39, "layers is 4,-1 and was -1,4"),
        ("[reorg]", "[reorg3d]", 36, "layer 6 is [reorg3d] and was [reorg]"),
        ("1.5,2.5", "2,2", 52, "anchors is 1.0,1.0,2.0,2.0 and was 1.0,1.0,1.5,2.5"),
    ):
        with pytest.raises(InputError, match=f"tiny.cfg:{line}: {re.escape(said)} in the checkpoint"):
            after(TINY.replace(old, new))
    flag: tuple[float, ...] = (3.0, 3.0, 1.0, 2.0)
    config = after(TINY.replace("1.5,2.5", "2,2"), "anchors", anchors=flag)
    assert config.detector == replace(held, anchors=flag)


def test_sizes_of_training() -> None:
    voc = settings_named("yolov2-voc")
    assert train_sizes_px(voc) == tuple((side, side) for side in range(320, 609, 32))
    assert train_sizes_px(settings_named("yolo-voc.2.0")) == ((416, 416),)
    assert train_sizes_px(YOLOv2Settings("x", voc.cfg, train_px=(256, 320))) == ((256, 256), (288, 288), (320, 320))
    assert train_sizes_px(YOLOv2Settings("x", voc.cfg, train_px=(256,))) == ((256, 256),)
    view = detector_of(voc).view(voc)
    assert (view.size_px, view.jitter, view.hue, view.saturation) == ((416, 416), 0.3, 0.1, 1.5)


def test_a_run_starts_from_the_cfgs_recipe() -> None:
    """Its rate is for its batch, and its subdivisions are the parts that a batch is computed in."""
    config = defaults(settings_named("yolov2-voc"))
    assert (config.batch_size, config.accumulate, config.weight_decay, config.momentum) == (64, 8, 0.0005, 0.9)
    assert config.learning_rate * config.batch_size / 32 == pytest.approx(1e-3)
    assert (config.schedule, config.warmup, config.warmup_power) == ("multistep", 1000, 4)
    # As shipped, with batch=1 for tests, the rate is still the one for 64 images, and the user is told.
    voc = settings_named("yolov2-voc")
    shipped = replace(voc, cfg=voc.cfg.replace("batch=64\nsubdivisions=8", "batch=1\nsubdivisions=1"))
    assert network_of(shipped).net.batch == 1
    for recipe in (paper, darknet):
        assert peak_lr(recipe(64, detector=shipped).learning_rate, 64) == pytest.approx(1e-3)
        assert peak_lr(recipe(16, detector=shipped).learning_rate, 16) == pytest.approx(1e-3 / 4)
    assert "learning_rate=0.001 for 64 images" in notes_of(shipped)[0] and notes_of(voc) == []
    (said,) = notes_of(replace(voc, cfg=voc.cfg.replace("[region]", "[region]\nmax=90")))
    assert "max=90: all objects of an image are learned" in said
    config = darknet(detector=settings_named("yolov2-tiny-voc"))
    assert (config.steps, config.warmup, config.evaluation[:2]) == (40200, 0, (4020, 8040))
    # Of steps=-1,100,20000,30000, counted from 1: its rates are those of darknet's own walk.
    assert plan_of(config, 7).falls == ((0, 0.1), (99, 10.0), (19999, 0.1), (29999, 0.1))


def test_a_scale_within_the_burn_in_waits_for_its_end() -> None:
    own = "burn_in=4\nmax_batches=40\npolicy=steps\nsteps=2,11,5\nscales=.1,.2,.5\n[conv]"
    plan = plan_of(darknet(detector=YOLOv2Settings("tiny.cfg", TINY.replace("[conv]", own, 1))), 7)
    assert plan == (40, ((3, 0.1), (10, 0.2), (10, 0.5)), set(range(4, 41, 4)))


def test_bad_input_is_named(data: Path, cfg: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    train = ["--data", str(data), "--device", "cpu", "--data_pipeline", "no_dali", "--output", str(tmp_path / "run")]
    assert "did you mean yolov2-voc?" in refusal(*train, "--detector", "yolov2-vox")
    assert "multiples of 32" in refusal(*train, "--detector", "yolov2-voc", "--input-size", "400", "416")
    assert "multiples of 32" in refusal(*train, "--detector", "yolov2-voc", "--train-size", "320", "400")
    assert "--set: means nothing for yolov2-voc here" in refusal(
        *train, "--detector", "yolov2-voc", "--set", "width", "416"
    )
    assert "--anchors: takes pairs" in refusal(*train, "--detector", "yolov2-voc", "--anchors", "1", "2", "3")
    pixels = ["--anchors", *"100 130 90 60 200 300 400 250 620 450".split()]
    said = refusal(*train, "--detector", "yolov2-voc", *pixels)
    assert "--anchors: an anchor is 100 cells wide and the output 13 x 13 cells" in said
    assert "is an option of other detectors, such as --detector yolov2-voc" in refusal(*train, "--train-size", "320")
    assert "torchvision has none" in refusal(*train, "--detector", cfg, "--backbone-weights", "imagenet")

    assert "--multistep-factors: 1 for 2 of --multistep" in refusal(
        *train, "--detector", cfg, "--multistep", "3", "5", "--multistep-factors", "0.1"
    )
    as_shipped = tmp_path / "one.cfg"
    as_shipped.write_text(TINY.replace("batch=4\nsubdivisions=2", "batch=1\nsubdivisions=1"))
    assert "--batch-size 1" in refusal(*train, "--detector", as_shipped)
    cfg.write_text(TINY.replace("filters=14", "filters=15"))
    assert "tiny.cfg:46: filters=15 before [region]" in refusal(*train, "--detector", cfg)


VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


def test_classes_are_those_that_the_name_of_a_cfg_file_says(tmp_path: Path) -> None:
    """As of official weights beside which somebody puts a cfg with letter_box=1. Else they are numbered."""

    def names_of(network: str, classes: int) -> list[str]:
        text = TINY.replace("classes=2", f"classes={classes}").replace("filters=14", f"filters={2 * (5 + classes)}")
        (tmp_path / f"{network}.cfg").write_text(text)
        content = struct.pack("<3iq", 0, 2, 0, 0) + np.ones(num_floats(parse(text, network)), "<f4").tobytes()
        found = foreign(content, tmp_path / f"{network}.weights")
        assert found is not None and [number for number, _ in found["categories"]][:2] == [1, 2]
        return [name for _, name in found["categories"]]

    assert names_of("yolov2-voc", 20) == names_of("yolo-voc.2.0", 20) == names_of("yolov2-tiny-voc_final", 20) == VOC
    assert names_of("yolov2", 80)[:2] == ["person", "bicycle"]
    for network, classes in (("yolov2", 20), ("yolov2-voc", 3), ("mine", 20)):
        assert names_of(network, classes)[0] == "class 1"


def test_files_of_weights_are_refused_by_name(
    data: Path, cfg: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    judged = ["evaluate", "--data", str(data), "--device", "cpu", "--checkpoint"]
    alone = tmp_path / "alone.weights"
    alone.write_bytes(bytes(100))
    assert "put its cfg file beside it as alone.cfg" in refusal(*judged, alone)
    short = tmp_path / "tiny.weights"
    floats = num_floats(network_of(YOLOv2Settings("tiny.cfg", TINY)))
    short.write_bytes(struct.pack("<3iq", 0, 2, 0, 0) + np.ones(floats - 1, "<f4").tobytes())
    assert f"has {20 + 4 * floats} bytes of weights, this file has {16 + 4 * floats}" in refusal(*judged, short)
    named = tmp_path / "yolov2-tiny-voc_final.weights"
    named.write_bytes(bytes(100))
    assert "yolov2-tiny-voc has 63471556 bytes of weights, this file has 100" in refusal(*judged, named)
    (tmp_path / "tiny.names").write_text("one\n")
    short.write_bytes(struct.pack("<3iq", 0, 2, 0, 0) + np.ones(floats, "<f4").tobytes())
    assert "tiny.names: has 1 names, tiny.weights has 2 classes" in refusal(*judged, short)
    backbone = ["--data", str(data), "--device", "cpu", "--data_pipeline", "no_dali", "--detector", cfg]
    backbone += [*FLAGS[:-1], "--output", tmp_path / "run"]
    assert "behind none of its layers" in refusal(*backbone, "--backbone-weights", alone)
