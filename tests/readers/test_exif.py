"""Images that EXIF turns are used upright or as stored, as the stated sizes say, alike in both data paths."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from square_view import VIEW
from tool_data import HEIGHT_PX, WIDTH_PX, Document, write_coco

import main
import pipelines
from pipelines.annotations import Annotations
from pipelines.exif import Votes, count_votes, decide, look_at_images
from pipelines.readers.headers import Header
from pipelines.readers.image_files import read_rgb
from pipelines.readers.reading import read_source
from pipelines.readers.splits import find_named
from ssd.distributed import Ranks
from ssd.errors import InputError

HERE = Ranks(0, 0, 1, torch.device("cpu"))


def turn(file: Path, orientation: int, format: str = "JPEG") -> None:
    """Marks a picture as one that EXIF turns; what is stored is noise without symmetry."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(orientation)
    small = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(small).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    picture.save(file, format, exif=exif.tobytes(), **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))


def split_of(folder: Path, orientations: list[int], *, upright: list[bool], format: str = "JPEG") -> Annotations:
    """Four images, turned so; upright: whether the size is stated so of each."""

    def change(document: Document, images: Path) -> None:
        if images.name != "train":
            return
        for row, orientation, is_upright in zip(document["images"], orientations, upright, strict=True):
            turn(images / row["file_name"], orientation, format)
            if is_upright and orientation >= 5:
                row["width"], row["height"] = row["height"], row["width"]
        for box in document["annotations"]:
            box["bbox"] = [10, 10, 30, 30]

    return read_source(find_named(write_coco(folder, change), "train"))


def look(split: Annotations, choice: str = "") -> tuple[Annotations, str]:
    (looked,), text = look_at_images([split], [np.arange(len(split))], HERE, choice)
    return looked, text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    turn(tmp_path / "a.jpg", orientation)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_rgb(tmp_path / "a.jpg", upright=True), expected)


def test_stated_sizes_tell(tmp_path: Path) -> None:
    looked, text = look(split_of(tmp_path / "a", [6, 1, 8, 3], upright=[True] * 4))
    assert looked.is_upright and "3 images have an EXIF orientation; they are turned upright, as the stated" in text
    looked, text = look(split_of(tmp_path / "b", [6, 1, 8, 3], upright=[False] * 4))
    assert not looked.is_upright and "they are used as they are stored, as the stated" in text
    looked, text = look(split_of(tmp_path / "c", [1] * 4, upright=[False] * 4))
    assert not looked.is_upright and text == ""
    with pytest.raises(InputError, match="1 are stated by their upright size and 1 as they are stored.*--exif"):
        look(split_of(tmp_path / "d", [6, 1, 8, 1], upright=[True, False, False, False]))


def test_a_choice_is_obeyed_and_what_does_not_fit_it_is_named(tmp_path: Path) -> None:
    split = split_of(tmp_path, [3, 1, 1, 2], upright=[False] * 4)
    assert look(split)[0].is_upright is False and "no stated size tells" in look(split)[1]
    looked, text = look(split, "upright")
    assert looked.is_upright and "as --exif upright says" in text
    turned = split_of(tmp_path / "b", [6, 1, 1, 1], upright=[False] * 4)
    with pytest.raises(
        InputError, match=r"im000.jpg: is 64 x 96 pixels, but .* says 96 x 64 \(EXIF orientation 6; --exif"
    ):
        look(turned, "upright")


def test_votes() -> None:
    headers = [Header((4, 2), 6), Header((4, 2), 6), Header((3, 3), 6), Header((4, 2), 1), Header((4, 2), 3)]
    assert count_votes(headers, [(2, 4), (4, 2), (3, 3), (4, 2), (4, 2)]) == Votes(4, 1, 1)
    assert decide(Votes(2, 0, 0), "", states_sizes=False, name="x")[0] is True


def test_the_fingerprint_tells_upright_from_stored(tmp_path: Path) -> None:
    split = split_of(tmp_path, [3, 1, 1, 1], upright=[False] * 4)
    assert look(split)[0].fingerprint() == split.fingerprint() != look(split, "upright")[0].fingerprint()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("half", [0, 4])
