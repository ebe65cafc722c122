"""The contract of the loaders, for both data paths: what comes out, in which order, and where it goes on."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from square_view import VIEW

import pipelines
from pipelines import augmentation
from pipelines.annotations import Annotations
from pipelines.demo.data_set import write_demo_data
from pipelines.readers.coco import read_annotations
from ssd import matching
from ssd.batch import MatchedBatch
from ssd.config import DATA_PIPELINES
from ssd.detectors.ssd300 import anchors
from ssd.detectors.ssd300.anchors import IMAGE_SIZE_PX
from ssd.distributed import Ranks
from ssd.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(params=DATA_PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return request.param


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data") / "demo", train_images=26, val_images=7)


@pytest.fixture(scope="module")
def split(data: Path) -> Annotations:
    return read_annotations(data, "train2017")


def _train(
    name: str, split: Annotations, rank: int = 0, ranks: int = 1, seed: int = 3, workers: int = 0, batch: int = 4
):
    return pipelines.build_train(
        name, split, batch_size=batch, num_workers=workers, seed=seed, ranks=Ranks(rank, rank, ranks, CPU), view=VIEW
    )


def _equal(a: list[MatchedBatch], b: list[MatchedBatch]) -> bool:
    return all(torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


def test_batches_are_finished(name: str, split: Annotations) -> None:
    (batch,) = islice(_train(name, split).batches(0), 1)
    assert batch.images.shape == (4, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    # ImageNet's normalisation maps [0, 255] into [-2.12, 2.64].
    assert -2.13 < batch.images.min().item() < 0 < batch.images.max().item() < 2.65
    assert (batch.offsets.shape, batch.offsets.dtype) == ((4, anchors.NUM_BOXES, 4), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, anchors.NUM_BOXES), torch.int64)
    assert (batch.labels > 0).any(dim=1).all(), "every image has a box, and every box a default box"
    assert batch.labels.max().item() < split.num_classes
    assert not batch.offsets[batch.labels == 0].any()
    boxes_ltrb = matching.decode(batch.offsets, anchors.default_boxes_cxcywh())[batch.labels > 0]
    assert boxes_ltrb.min().item() > -1e-5 and boxes_ltrb.max().item() < 1 + 1e-5


def test_equal_seeds_give_equal_batches_and_others_do_not(name: str, split: Annotations) -> None:
    first, again, other = (list(islice(_train(name, split, seed=s).batches(0), 8)) for s in (3, 3, 4))
    assert _equal(first, again)
    assert not torch.equal(first[0].images, other[0].images)


def test_workers_change_nothing(name: str, split: Annotations) -> None:
    one, two = (list(islice(_train(name, split, workers=workers).batches(0), 8)) for workers in (1, 2))
    assert _equal(one, two)


@pytest.mark.parametrize("stop", [3, 6, 7])
def test_goes_on_where_it_was(name: str, split: Annotations, stop: int) -> None:
    """Within an epoch, at its end (after 6 of 6 steps) and in the next one."""
    whole = list(islice(_train(name, split).batches(0), 14))
    before = _train(name, split)
    batches = before.batches(0)
    assert _equal(list(islice(batches, stop)), whole[:stop])
    after = _train(name, split)
    after.restore(before.state())
    assert _equal(list(islice(after.batches(stop), 14 - stop)), whole[stop:])


def test_going_on_without_a_state_does_not_repeat_the_beginning(name: str, split: Annotations) -> None:
    loader = _train(name, split)
    (first,) = islice(loader.batches(0), 1)
    (later,) = islice(_train(name, split).batches(loader.steps_per_epoch), 1)
    assert not torch.equal(first.images, later.images)


@pytest.fixture
def numbered(tmp_path: Path) -> Annotations:
    """25 images whose one box tells which image it is: its left edge is at (number + 1) / 32 of the width."""
    import json

    from PIL import Image

    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
    (tmp_path / "annotations").mkdir()
    images, boxes = [], []
    for number in range(25):
        images.append({"id": 1000 + number, "file_name": f"{number}.jpg", "width": 320, "height": 320})
        left = 10 * (number + 1)
        boxes.append(
            {"id": number + 1, "image_id": 1000 + number, "category_id": 7, "bbox": [left, 10, 318 - left, 300]}
        )
        Image.new("RGB", (320, 320), (8 * number, 255 - 8 * number, 128)).save(tmp_path / "train2017" / f"{number}.jpg")
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "thing"}]}
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return read_annotations(tmp_path, "train2017")


@pytest.fixture
def only_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "CROP_SIDE", (1.0, 1.0))
    monkeypatch.setattr(augmentation, "FLIP_PROBABILITY", 0.0)


def _numbers(batch: MatchedBatch) -> list[int]:
    boxes_ltrb = matching.decode(batch.offsets, anchors.default_boxes_cxcywh())
    return [
        round(boxes[labels > 0][0, 0].item() * 32) - 1 for boxes, labels in zip(boxes_ltrb, batch.labels, strict=True)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_passes_take_every_image_once_in_a_new_order(
    name: str, numbered: Annotations, only_whole_images: None, world_size: int
) -> None:
    loaders = [_train(name, numbered, rank, world_size) for rank in range(world_size)]
    # ceil(25 / (4 x ranks)): 7, 4, 3
    assert {loader.steps_per_epoch for loader in loaders} == {-(-25 // (4 * world_size))}
    steps = 25  # so that the ranks take 4 x ranks whole passes of 25 images
    taken = [[n for batch in islice(loader.batches(0), steps) for n in _numbers(batch)] for loader in loaders]

    share = 25 // world_size
    first_pass = [number for numbers in taken for number in numbers[:share]]
    assert len(set(first_pass)) == len(first_pass), "no image twice in the first pass, on no rank"
    assert first_pass != sorted(first_pass), "the first pass is shuffled too"
    assert taken[0][:share] != taken[0][share : 2 * share]
    # Where the ranks cannot divide 25, DALI's shards take turns at being the larger one, and passes overlap a little.
    tolerance = 0 if name == "no_dali" or world_size == 1 else 2
    counts = np.bincount([number for numbers in taken for number in numbers], minlength=25)
    assert np.abs(counts - 4 * world_size).max() <= tolerance


def test_images_without_a_box_to_learn_do_not_train(name: str, split: Annotations) -> None:
    assert 0 < len(split.trainable_indices()) < len(split)
    assert _train(name, split).steps_per_epoch == -(-len(split.trainable_indices()) // 4)


def test_the_smallest_images_train(name: str, tmp_path: Path) -> None:
    """Whatever their crop, but for those with a crop without a pixel, over which DALI's decoder dies."""
    sizes_px = {1: (4, 4), 2: (2, 2), 3: (4, 300), 4: (3, 300), 5: (40, 40)}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for id, size_px in sizes_px.items():
        Image.new("RGB", size_px, "red").save(tmp_path / "train" / f"{id}.jpg")
    rows = [(id, width, height) for id, (width, height) in sizes_px.items()]
    document = {
        "images": [{"id": id, "file_name": f"{id}.jpg", "width": w, "height": h} for id, w, h in rows],
        "annotations": [{"id": id, "image_id": id, "category_id": 1, "bbox": [0, 0, w, h]} for id, w, h in rows],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(document))
    loader = _train(name, read_annotations(tmp_path, "train"), batch=3)
    assert loader.steps_per_epoch == 1
    seen = [id for batch in islice(loader.batches(0), 50) for id in batch.image_ids.tolist()]
    assert {id: seen.count(id) for id in set(seen)} == {1: 50, 3: 50, 5: 50}


