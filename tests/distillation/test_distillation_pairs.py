"""Which detectors teach which: what each shows as a teacher and as a student, and pairs that do not go together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from darknet_networks import TINY
from detectron_models import C4, SMALL
from distillation_toys import CATEGORIES, METHODS, hash_of, losses, new_training, random_batch, teacher_of, tiny
from torchvision_models import NUM_CLASSES

from ssd.compression.attach import compress
from ssd.compression.schedules.distiller_yaml import read_schedule
from ssd.detectors.retinanet.distillation import PARTS
from ssd.detectors.retinanet.settings import RetinaNetSettings
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import detector_of
from ssd.detectors.torchvision.names import settings_of
from ssd.detectors.yolov2.settings import YOLOv2Settings
from ssd.distillation.attach import distill
from ssd.distillation.pair import Pair, Side, pair_of
from ssd.distillation.teacher import knows
from ssd.distillation.watched import Recorder, Watched
from ssd.errors import InputError
from ssd.training.step import build_forward

STUDENT, TEACHER = (
    RetinaNetSettings(f"retinanet_{body}_fpn", norm="batch", trainable_layers=5) for body in ("r18", "r50")
)


def test_retinanet_learns_from_a_larger_one_by_every_method() -> None:
    torch.manual_seed(0)
    model, larger = (detector_of(settings).build(settings, NUM_CLASSES) for settings in (STUDENT, TEACHER))
    with torch.no_grad():  # a fresh head says next to nothing of classes, which would leave nothing to learn
        for parameter in larger.head.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    before = hash_of(larger)
    training = new_training(teacher_of(larger, TEACHER), *METHODS, model=model, detector=STUDENT)
    said = training.losses_of(build_forward(training), random_batch(0))
    terms = {name: value for name, value in said.items() if name.startswith(METHODS)}
    assert {name.partition("_")[0] for name in terms} == set(METHODS)
    assert all(torch.isfinite(value) and value > 0 for value in terms.values()), terms
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in larger.parameters())
    assert all(torch.equal(one, other) for one, other in zip(hash_of(larger), before, strict=True))


def test_heads_with_other_anchors_are_refused_and_maps_are_not() -> None:
    """torchvision's anchors are rounded, and its first class is the background."""
    theirs, student = teacher_of(tiny(256)), detector_of(STUDENT).build(STUDENT, NUM_CLASSES)
    with pytest.raises(InputError, match="needs the same anchors and classes in both heads"):
        new_training(theirs, "gid", model=student, detector=STUDENT)
    said = new_training(theirs, "pkd", model=student, detector=STUDENT)
    assert said.losses_of(build_forward(said), random_batch(0))["pkd"] > 0


def test_every_logit_of_detectron2_is_a_class() -> None:
    assert PARTS.anchors is not None
    assert PARTS.anchors.probabilities(torch.zeros(1, 2, 80)).shape == (1, 2, 80)


@pytest.mark.parametrize(("kind", "names"), [({}, ["p2", "p3", "p4", "p5", "p6"]), (C4, ["c4"])], ids=["FPN", "C4"])
def test_detectrons_maps_have_the_strides_that_they_are_said_to_have(kind: dict[str, object], names: list[str]) -> None:
    settings = replace(SMALL, **kind)  # type: ignore[arg-type]
    detector = detector_of(settings)
    parts = detector.distillation_parts(settings)
    assert parts is not None and parts.is_two_stage and list(parts.strides_px) == names
    with torch.no_grad():
        model = detector.build(settings, NUM_CLASSES).eval()
        maps = parts.maps(parts.forward(model, torch.zeros(1, 3, 64, 128), False))
    for name, each in maps.items():
        assert (each.shape[2], each.shape[3]) == (64 / parts.strides_px[name], 128 / parts.strides_px[name])


def test_maps_that_lie_far_apart_in_order_are_paired_by_their_stride() -> None:
    """The first map of a MobileNet has cells of 32 pixels, that of a ResNet cells of 4."""
    sides = []
    for name in ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet18_fpn"):
        parts = detector_of(settings_of(name, "none")).distillation_parts(settings_of(name, "none"))
        assert parts is not None
        sides.append(Side(name, parts, dict.fromkeys(parts.strides_px, 256), None, {}))
    student, teacher = sides
    assert Pair(teacher, student, None).levels("pkd") == [("p5", "p5"), ("p5-last", "p5"), ("p6", "p6")]
    coarse = teacher._replace(parts=teacher.parts._replace(strides_px={"p9": 512.0}), maps={"p9": 256})
    with pytest.raises(InputError, match="has the stride of one of fasterrcnn_resnet18_fpn .p9 512 px"):
        Pair(coarse, student, None).levels("pkd")


