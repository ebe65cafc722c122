"""With --on-bad-image skip both data paths do without the images that cannot be used, and look at each only once."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dirty_data import (
    HEIGHT_PX,
    NAMES,
    WIDTH_PX,
    annotation_file,
    damaged,
    edit,
    jpeg_bomb,
    png_bomb,
    truncated,
    write_clean_data,
)
from runs import run_all, small_checkpoint
from square_view import VIEW

import main
import pipelines
from pipelines import check
from pipelines.readers import scan
from pipelines.readers.coco import read_annotations
from pipelines.readers.scan import read_usable
from pipelines.readers.splits import find_named
from ssd.distributed import Ranks
from ssd.errors import InputError

HERE = Ranks(0, 0, 1, torch.device("cpu"))
PATHS = ("dali", "no_dali")
GOOD = ["a.jpg", "g.jpg"]
LEFT_OUT = {
    "missing": ["b.jpg"],
    "truncated": ["c.jpg"],
    "unreadable": ["d.jpg"],
    "damaged": ["e.jpg"],
    "wrongly sized": ["f.jpg"],
    "oversized": ["h.jpg"],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_clean_data(tmp_path / "data")


def spoil(data: Path, split: str) -> None:
    """Leaves only the images of GOOD in order."""
    folder = data / split
    (folder / "b.jpg").unlink()
    (folder / "c.jpg").write_bytes(truncated(folder / "c.jpg"))
    (folder / "d.jpg").write_bytes(b"garbage")
    (folder / "e.jpg").write_bytes(damaged(folder / "e.jpg"))
    edit(data, lambda document: document["images"][5].update(width=WIDTH_PX + 8), split)
    (folder / "h.jpg").write_bytes(jpeg_bomb(folder / "h.jpg"))


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded for a verdict, as it happens."""
    names: list[str] = []
    inspect = scan.inspect

    def noted(path: Path) -> scan.Inspection:
        names.append(path.name)
        return inspect(path)

    monkeypatch.setattr(scan, "inspect", noted)
    return names


# --- what is left out ---


def test_all_kinds_of_bad_images_are_left_out_and_counted(data: Path) -> None:
    spoil(data, "train")
    usable = read_usable(find_named(data, "train"), HERE)
    assert usable.file_names == GOOD and usable.left_out == LEFT_OUT and usable.num_left_out == 6
    assert usable.image_ids.tolist() == [0, 6] and usable.annotation_ids.tolist() == [1, 2, 13, 14]
    assert usable.box_starts.tolist() == [0, 2, 4] and usable.sizes_px.tolist() == [[WIDTH_PX, HEIGHT_PX]] * 2
    assert usable.trainable_indices().tolist() == [0, 1]
    assert [row["image_id"] for row in usable.coco_dataset()["annotations"]] == [0, 0, 6, 6]
    assert "missing images left out: 1" in usable.repairs_text and "oversized images left out: 1" in usable.repairs_text


def test_a_clean_split_is_as_the_strict_reader_gives_it(data: Path) -> None:
    usable, strict = read_usable(find_named(data, "train"), HERE), read_annotations(data, "train")
    assert usable.left_out == {} and usable.repairs_text == ""
    assert usable.coco_dataset() == strict.coco_dataset() and usable.file_names == strict.file_names
    assert (usable.boxes_ltrb == strict.boxes_ltrb).all() and (usable.box_starts == strict.box_starts).all()


@pytest.mark.parametrize("name", PATHS)
def test_both_paths_run_over_what_is_left(name: str, data: Path) -> None:
    spoil(data, "train")
    spoil(data, "val")
    train, val = read_usable(find_named(data, "train"), HERE), read_usable(find_named(data, "val"), HERE)
    loader = pipelines.build_train(name, train, batch_size=2, num_workers=0, seed=1, ranks=HERE, view=VIEW)
    assert loader.steps_per_epoch == 1
    batches = loader.batches(0)
    for _ in range(4):
        assert next(batches).images.shape == (2, 3, 300, 300)
    judged = [
        batch.indices for batch in pipelines.build_eval(name, val, batch_size=2, num_workers=0, ranks=HERE, view=VIEW)
    ]
    assert torch.cat(judged).tolist() == [0, 1]


def test_wrong_annotations_are_refused_as_ever(data: Path) -> None:
    edit(data, lambda document: document["annotations"][0].update(category_id=99))
    (data / "train" / "b.jpg").unlink()
    with pytest.raises(InputError, match="no category has that id"):
        read_usable(find_named(data, "train"), HERE)