def test_a_split_without_boxes_is_refused(name: str, numbered: Annotations, tmp_path: Path) -> None:
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(
        file.read_text().replace('"iscrowd": 0', "").replace('"category_id": 7', '"category_id": 7, "iscrowd": 1')
    )
    with pytest.raises(InputError, match="nothing to learn from: of .* are crowd regions"):
        _train(name, read_annotations(tmp_path, "train2017"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_exactly_once(name: str, split: Annotations, world_size: int) -> None:
    loaders = [
        pipelines.build_eval(
            name, split, batch_size=4, num_workers=0, ranks=Ranks(rank, rank, world_size, CPU), view=VIEW
        )
        for rank in range(world_size)
    ]
    for _ in range(2):
        epoch = [list(loader) for loader in loaders]
        indices = torch.cat([batch.indices for batches in epoch for batch in batches])
        assert sorted(indices.tolist()) == list(range(len(split)))
        assert all(len(batch.images) == len(batch.indices) > 0 for batches in epoch for batch in batches)


def test_evaluation_images_of_the_two_paths_agree(demo_or_real_data: Path) -> None:
    """At most 1/255 of the range apart on average, in any image: decoders are equal, resizers round differently."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    split = read_annotations(demo_or_real_data, "val2017")
    images: dict[str, dict[int, torch.Tensor]] = {}
    for name in DATA_PIPELINES:
        loader = pipelines.build_eval(name, split, batch_size=16, num_workers=1, ranks=Ranks(0, 0, 1, CPU), view=VIEW)
        images[name] = {
            int(i): image.clone() for batch in loader for i, image in zip(batch.indices, batch.images, strict=True)
        }
    std = torch.tensor(augmentation.RGB_STD).view(3, 1, 1)
    worst = max(((images["dali"][i] - images["no_dali"][i]) * std).abs().mean().item() for i in range(len(split)))
    assert worst < 1 / 255


def test_targets_are_those_of_encode(name: str, numbered: Annotations, only_whole_images: None) -> None:
    """The image tells its box, and `encode` of that box is the batch's target."""
    (batch,) = islice(_train(name, numbered).batches(0), 1)
    for number, offsets, labels in zip(_numbers(batch), batch.offsets, batch.labels, strict=True):
        row = numbered.boxes_of(number)
        expected_offsets, expected_labels = matching.encode(
            torch.from_numpy(numbered.boxes_ltrb[row]),
            torch.from_numpy(numbered.labels[row]),
            VIEW.defaults_cxcywh,
        )
        assert torch.equal(labels, expected_labels)
        torch.testing.assert_close(offsets, expected_offsets, atol=2e-5, rtol=1e-5)


def test_batches_name_their_images(name: str, numbered: Annotations, only_whole_images: None) -> None:
    for batch in islice(_train(name, numbered).batches(0), 7):
        assert batch.image_ids.tolist() == [1000 + number for number in _numbers(batch)]
        assert batch.image_ids.dtype == torch.int64


def test_goes_on_after_going_on_without_a_state(name: str, split: Annotations) -> None:
    """A run that had to begin its data anew (on other ranks, say) and is interrupted again goes on with that data."""
    anew = _train(name, split)
    batches = anew.batches(6)
    taken = list(islice(batches, 3))
    state = anew.state()
    rest = list(islice(batches, 4))
    again = _train(name, split)
    again.restore(state)
    assert _equal(list(islice(again.batches(9), 4)), rest)
    assert not torch.equal(taken[0].images, rest[0].images)


def test_a_state_from_before_the_first_batch_is_the_one_that_was_restored(name: str, split: Annotations) -> None:
    assert _train(name, split).state() == b""
    before = _train(name, split)
    batches = before.batches(0)
    next(batches)
    after, again, anew = (_train(name, split) for _ in range(3))
    after.restore(before.state())
    again.restore(after.state())
    assert _equal(list(islice(again.batches(1), 2)), list(islice(batches, 2)))
    anew.restore(b"")
    assert _equal(list(islice(anew.batches(6), 1)), list(islice(_train(name, split).batches(6), 1)))


@pytest.mark.parametrize(("ranks", "new_ranks"), [(1, 2), (2, 1), (2, 3)])
def test_the_torch_path_goes_on_with_the_same_images_on_other_ranks(
    numbered: Annotations, ranks: int, new_ranks: int
) -> None:
    """No image of a pass twice, none left out: after three steps on some ranks, the rest of two passes on others."""
    loaders = [_train("no_dali", numbered, rank, ranks, batch=2) for rank in range(ranks)]
    taken = [i for loader in loaders for batch in islice(loader.batches(0), 3) for i in batch.image_ids.tolist()]
    state, seen = loaders[-1].state(), len(taken)
    for rank in range(new_ranks):
        loader = _train("no_dali", numbered, rank, new_ranks, batch=2)
        loader.restore(state)
        share = range(rank * 2 + seen, 50, 2 * new_ranks)  # the places at which this rank's batches begin
        for first, batch in zip(share, loader.batches(99), strict=False):
            taken += batch.image_ids.tolist()[: 50 - first]
    assert sorted(taken) == sorted([*range(1000, 1025)] * 2)
    assert sorted(taken[:25]) != taken[:25]


def test_dalis_identity_is_that_of_its_graph(split: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the data, the seed, the batch and the ranks; a constant of the augmentation is part of it."""
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    first, other = _train("dali", split), _train("dali", split, rank=1, ranks=2, seed=9, workers=2, batch=2)
    assert first.identity == other.identity and first.identity["dali"] == dali.__version__
    assert len(first.identity["graph"]) == 16
    monkeypatch.setattr(augmentation, "FLIP_PROBABILITY", 0.25)
    assert _train("dali", split).identity["graph"] != first.identity["graph"]


def test_fingerprints_tell_splits_apart(split: Annotations, numbered: Annotations) -> None:
    def changed(**fields: object) -> str:
        return replace(split, **fields).fingerprint()

    boxes_ltrb = split.boxes_ltrb.copy()
    boxes_ltrb[-1, -1] = np.nextafter(boxes_ltrb[-1, -1], np.float32(0))
    prints = {
        split.fingerprint(),
        numbered.fingerprint(),
        changed(boxes_ltrb=boxes_ltrb),
        changed(labels=split.labels[::-1].copy()),
        changed(file_names=[*split.file_names[:-1], "other.jpg"]),
        changed(is_crowd=~split.is_crowd),
    }
    assert len(prints) == 6
    again = read_annotations(split.image_folder.parent, "train2017")
    assert again.fingerprint() == split.fingerprint()


def test_an_image_of_another_size_than_stated_is_refused(name: str, numbered: Annotations, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (160, 320)).save(tmp_path / "train2017" / "3.jpg")
    with pytest.raises(InputError, match=r"3\.jpg: is 160 x 320 pixels, but .* says 320 x 320"):
        list(islice(_train(name, numbered).batches(0), 14))


def test_flip_turns_pixels_and_boxes_alike(name: str, numbered: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    """With flips alone, half of the boxes begin where they did and half end where 1 - left is; the pixels go along."""
    from PIL import Image

    for file in numbered.image_folder.iterdir():
        number = int(file.stem)
        image = Image.new("RGB", (320, 320), "black")
        image.paste("white", (10 * (number + 1), 10, 318, 310))  # the box
        image.save(file, quality=95)
    monkeypatch.setattr(augmentation, "CROP_SIDE", (1.0, 1.0))
    boxes_seen = set()
    for batch in islice(_train(name, numbered).batches(0), 7):
        boxes_ltrb = matching.decode(batch.offsets, anchors.default_boxes_cxcywh())
        for image, boxes, labels in zip(batch.images, boxes_ltrb, batch.labels, strict=True):
            left, _, right, _ = (boxes[labels > 0][0] * IMAGE_SIZE_PX).tolist()
            row = image.sum(dim=0)[IMAGE_SIZE_PX // 2]
            bright = (row > (row.min() + row.max()) / 2).nonzero().squeeze(1)
            assert abs(bright[0].item() - left) < 2 and abs(bright[-1].item() + 1 - right) < 2
            boxes_seen.add("flipped" if left < 5 else "not")
    assert boxes_seen == {"flipped", "not"}
