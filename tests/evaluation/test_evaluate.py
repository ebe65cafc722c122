"""Judging: COCO metrics of hand-made results, parity with pycocotools on real annotations, and ids and pixels."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.annotations import Annotations
from pipelines.readers.coco import read_annotations
from ssd.batch import GroundTruth
from ssd.config import EVAL_ENGINES
from ssd.distributed import Ranks
from ssd.errors import InputError
from ssd.evaluation.coco import METRIC_NAMES, coco_metrics

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))

# Ids with gaps, not in order, and one that float32 cannot hold.
KITE, CAR, DOG = 90, 3, 17
FIRST, SECOND, THIRD = 70, 7, 2**40 + 1


def truth_of(*boxes: tuple[int, int, list[float]] | tuple[int, int, list[float], int]) -> GroundTruth:
    """Three images of 200 x 100, 400 x 300 and 50 x 60 pixels with these (image id, category id, xywh_px, crowd)."""
    ids, sizes_px = [FIRST, SECOND, THIRD], [(200, 100), (400, 300), (50, 60)]
    categories = {KITE: "kite", CAR: "car", DOG: "dog"}
    return GroundTruth(
        image_ids=np.array(ids),
        sizes_px=np.array(sizes_px, dtype=np.int32),
        category_ids=list(categories),
        category_names=list(categories.values()),
        dataset={
            "images": [{"id": i, "width": w, "height": h} for i, (w, h) in zip(ids, sizes_px, strict=True)],
            "categories": [{"id": id, "name": name} for id, name in categories.items()],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd[0] if crowd else 0,
                }
                for number, (image, category, box, *crowd) in enumerate(boxes, start=1)
            ],
        },
    )


def results_of(*rows: tuple[int, list[float], float, int]) -> np.ndarray:
    """(image id, xywh_px, score, category id) as `detect_split` returns them."""
    return np.array([[image, *box, score, category] for image, box, score, category in rows]).reshape(-1, 7)


def near(value: float) -> object:
    return pytest.approx(value, abs=1e-9)  # pycocotools divides by n + 2^-52


def equal(value: Any) -> object:
    return pytest.approx(value, rel=0, abs=1e-12)  # sums in another order


# Metrics by hand


def test_perfect_detections() -> None:
    # Areas 20 x 10 = 200 < 32^2, 50 x 50 = 2500, 100 x 100 > 96^2: small, medium and large.
    boxes = [(FIRST, KITE, [10.0, 10, 20, 10]), (SECOND, CAR, [0.5, 20, 50, 50]), (SECOND, CAR, [200.0, 100, 100, 100])]
    boxes += [(THIRD, KITE, [1.0, 2, 30, 30])]
    results = results_of(*[(image, box, 0.3 + 0.1 * i, category) for i, (image, category, box) in enumerate(boxes)])
    metrics = coco_metrics(truth_of(*boxes), results)
    assert set(metrics) == {*METRIC_NAMES, "per_class"}
    # One detection an image finds all kites, but one of two cars: recall (1 + 1/2) / 2.
    assert metrics.pop("AR1") == near(0.75)
    assert metrics.pop("per_class") == {"kite": near(1), "car": near(1), "dog": None}
    assert metrics == dict.fromkeys(metrics, near(1))


def test_half_the_objects_found() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]), (SECOND, CAR, [0.0, 0, 50, 50]))
    metrics = coco_metrics(truth, results_of((FIRST, [0, 0, 50, 50], 0.9, CAR)))
    # Precision is 1 at the 51 recalls 0, 0.01, ..., 0.5, of 101.
    assert metrics["AP"] == metrics["AP50"] == near(51 / 101)
    assert metrics["AR100"] == near(1 / 2)
    assert (metrics["APs"], metrics["APm"], metrics["APl"]) == (-1, near(51 / 101), -1)
    assert metrics["per_class"] == {"kite": None, "car": near(51 / 101), "dog": None}


def test_a_better_scored_false_positive_halves_precision() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]))
    right, wrong = (FIRST, [0, 0, 50, 50], 0.8, CAR), (SECOND, [0, 0, 50, 50], 0.9, CAR)
    assert coco_metrics(truth, results_of(wrong, right))["AP"] == near(1 / 2)
    # Below the right one it costs nothing: recall is complete before it.
    assert coco_metrics(truth, results_of((*wrong[:2], 0.7, CAR), right))["AP"] == near(1)


def test_iou_decides_at_ten_thresholds() -> None:
    truth = truth_of((SECOND, CAR, [0.0, 0, 100, 100]))
    # 100 x 78 of 100 x 100: IoU 0.78, more than 0.5, 0.55, 0.6, 0.65, 0.7 and 0.75.
    metrics = coco_metrics(truth, results_of((SECOND, [0, 0, 100, 78], 0.9, CAR)))
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"]) == (near(6 / 10), near(1), near(1))
    # IoU 0.58: 0.5 and 0.55.
    metrics = coco_metrics(truth, results_of((SECOND, [0, 0, 100, 58], 0.9, CAR)))
    assert (metrics["AP"], metrics["AP50"], metrics["AP75"]) == (near(2 / 10), near(1), 0)


def test_the_mean_goes_over_classes_with_ground_truth() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]), (FIRST, KITE, [60.0, 0, 50, 50]))
    found_car, dog_from_nowhere = (FIRST, [0, 0, 50, 50], 0.9, CAR), (FIRST, [0, 0, 50, 50], 0.9, DOG)
    metrics = coco_metrics(truth, results_of(found_car, dog_from_nowhere))
    assert metrics["per_class"] == {"kite": 0, "car": near(1), "dog": None}
    assert metrics["AP"] == near(1 / 2)


def test_a_category_is_not_mistaken_for_another() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]))
    assert coco_metrics(truth, results_of((FIRST, [0, 0, 50, 50], 0.9, KITE)))["AP"] == 0


def test_crowds_are_ignored() -> None:
    object_, crowd = (FIRST, CAR, [0.0, 0, 20, 20]), (FIRST, CAR, [100.0, 0, 100, 100])
    found_it, in_the_crowd = (FIRST, [0, 0, 20, 20], 0.8, CAR), (FIRST, [120, 10, 20, 20], 0.9, CAR)
    # In a crowd region a detection is neither right nor wrong, and a crowd need not be found.
    results = results_of(found_it, in_the_crowd)
    assert coco_metrics(truth_of(object_, (*crowd, 1)), results)["AP"] == near(1)
    # Without the region the better scored detection there is wrong; were it an object, it would be missed.
    assert coco_metrics(truth_of(object_), results)["AP"] == near(1 / 2)
    assert coco_metrics(truth_of(object_, (*crowd, 0)), results)["AP"] < 0.5


def test_a_class_of_crowds_alone_has_no_ground_truth() -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 20, 20]), (FIRST, KITE, [100.0, 0, 100, 100], 1))
    metrics = coco_metrics(truth, results_of((FIRST, [0, 0, 20, 20], 0.8, CAR)))
    assert metrics["per_class"] == {"kite": None, "car": near(1), "dog": None}


def test_no_results() -> None:
    metrics = coco_metrics(truth_of((FIRST, CAR, [0.0, 0, 50, 50])), results_of())
    assert (metrics["AP"], metrics["AP50"], metrics["AR100"]) == (0, 0, 0)
    assert metrics["per_class"] == {"kite": None, "car": 0, "dog": None}


def test_no_ground_truth() -> None:
    metrics = coco_metrics(truth_of(), results_of((FIRST, [0, 0, 20, 20], 0.8, CAR)))
    assert metrics["AP"] == -1
    assert metrics["per_class"] == {"kite": None, "car": None, "dog": None}


def test_judging_twice_gives_the_same_and_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]), (SECOND, KITE, [5.0, 5, 90, 80], 1), (THIRD, KITE, [0.0, 0, 9, 9]))
    results = results_of((FIRST, [2, 0, 50, 50], 0.9, CAR), (THIRD, [0, 0, 9, 8], 0.4, KITE))
    before = results.copy()
    metrics = coco_metrics(truth, results)
    assert 0 < metrics["AP"] < 1
    assert coco_metrics(truth, results) == metrics
    assert np.array_equal(results, before)
    assert capsys.readouterr().out == ""


# Parity with pycocotools


def jittered(split: Annotations, seed: int) -> np.ndarray:
    """Two jittered copies of each box: some right, some wrong, some at another class, in the place of crowds too."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([split.boxes_xywh_px] * 2)
    jitter = rng.normal(scale=0.1, size=boxes.shape) * boxes[:, [2, 3, 2, 3]]
    boxes = boxes + jitter * rng.uniform(size=(len(boxes), 1))
    images = np.concatenate([np.repeat(split.image_ids, np.diff(split.box_starts))] * 2)
    category_ids = split.ground_truth().category_ids
    categories = np.array(category_ids)[np.concatenate([split.labels - 1] * 2)]
    lost = rng.uniform(size=len(boxes)) < 0.1
    categories[lost] = rng.choice(category_ids, size=lost.sum())
    results = np.column_stack([images, boxes, rng.uniform(size=len(boxes)), categories])
    return results[rng.uniform(size=len(results)) < 0.8]