def test_nothing_left_is_refused(data: Path) -> None:
    for name in NAMES:
        (data / "train" / name).write_bytes(b"garbage")
    with pytest.raises(InputError, match=r"instances_train.json: none of its images can be used"):
        read_usable(find_named(data, "train"), HERE)
    for name in NAMES:
        (data / "val" / name).unlink()
    with pytest.raises(InputError, match="image 'a.jpg' and 7 more not found"):
        read_usable(find_named(data, "val"), HERE)


# --- ranks ---


def test_other_ranks_leave_out_what_rank_0_found(
    data: Path, monkeypatch: pytest.MonkeyPatch, inspected: list[str]
) -> None:
    spoil(data, "train")
    sent = {name: flaw for flaw, names in LEFT_OUT.items() for name in names}
    monkeypatch.setattr(scan, "broadcast_object", lambda value, ranks: sent)
    monkeypatch.setattr(scan, "read_once_a_host", lambda read, ranks: read())
    elsewhere = Ranks(1, 1, 2, torch.device("cpu"))
    usable = read_usable(find_named(data, "train"), elsewhere)
    assert usable.file_names == GOOD and usable.left_out == LEFT_OUT
    assert inspected == []

    # An image that rank 0's host lacks is left out here as well.
    sent["g.jpg"] = "missing"
    assert read_usable(find_named(data, "train"), elsewhere).file_names == ["a.jpg"]
    # One that only this host lacks would make the ranks' data differ.
    del sent["b.jpg"]
    with pytest.raises(InputError, match=r"b.jpg: missing on this host"):
        read_usable(find_named(data, "train"), elsewhere)


# --- the verdicts that are kept ---


def test_images_are_looked_at_once(data: Path, inspected: list[str]) -> None:
    spoil(data, "train")
    first = read_usable(find_named(data, "train"), HERE)
    assert sorted(inspected) == [name for name in NAMES if name != "b.jpg"]
    inspected.clear()
    again = read_usable(find_named(data, "train"), HERE)
    assert inspected == [] and again.left_out == first.left_out and again.file_names == GOOD


def test_a_file_that_changes_is_looked_at_again(data: Path, inspected: list[str]) -> None:
    spoil(data, "train")
    read_usable(find_named(data, "train"), HERE)
    inspected.clear()
    shutil.copy(data / "val" / "d.jpg", data / "train" / "d.jpg")  # mended
    shutil.copy(data / "val" / "b.jpg", data / "train" / "b.jpg")  # fetched
    (data / "train" / "a.jpg").write_bytes(b"garbage")  # spoilt
    assert read_usable(find_named(data, "train"), HERE).file_names == ["b.jpg", "d.jpg", "g.jpg"]
    assert sorted(inspected) == ["a.jpg", "b.jpg", "d.jpg"]


def test_a_corrected_size_needs_no_look(data: Path, inspected: list[str]) -> None:
    spoil(data, "train")
    read_usable(find_named(data, "train"), HERE)
    inspected.clear()
    edit(data, lambda document: document["images"][5].update(width=WIDTH_PX))
    assert read_usable(find_named(data, "train"), HERE).file_names == ["a.jpg", "f.jpg", "g.jpg"] and inspected == []


def test_the_check_looks_for_the_run(data: Path, inspected: list[str]) -> None:
    spoil(data, "train")
    check.check(find_named(data, "train"), find_named(data, "val"), 1)
    assert len(inspected) == 15
    inspected.clear()
    assert read_usable(find_named(data, "train"), HERE).left_out == LEFT_OUT and inspected == []


def test_verdicts_are_kept_outside_the_data(data: Path, cache: Path) -> None:
    before = sorted(data.rglob("*"))
    read_usable(find_named(data, "train"), HERE)
    assert sorted(data.rglob("*")) == before
    (file,) = cache.rglob("*.json")
    assert file == scan.verdicts_file(data / "train") != scan.verdicts_file(data / "val")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"judge": 1}', "holds"])
def test_verdicts_that_are_broken_or_of_another_judge_cost_a_scan(
    content: str, data: Path, inspected: list[str]
) -> None:
    read_usable(find_named(data, "train"), HERE)
    file = scan.verdicts_file(data / "train")
    if content == "holds":
        kept = json.loads(file.read_text())
        kept["judge"]["pillow"] = "1.0"
        content = json.dumps(kept)
    file.write_text(content)
    inspected.clear()
    assert read_usable(find_named(data, "train"), HERE).file_names == NAMES
    assert sorted(inspected) == NAMES
    inspected.clear()
    read_usable(find_named(data, "train"), HERE)
    assert inspected == []


