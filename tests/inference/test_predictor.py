"""The Python API and main.py predict: the evaluation's detections, of images as users have them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from square_view import VIEW

import main
import ssd
from ssd.cli.splits import read_split
from ssd.config import Config
from ssd.errors import InputError
from ssd.inference.drawn import draw_detections
from ssd.inference.predictor import ImageDetections, Predictor
from ssd.pictures.drawing import class_colour

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="module")
def detector(demo_checkpoint: Path) -> Predictor:
    return ssd.load(demo_checkpoint, device="cpu", score=0.3)


def test_importing_ssd_is_light() -> None:
    code = "import ssd, sys; assert callable(ssd.load); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL"}.isdisjoint(loaded.stdout.split())


def test_any_kind_of_image_gives_the_same(detector: Predictor, demo_data: Path) -> None:
    file = sorted((demo_data / "val2017").iterdir())[0]
    pixels = np.array(Image.open(file))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [file, str(file), Image.open(file), pixels, planes, planes / 255]
    one = detector(file)[0]
    assert len(one.scores) > 0 and one.scores.diff().max() <= 0 and one.scores.min() > 0.3
    assert one.boxes_ltrb_px.shape == (len(one.scores), 4)
    size_px = torch.tensor([pixels.shape[1], pixels.shape[0]]).repeat(2)
    assert one.boxes_ltrb_px.min() >= 0 and (one.boxes_ltrb_px <= size_px).all()
    assert (one.boxes_ltrb_px.amax(dim=0) > 300).any()  # pixels, and not of the model's 300
    names = [name for _, name in detector.categories]
    assert one.names == [names[label - 1] for label in one.labels.tolist()]
    for found in [*detector(kinds, batch_size=4), *detector(planes[None]), *detector(pixels[None])]:
        assert torch.equal(found.labels, one.labels)
        # Sums come in another order in batches of another size.
        torch.testing.assert_close(found.boxes_ltrb_px, one.boxes_ltrb_px, rtol=0, atol=0.01)
        torch.testing.assert_close(found.scores, one.scores, rtol=0, atol=1e-5)


def test_no_images_and_bad_ones(detector: Predictor, tmp_path: Path) -> None:
    assert detector([]) == []
    with pytest.raises(InputError, match=r"missing\.jpg: .*No such file"):
        detector([tmp_path / "missing.jpg"])
    with pytest.raises(InputError, match="no such file"):
        ssd.load(tmp_path / "missing.pt")


def test_predict_finds_what_evaluate_finds(demo_checkpoint: Path, demo_data: Path, tmp_path: Path) -> None:
    import pipelines
    from ssd.distributed import Ranks
    from ssd.evaluation.detect import detect_split

    config = Config(data=str(demo_data), score_threshold=0.2, device="cpu")
    split, here = read_split(config, "val"), Ranks(0, 0, 1, torch.device("cpu"))
    loader = pipelines.build_eval("no_dali", split, batch_size=8, num_workers=0, ranks=here, view=VIEW)
    model = ssd.load(demo_checkpoint, device="cpu")._model
    results = detect_split(model, loader, split.ground_truth(), config, here)
    assert results is not None and len(results) > 50
    expected = results.rows

    command = ["predict", "--checkpoint", str(demo_checkpoint), str(demo_data / "val2017"), "--score", "0.2"]
    assert main.main([*command, "--device", "cpu", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "detections.json").read_text())
    columns = ("image_id", "bbox", "score", "category_id")
    found = np.array([np.hstack([row[column] for column in columns]) for row in results])
    order = [np.lexsort((rows[:, 5], rows[:, 0])) for rows in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], rtol=0, atol=1e-3)
    assert len(list(csv.reader((tmp_path / "detections.csv").open()))) == 1 + len(expected)
    assert {file.name for file in tmp_path.glob("*.jpg")} == {file.name for file in (demo_data / "val2017").iterdir()}


def run(checkpoint: Path, output: Path, *sources: Path | str) -> int:
    flags = ["--checkpoint", str(checkpoint), "--output", str(output), "--device", "cpu", "--batch-size", "2"]
    return main.main(["predict", *flags, *map(str, sources)])


def test_bad_files_are_skipped_and_named(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    (photos / "below").mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(photos / "a.png")
    Image.new("CMYK", (900, 20)).save(photos / "below" / "a.jpg")
    (photos / "bad.jpg").write_bytes(b"\xff\xd8")
    (photos / "notes.txt").write_text("of no interest")
    assert run(demo_checkpoint, output, photos) == 1
    said = capsys.readouterr()
    assert said.err.strip().startswith(f"skipped: {photos / 'bad.jpg'}: ") and said.err.strip().count("\n") == 0
    assert said.out.startswith("2 images, 1 skipped; ")
    assert {file.name for file in output.glob("*.jpg")} == {"a.jpg", "a-2.jpg"}
    assert {row["image_id"] for row in json.loads((output / "detections.json").read_text())} <= {1, 2, 3}
    assert run(demo_checkpoint, output, photos / "bad.jpg") == 2
    assert "none of 1 files" in capsys.readouterr().err
    assert run(demo_checkpoint, output, f"{photos}/*/*.jpg", photos / "below" / "a.jpg") == 0
    assert capsys.readouterr().out.startswith("1 image; ")


def test_sources_that_give_nothing_are_refused(demo_checkpoint: Path, tmp_path: Path, refusal) -> None:
    flags = ["predict", "--checkpoint", demo_checkpoint, "--output", tmp_path / "out"]
    for source, why in (
        (tmp_path, "no image is there"),
        (tmp_path / "missing.jpg", "no such file or folder"),
        (f"{tmp_path}/*.jpg", "no file has such a name"),
    ):
        assert f"{source}: {why}" in refusal(*flags, source)
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert "is of --output" in refusal(*flags[:3], "--output", tmp_path, tmp_path / "a.png")
    assert "is of --output" in refusal(*flags[:3], "--output", tmp_path, f"{tmp_path}/*.png")
    assert "not a checkpoint" in refusal("predict", "--checkpoint", tmp_path / "a.png", tmp_path / "a.png")


# Drawing


@pytest.mark.parametrize("size_px", [(1, 1), (40, 30), (640, 480), (4000, 3000), (2000, 3)], ids=str)
def test_drawing_fits_any_size(size_px: tuple[int, int]) -> None:
    width, height = size_px
    boxes = torch.tensor([[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2], [width, 0, width, 0]])
    detections = ImageDetections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 2, 1]), ["cat", "ß Ä", "cat"])
    picture = Image.new("RGB", size_px, "gray")
    drawn = draw_detections(picture, detections)
    assert max(drawn.size) >= 480 and drawn.width * height == drawn.height * width
    assert picture.getextrema() == ((128, 128),) * 3  # not the caller's own
    colours = {colour for _, colour in drawn.getcolors(maxcolors=1 << 24)}
    assert ImageColor.getrgb(class_colour(1)) in colours


def test_each_class_has_a_colour_of_its_own() -> None:
    colours = [class_colour(label) for label in range(1, 91)]
    assert len(set(colours)) == 90


def test_contents_open_files_and_generators(detector: Predictor, demo_data: Path) -> None:
    file = sorted((demo_data / "val2017").iterdir())[0]
    (expected,) = detector(file)
    with file.open("rb") as stream:
        for found in (detector(file.read_bytes()), detector(stream), detector(each for each in [file])):
            assert torch.equal(found[0].boxes_ltrb_px, expected.boxes_ltrb_px)
    with pytest.raises(InputError, match="the image of 3 bytes: no JPEG"):
        detector(b"abc")
    with file.open(encoding="latin-1") as text, pytest.raises(TypeError, match="open it with 'rb'"):
        detector(text)
    with pytest.raises(TypeError, match="^not an image: int; pass a path, bytes, .* or several of them$"):
        detector(7)


def test_a_picture_that_cannot_be_drawn_costs_that_picture_only(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (66_000, 8)).save(photos / "panorama.png")
    (photos / "._good.jpg").write_bytes(b"\0\5\x16\7")  # macOS's, beside each file on a foreign disk
    Image.new("RGB", (40, 30)).save(os.fsencode(photos) + b"/caf\xe9.png", "PNG")
    flags = ["--checkpoint", str(demo_checkpoint), "--device", "cpu", "--score", "0", "--output", str(output)]
    assert main.main(["predict", *flags, str(photos)]) == 1
    said = capsys.readouterr().err
    assert said.count("not drawn: ") == said.count("\n") == 1 and "panorama.png: 66000 x 8 pixels" in said
    assert {Path(row["file_name"]).suffix for row in json.loads((output / "detections.json").read_text())} == {".png"}
    assert b"/caf\xe9.png," in (output / "detections.csv").read_bytes()
    assert [file.suffix for file in output.glob("*.jpg")] == [".jpg"]
    assert main.main(["predict", *flags, str(photos / "._good.jpg"), str(photos / "panorama.png")]) == 1
    assert "skipped: " in capsys.readouterr().err  # it was named