@pytest.mark.parametrize("engine", EVAL_ENGINES)
@pytest.mark.parametrize(
    ("data", "name"), [("coco256", "val2017"), ("bccd", "val"), ("demo", "val2017")], ids=["coco256", "bccd", "demo"]
)
def test_metrics_are_pycocotools_own_on_real_annotations(
    data: str, name: str, engine: str, request: pytest.FixtureRequest
) -> None:
    """Its usual way: COCO(file), loadRes(list), on the file that our reader never touched."""
    folder = request.getfixturevalue("demo_data" if data == "demo" else "shared_data")
    split = read_annotations(folder if data == "demo" else folder / data, name)
    truth = split.ground_truth()
    results = jittered(split, seed=1)

    with contextlib.redirect_stdout(io.StringIO()):
        file = COCO(str(split.file))
        found = file.loadRes(
            [
                {"image_id": int(image), "bbox": box, "score": score, "category_id": int(category)}
                for image, *box, score, category in results.tolist()
            ]
        )
        judge = COCOeval(file, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()

    metrics = coco_metrics(truth, results, engine)
    assert [metrics[name] for name in METRIC_NAMES] == equal(judge.stats.tolist())
    assert 0.1 < metrics["AP"] < 0.9
    if data == "coco256":
        assert metrics["APs"] > 0 and metrics["APm"] > 0 and metrics["APl"] > 0

    # Each class on its own: its AP is the AP of a judgement of that category alone.
    for category in (truth.category_ids[0], truth.category_ids[-1], truth.category_ids[len(truth.category_ids) // 2]):
        judge.params.catIds = [category]
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        alone = float(judge.stats[0])
        name = truth.category_names[truth.category_ids.index(category)]
        assert metrics["per_class"][name] == (near(alone) if alone > -1 else None)
    with_truth = [ap for ap in metrics["per_class"].values() if ap is not None]
    assert metrics["AP"] == near(sum(with_truth) / len(with_truth))


def hard_case(seed: int) -> tuple[GroundTruth, np.ndarray]:
    """Where judges could part: crowds, equal scores, boxes without area, equal IoUs and IoUs of exactly a threshold
    (all boxes lie on a grid), images without boxes or without detections, and hundreds of detections in others."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(2**33 + np.arange(12) * 7)
    category_ids = [40, 2, 77]

    def boxes_xywh_px(count: int) -> np.ndarray:
        return np.column_stack([rng.integers(0, 9, (count, 2)), rng.integers(1, 15, (count, 2))]) * 10.0

    with_objects, with_detections = image_ids[:9], image_ids[2:]  # the others stay empty
    columns = {
        "id": np.arange(60) + 1,
        "image_id": rng.choice(with_objects, 60),
        "category_id": rng.choice(category_ids[:2] if seed % 2 else category_ids, 60),
        "bbox": boxes_xywh_px(60),
        "area": rng.uniform(500, 15_000, 60),
        "iscrowd": (rng.uniform(size=60) < 0.2).astype(int),
    }
    about = rng.integers(60, size=300)
    about = about[np.isin(columns["image_id"][about], with_detections)]
    near_xywh_px = columns["bbox"][about] + 10 * rng.choice([-1, 0, 0, 0, 1], (len(about), 4))
    images = np.concatenate([columns["image_id"][about], rng.choice(with_detections[-4:], 2000)])
    categories = np.concatenate([columns["category_id"][about], rng.choice(category_ids, 2000)])
    scores = np.concatenate([rng.integers(3, 10, len(about)), rng.integers(1, 5, 2000)]) / 10
    results = np.column_stack([images, np.concatenate([near_xywh_px, boxes_xywh_px(2000)]), scores, categories])

    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    dataset = {
        "images": [{"id": id, "width": 230, "height": 230} for id in image_ids.tolist()],
        "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
        "categories": [{"id": id, "name": name} for id, name in zip(category_ids, "abc", strict=True)],
    }
    truth = GroundTruth(image_ids, np.full((12, 2), 230, dtype=np.int32), category_ids, list("abc"), dataset)
    return truth, results[rng.permutation(len(results))]


@pytest.mark.parametrize("seed", range(12))
def test_engines_agree_on_hard_cases(seed: int) -> None:
    truth, results = hard_case(seed)
    faster, reference = (coco_metrics(truth, results, engine) for engine in ("faster", "pycocotools"))
    assert [faster[name] for name in METRIC_NAMES] == equal([reference[name] for name in METRIC_NAMES])
    for name, ap in reference["per_class"].items():
        assert faster["per_class"][name] == (None if ap is None else equal(ap))
    assert (None in reference["per_class"].values()) == (seed % 2 == 1)
    assert 0.1 < reference["AP"] < reference["AP50"] < 0.9


def test_hard_cases_are_hard() -> None:
    """Each thing that they contain changes the metrics, so that an engine which treats it otherwise would differ."""
    truth, results = hard_case(0)
    metrics = coco_metrics(truth, results, "pycocotools")
    rng = np.random.default_rng(0)
    assert np.unique(results[:, [0, 6]], axis=0, return_counts=True)[1].max() > 100  # more than are looked at
    assert coco_metrics(truth, results[rng.permutation(len(results))], "pycocotools") != metrics  # equal scores
    no_crowds = [{**row, "iscrowd": 0} for row in truth.dataset["annotations"]]
    assert coco_metrics(truth._replace(dataset={**truth.dataset, "annotations": no_crowds}), results) != metrics


@pytest.mark.parametrize("engine", EVAL_ENGINES)
def test_results_for_what_the_split_does_not_have_are_refused(engine: str) -> None:
    truth = truth_of((FIRST, CAR, [0.0, 0, 50, 50]))
    known = (FIRST, [0, 0, 50, 50], 0.9, CAR)
    for image, category, named in ((71, CAR, "image id 71"), (FIRST, 4, "category id 4")):
        with pytest.raises(InputError, match=f"results name {named}, which the split does not have") as refusal:
            coco_metrics(truth, results_of(known, (image, [0, 0, 50, 50], 0.8, category)), engine)
        assert "\n" not in str(refusal.value)


# Detections of a split