def test_a_teacher_that_fits_images_in_is_none_for_a_student_that_stretches_them() -> None:
    settings = YOLOv2Settings("tiny.cfg", TINY)
    model = detector_of(settings).build(settings, NUM_CLASSES)
    with pytest.raises(InputError, match=r"see images differently \(fits False and True\)"):
        pair_of(teacher_of(model, replace(settings, resize="letterbox")), model, settings)


def test_a_teacher_of_other_classes_is_not_judged_by_the_data_s() -> None:
    teacher = teacher_of(tiny())
    assert knows(teacher, CATEGORIES) and not knows(teacher, CATEGORIES[::-1])
    other = teacher._replace(categories=[(number + 1, name) for number, name in CATEGORIES])
    notes = distill(new_training(None, "pkd"), other, CATEGORIES, lambda images, instances: None)
    assert any("not judged" in note for note in notes)


REMOVED = """
pruners:
  filters: {class: L1RankedStructureParameterPruner, desired_sparsity: 0.5, group_type: Filters, weights: [%s]}
extensions:
  remover: {class: FilterRemover}
policies:
  - {pruner: {instance_name: filters}, epochs: [0]}
  - {extension: {instance_name: remover}, epochs: [1]}
"""


@pytest.mark.parametrize(
    ("weight", "is_refused"),
    [("extra_blocks.0.3.weight", True), ("extra_blocks.0.0.weight", False)],
    ids=["what makes a map", "what lies between two"],
)
def test_removers_of_a_maps_filters_are_refused_before_the_first_step(weight: str, is_refused: bool) -> None:
    settings = SSD300Settings(backbone="resnet18")
    model, larger = (detector_of(settings).build(settings, NUM_CLASSES) for _ in range(2))
    training = new_training(teacher_of(larger, settings), "pkd", model=model, detector=settings)
    schedule, before = read_schedule(REMOVED % weight, Path("prune.yaml")), hash_of(model)
    if is_refused:
        with pytest.raises(InputError, match="--compress: takes filters out of what makes the maps [^ ]+ of SSD300"):
            compress(training, schedule, 2)
    else:
        compress(training, schedule, 2)
    assert all(torch.equal(one, other) for one, other in zip(hash_of(model), before, strict=True))


def ssd300(backbone: str) -> tuple[Any, Any]:
    settings = SSD300Settings(backbone)
    torch.manual_seed(0)
    return settings, detector_of(settings).build(settings, 4)


def test_pairs_are_refused_by_what_they_lack() -> None:
    teacher = teacher_of(tiny(4, seed=1))
    other_classes = teacher_of(tiny(4, seed=1, num_classes=6))
    for method in ("gid", "crosskd"):
        with pytest.raises(InputError, match=r"\d+ x 4 of RetinaNet.* \(student\) and \d+ x 6 of .* \(teacher\)"):
            new_training(other_classes, method)
    losses(new_training(other_classes, "pkd"))
    with pytest.raises(InputError, match="was trained on other categories"):
        new_training(teacher._replace(categories=CATEGORIES[::-1]), "gid")
    settings, model = ssd300("resnet18")
    with pytest.raises(InputError, match=r"RetinaNet.* \(student\) and SSD300.* \(teacher\) see images differently"):
        new_training(teacher_of(model, settings), "pkd")
    with pytest.raises(InputError, match="pkd.levels=p2: RetinaNet-resnet18-FPN beside .* has p3, p4"):
        new_training(teacher, "pkd", distill_settings=("pkd.levels=p2",))


def test_a_two_stage_teacher_of_a_one_stage_student() -> None:
    """PKD resizes the student's P3 to the teacher's P2, by its lower weight; what needs anchors is refused."""
    settings = settings_of("fasterrcnn_resnet18_fpn", "none")

    class Backbone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.conv = torch.nn.Conv2d(3, 4, 4, stride=4)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            first = self.conv(images)
            pooled = {str(i): torch.nn.functional.max_pool2d(first, 2**i) for i in range(4)}
            return {**pooled, "pool": torch.nn.functional.max_pool2d(first, 16)}

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

    teacher = teacher_of(Model(), settings)
    two = losses(new_training(teacher, "pkd"))
    ten = losses(new_training(teacher, "pkd", distill_settings=("pkd.weight=10",)))
    torch.testing.assert_close(two["pkd"] / 6, ten["pkd"] / 10)
    with pytest.raises(InputError, match="which Faster R-CNN-resnet18-FPN does not show; pkd, cwd and mgd need none"):
        new_training(teacher, "gid")