def test_without_a_place_for_verdicts_every_run_scans(
    data: Path, cache: Path, inspected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert read_usable(find_named(data, "train"), HERE).file_names == NAMES
    assert len(inspected) == 16 and capfd.readouterr().err.count("warning: ") == 2


def test_a_user_without_a_home_has_verdicts_too(
    data: Path, cache: Path, inspected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(cache))
    for _ in range(2):
        assert read_usable(find_named(data, "train"), HERE).file_names == NAMES
    assert len(inspected) == 8


# --- decompression bombs, refused before they are decoded ---


@pytest.mark.parametrize("bomb", ["JPEG", "PNG"])
@pytest.mark.parametrize("name", PATHS)
def test_bombs_are_refused_before_decoding(bomb: str, name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*arguments: object, **options: object) -> None:
        pytest.fail("the bomb was decoded")

    file = data / "val" / "c.jpg"
    file.write_bytes(jpeg_bomb(file) if bomb == "JPEG" else png_bomb())
    for name_of_decoder in ("simplejpeg.decode_jpeg", "PIL.ImageFile.ImageFile.load"):
        monkeypatch.setattr(name_of_decoder, decoded)
    edit(data, lambda document: document.update(images=document["images"][2:3], annotations=[]), "val")
    val = read_annotations(data, "val")
    with pytest.raises(InputError, match=r"c.jpg: cannot be read as an image \(Image size .* exceeds limit"):
        list(pipelines.build_eval(name, val, batch_size=2, num_workers=0, ranks=HERE, view=VIEW))


# --- the command line ---


@pytest.mark.slow
@pytest.mark.parametrize("data_pipeline", PATHS)
def test_a_run_over_bad_images(
    data_pipeline: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(data, "train")
    spoil(data, "val")
    splits = ["--train-split", "train", "--val-split", "val"]
    flags = ["--data", str(data), *splits, "--data_pipeline", data_pipeline, "--device", "cpu", "--num-workers", "1"]
    output = tmp_path / "run"
    model = ["--checkpoint", str(small_checkpoint()), *"--epochs 1 --bs 2 --seed 1 --no-plots".split()]
    assert main.main([*flags, *model, "--output", str(output)]) == 2
    capfd.readouterr()
    assert main.main([*flags, *model, "--output", str(output), "--on-bad-image", "skip"]) == 0
    told = capfd.readouterr().out
    for split in ("train", "val"):
        assert f"warning: {annotation_file(data, split)}: missing images left out: 1, truncated images left out" in told
    judged = f"warning: {annotation_file(data, 'val')}: the metrics are those of 2 of its 8 images"
    assert judged in told

    events = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    left_out = [event for event in events if event["event"] == "images_left_out"]
    assert [(event["images"], event["left_out"]) for event in left_out] == [(2, LEFT_OUT)] * 2
    results = json.loads((output / "results.json").read_text())
    assert results["val_images"] == 2 and results["val_images_left_out"] == 6
    assert json.loads((output / "config.json").read_text())["settings"]["on_bad_image"] == "skip"

    json_file = tmp_path / "metrics.json"
    checkpoint = ["--checkpoint", str(output / "checkpoints" / "last.pt"), "--json", str(json_file)]
    checkpoint += ["--score-threshold", "0"]  # it has learned nothing, and an evaluation that finds nothing is refused
    evaluate = ["evaluate", "--data", str(data), "--val-split", "val", *flags[6:], *checkpoint]
    assert main.main(evaluate) == 2
    capfd.readouterr()
    assert main.main([*evaluate, "--on-bad-image", "skip"]) == 0
    assert judged in capfd.readouterr().err
    metrics = json.loads(json_file.read_text())
    assert metrics["images"] == 2 and metrics["images_left_out"] == 6


@pytest.mark.slow
def test_two_ranks_leave_out_the_same(data: Path, tmp_path: Path) -> None:
    spoil(data, "train")
    spoil(data, "val")
    output = tmp_path / "run"
    flags = ["--data", str(data), "--train-split", "train", "--val-split", "val", "--data_pipeline", "no_dali"]
    model = ["--device", "cpu", "--num-workers", "0", "--checkpoint", small_checkpoint()]
    options = ["--output", str(output), "--on-bad-image", "skip", "--epochs", "1", "--bs", "2", "--no-plots"]
    assert run_all([[*flags, *model, *options]], 2).count("the metrics are those of 2 of its 8 images") == 1
    assert json.loads((output / "results.json").read_text())["val_images_left_out"] == 6