def test_both_data_paths_turn_alike(half: int, format: str, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    orientations = [1 + half, 2 + half, 3 + half, 4 + half]
    split = split_of(tmp_path, orientations, upright=[half == 4] * 4, format=format)
    split, _ = look(split, "upright")
    batches = [
        next(iter(pipelines.build_eval(name, split, batch_size=4, num_workers=0, ranks=HERE, view=VIEW)))
        for name in ("dali", "no_dali")
    ]
    assert torch.equal(batches[0].indices, batches[1].indices)
    # Decoders round otherwise, by a level or two of 255; a picture that is turned otherwise differs by tens.
    assert (batches[0].images - batches[1].images).abs().max() < 0.1


@pytest.mark.parametrize("name", ["dali", "no_dali"])
def test_a_crop_of_a_turned_image_has_the_colours_of_its_boxes(name: str, tmp_path: Path) -> None:
    """A gray image, turned, with a red box: however it is cropped, what is matched is redder than the rest."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")

    def change(document: Document, images: Path) -> None:
        for row in document["images"]:
            upright = np.full((WIDTH_PX, HEIGHT_PX, 3), 128, dtype=np.uint8)
            upright[4:30, 4:40] = (255, 0, 0)
            exif = Image.Exif()
            exif[0x0112] = 6
            stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
            stored.save(images / row["file_name"], quality=95, subsampling=0, exif=exif.tobytes())
            row["width"], row["height"] = HEIGHT_PX, WIDTH_PX
        document["annotations"] = [
            {"id": i, "image_id": row["id"], "category_id": 1, "bbox": [4, 4, 36, 26]}
            for i, row in enumerate(document["images"], 1)
        ]

    split = read_source(find_named(write_coco(tmp_path, change), "train"))
    loader = pipelines.build_train(name, split, batch_size=4, num_workers=0, seed=1, ranks=HERE, view=VIEW)
    batches = loader.batches(0)
    from ssd.detectors.ssd300 import anchors

    ltrb = anchors.default_boxes_ltrb()
    differences = []
    for _ in range(6):
        batch = next(batches)
        for image, labels in zip(batch.images, batch.labels, strict=True):
            redness = image[0] - (image[1] + image[2]) / 2
            for left, top, right, bottom in (ltrb[labels > 0] * 300).round().int().clamp(0, 300).tolist():
                if right - left > 8 and bottom - top > 8:
                    inside = redness[top:bottom, left:right].mean()
                    differences.append(float(inside - redness.mean()))
    assert len(differences) > 20 and np.mean(np.array(differences) > 0) > 0.9


def test_prediction_turns_pictures_unless_it_is_told_not_to_and_says_so(
    demo_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import main

    turn(tmp_path / "a.jpg", 6)
    command = ["predict", "--checkpoint", str(demo_checkpoint), str(tmp_path / "a.jpg"), "--device", "cpu"]
    for flags, size, text in (
        ([], (320, 480), "turned upright"),
        (["--exif", "stored"], (480, 320), "as they are stored"),
    ):
        assert main.main([*command, "--output", str(tmp_path / text), *flags]) == 0
        assert (
            f"note: 1 of the pictures have an EXIF orientation; {'' if not flags else 'used '}{text}"
            in capsys.readouterr().out
        )
        with Image.open(tmp_path / text / "a.jpg") as drawn:
            assert (drawn.width > drawn.height) == (size[0] > size[1])


def test_show_data_says_and_obeys_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a turn, of which no size tells."""
    split_of(tmp_path, [3] * 4, upright=[False] * 4)
    pictures = []
    for flags, told in (([], "used as they are stored, as no stated size tells"), (["--exif", "upright"], "upright")):
        output = tmp_path / "shown.png"
        where = ["--data", str(tmp_path), "--data_pipeline", "no_dali", "--output", str(output)]
        assert main.main(["show-data", *where, "--rows", "1", "--columns", "1", *flags]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("note: ") and told in shown
        pictures.append(output.read_bytes())
    assert pictures[0] != pictures[1]