@pytest.mark.parametrize(("student", "teacher", "projected"), [("resnet18", "resnet50", ["p3"])])
def test_ssd300_learns_from_a_larger_one(student: str, teacher: str, projected: list[str]) -> None:
    settings, model = ssd300(student)
    big_settings, big = ssd300(teacher)
    pair = pair_of(teacher_of(big, big_settings), model, settings)
    levels = pair.levels("pkd", first=4)
    assert levels == [(name, name) for name in ("p3", "p4", "p5", "p6")]
    channels = pair.channels(levels)
    assert [name for name, (own, other) in channels.items() if own != other] == projected
    assert [name for name, _ in pair.levels("cwd")] == ["p3", "p4", "p5", "p6", "p7"]  # p8 has a single cell
    assert pair.channels(pair.levels("mgd", ("p8",))) == {"p8": (128, 256)}
    pair.require_heads("gid")
    with pytest.raises(InputError, match="takes a head up in its middle, and SSD300-resnet18 has"):
        pair.require_tail("crosskd")


SMALL_RCNN = replace(settings_of("fasterrcnn_resnet18_fpn", "none"), short_sides_px=(96,), long_side_px=128)
TINY_YOLO = YOLOv2Settings("tiny.cfg", TINY)
STEPS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "SSD300-R18 from R50": (SSD300Settings("resnet18"), SSD300Settings("resnet50"), ("pkd", "cwd", "mgd", "gid")),
    "SSD300-R34 from R101": (SSD300Settings("resnet34"), SSD300Settings("resnet101"), ("pkd",)),
    "Faster R-CNN": (SMALL_RCNN, SMALL_RCNN, ("pkd", "cwd", "mgd")),
    "YOLOv2": (TINY_YOLO, TINY_YOLO, ("pkd", "cwd", "mgd")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_each_kind_of_student(name: str) -> None:
    settings, larger, methods = STEPS[name]
    record = detector_of(settings)
    torch.manual_seed(0)
    model, teacher = record.build(settings, NUM_CLASSES), detector_of(larger).build(larger, NUM_CLASSES)
    before = hash_of(teacher)
    training = new_training(teacher_of(teacher, larger), *methods, model=model, detector=settings)
    batch = record.synthetic(settings, NUM_CLASSES, torch.device("cpu"), 2)
    found = training.losses_of(build_forward(training), batch)
    terms = {name: value for name, value in found.items() if name.partition("_")[0] in methods}
    assert {name.partition("_")[0] for name in terms} == set(methods)
    assert all(value.isfinite() for value in found.values()) and all(value > 0 for value in terms.values()), terms
    sum(terms.values()).backward()  # type: ignore[union-attr]
    first = next(parameter for parameter in model.parameters() if parameter.dim() == 4)
    assert first.grad is not None and first.grad.abs().sum() > 0
    assert all(torch.equal(one, other) for one, other in zip(hash_of(teacher), before, strict=True))


def test_yolov2_shows_what_its_last_convolution_reads() -> None:
    settings = YOLOv2Settings("tiny.cfg", TINY)
    parts = detector_of(settings).distillation_parts(settings)
    assert parts is not None and parts.strides_px == {"last": 16.0}
    torch.manual_seed(0)
    model = detector_of(settings).build(settings, 3).eval()
    recorder = Recorder(parts.watched(model))
    images = torch.rand(2, 3, 64, 64)
    _, seen = Watched(model, recorder)(images)
    (features,) = parts.maps(parts.forward(model, images, False)).values()
    assert torch.equal(features, parts.maps(seen)["last"]) and features.shape[2:] == (4, 4)
    pair = pair_of(teacher_of(detector_of(settings).build(settings, 3), settings), model, settings)
    assert pair.levels("pkd", first=4) == [("last", "last")]


def test_what_is_seen_comes_out_of_one_compiled_graph() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.ReLU(inplace=True))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(images)).sum()

    model = Model()
    watched = Watched(model, Recorder({"before": model.first, "result": model}, frozenset({"before"})))
    compiled = torch.compile(watched, fullgraph=True, dynamic=False, backend="eager")
    images = torch.randn(5, 3)
    output, seen = compiled(images)
    assert torch.equal(seen["before"][0], model.first(images)) and torch.equal(seen["result"][0], output)
    assert (seen["before"][0] < 0).any()  # the ReLU writes over what is not a copy
    model(images)  # an evaluation is not recorded
    assert compiled(images)[1].keys() == {"before", "result"}
