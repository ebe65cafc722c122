"""Several passes through both data paths, prediction and the commands."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ragged_data
import torch
from detectron_models import NUM_CLASSES, small
from PIL import Image
from runs import small_checkpoint, write_small_data

import main
from pipelines.ragged.order import evaluation_batches
from ssd.batch import EvalBatch
from ssd.checkpoints import checkpoint
from ssd.config import Config
from ssd.detectors.detectron.builders import build
from ssd.detectors.detectron.config.configuration import overlaid, text_of
from ssd.detectors.detectron.config.naming import configuration_of
from ssd.detectors.table import to_dict, tta_of, view_with
from ssd.images import resize
from ssd.inference.predictor import Predictor, model_input
from ssd.views import ShortSideView

WORDS = (
    "TEST.SCALE 32 TEST.MAX_SIZE 56 TEST.BBOX_AUG.ENABLED True TEST.BBOX_AUG.H_FLIP True TEST.BBOX_AUG.SCALES (40,) "
    "TEST.BBOX_AUG.MAX_SIZE 90 TEST.BBOX_AUG.ASPECT_RATIOS (1.5,) TEST.MASK_AUG.ENABLED True TEST.MASK_AUG.H_FLIP True "
    "TEST.SCORE_THRESH 0.0"
)  # fmt: skip


def several() -> Any:
    """Settings of a small Mask R-CNN whose configuration has four passes for boxes and two for masks."""
    settings = small("mask")
    config = overlaid(configuration_of(settings), WORDS.split())
    return replace(settings, test_short_side_px=32, test_long_side_px=56, cfg=text_of(config))


def of_detectron(data_pipeline: str, folder: Path) -> Iterator[EvalBatch]:
    view = view_with(several(), tta_of(several(), None))
    annotations = ragged_data.write(folder)
    return iter(ragged_data.eval_loader(data_pipeline, annotations, view))


@pytest.mark.parametrize("data_pipeline", ["no_dali", "dali"])
def test_a_batch_comes_once_for_each_look(data_pipeline: str, tmp_path: Path) -> None:
    batches = list(of_detectron(data_pipeline, tmp_path))
    seen = [image for batch in batches[::3] for image in batch.indices.tolist()]
    assert len(batches) % 3 == 0 and seen == list(range(len(ragged_data.SIZES_PX)))
    view = view_with(several(), tta_of(several(), None))
    for first in range(0, len(batches), 3):
        own, larger, wider = batches[first : first + 3]
        assert torch.equal(own.indices, larger.indices) and torch.equal(own.indices, wider.indices)
        assert own.stated_px is not None and larger.stated_px is not None and wider.stated_px is not None
        assert wider.scales is not None
        for row, image in enumerate(own.indices.tolist()):
            width, height = ragged_data.SIZES_PX[image]
            assert own.stated_px[row].tolist() == larger.stated_px[row].tolist() == [width, height]
            assert wider.stated_px[row].tolist() == [round(1.5 * width), height]
            # What is predicted on sees the same.
            file = tmp_path / "train" / f"{image}.jpg"
            given = model_input(file, view)
            for batch, look in zip((own, larger, wider), (given, *given.further), strict=True):
                right, bottom = batch.placed_ltrb_px[row, 2:].tolist()
                assert look.pixels.shape[:2] == (bottom, right)
                mean = torch.tensor(view.mean).mul(255).view(3, 1, 1)
                shown = batch.images[row, :, :bottom, :right] + mean
                assert (shown - torch.from_numpy(look.pixels).permute(2, 0, 1)).abs().max() <= 8  # of two JPEG decoders


def test_a_stretched_width_has_a_factor_of_its_own() -> None:
    image = np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (8, 1, 3))
    found = resize(image, (45, 12), antialias=False, scale=(2.25, 1.5))
    place = ((np.arange(45) + 0.5) / 2.25 - 0.5).clip(0, 19)
    assert np.abs(found[3, :, 0] - 10 * place).max() <= 1 and (found == found[:1]).all()


def test_each_of_two_ranks_has_all_looks_at_its_images(tmp_path: Path) -> None:
    annotations, view = ragged_data.write(tmp_path), view_with(several(), tta_of(several(), None))
    assert isinstance(view, ShortSideView)
    seen: list[int] = []
    for ranks in ragged_data.ranks_of(2):
        batches = evaluation_batches(annotations, view, batch_size=2, ranks=ranks)
        for first in range(0, len(batches), 3):
            own, larger, wider = ([sample.image for sample in batch] for batch in batches[first : first + 3])
            assert own == larger == wider
            seen += own
    assert sorted(seen) == list(range(len(annotations)))


def write_checkpoint(file: Path, settings: Any, categories: list[tuple[int, str]]) -> Path:
    torch.manual_seed(0)
    content = {
        "format": checkpoint.FORMAT, "detector": to_dict(settings), "categories": categories,
        "model": build(settings, len(categories) + 1).state_dict(),
    }  # fmt: skip
    checkpoint.save(file, content)
    return file


@pytest.mark.slow
def test_evaluate_and_predict_say_that_they_did(tmp_path: Path, capfd: Any) -> None:
    data = write_small_data(tmp_path / "demo")
    rows = json.loads((data / "annotations" / "instances_val2017.json").read_text())["categories"]
    file = write_checkpoint(tmp_path / "m.pt", several(), [(each["id"], each["name"]) for each in rows])
    flags = ["--data", data, "--device", "cpu", "--data_pipeline", "no_dali", "--num-workers", 0]

    def run(*words: object) -> str:
        assert main.main([str(word) for word in words]) == 0
        return str(capfd.readouterr().out)

    evaluate = ["evaluate", *flags, "--checkpoint", file, "--json"]
    said = run(*evaluate, tmp_path / "several.json")
    assert "m.pt, TTA of 4 passes for boxes, 2 for masks" in said
    of_several = json.loads((tmp_path / "several.json").read_text())
    assert of_several["tta"] == "TTA of 4 passes for boxes, 2 for masks"
    assert "TTA" not in run(*evaluate, tmp_path / "one.json", "--no-tta")
    assert json.loads((tmp_path / "one.json").read_text())["tta"] is None
    predict = ["predict", "--checkpoint", file, data / "val2017", "--device", "cpu", "--score", 0, "--output"]
    assert "detections: " in (said := run(*predict, tmp_path / "found")) and "; TTA of 4 passes" in said
    assert "TTA" not in run(*predict, tmp_path / "in_one", "--no-tta")
    found, in_one = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("found", "in_one"))
    assert {"segmentation", "bbox"} <= found[0].keys() and found != in_one


def test_a_predictor_finds_in_a_batch_what_it_finds_in_each_image() -> None:
    settings = several()
    torch.manual_seed(0)
    predictor = Predictor(
        build(settings, NUM_CLASSES), [(1, "a"), (2, "b"), (3, "c")],
        Config(detector=settings, device="cpu", score_threshold=0.0, max_per_image=4), tta_of(settings, None),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30, 50, 3), dtype=np.uint8) for _ in range(2)]  # padded alike, also alone
    together, alone = predictor(images, batch_size=2), [predictor(image)[0] for image in images]
    assert predictor.usual_batch_size == 1  # of several sizes each
    for own, other, image in zip(together, alone, images, strict=True):
        assert len(own.scores) == 4 and own.masks is not None and own.masks[0]["size"] == list(image.shape[:2])
        torch.testing.assert_close(own.scores, other.scores, rtol=1e-3, atol=1e-4)


def test_images_of_several_passes_go_through_the_model_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = several()
    model = build(settings, NUM_CLASSES)
    for passes, judged_at, expected in (
        (tta_of(settings, None), 32, [1, 1, 1]),
        (None, 32, [3]),
        (None, 1, [1, 1, 1]),  # as a batch's padding would change what is found
    ):
        config = Config(detector=settings, device="cpu", eval_batch_size=judged_at)
        predictor = Predictor(model, [(1, "a"), (2, "b"), (3, "c")], config, passes)
        sizes: list[int] = []
        monkeypatch.setattr(predictor, "detect", lambda inputs, sizes=sizes: sizes.append(len(inputs)) or [])
        predictor(np.zeros((3, 30, 50, 3), dtype=np.uint8))
        assert sizes == expected
        predictor(np.zeros((3, 30, 50, 3), dtype=np.uint8), batch_size=2)
        assert sizes[-2:] == [2, 1]


# --- bad input ---


def test_commands_refuse_what_they_cannot_do(tmp_path: Path, refusal: Callable[..., str]) -> None:
    file = write_checkpoint(tmp_path / "m.pt", several(), [(1, "a")])
    onnx = tmp_path / "m.onnx"
    assert "evaluate and predict have --tta" in refusal("export", "--checkpoint", file, "--output", onnx, "--tta")
    said = refusal("export", "--checkpoint", file, "--output", onnx)
    assert "TEST.BBOX_AUG.ENABLED is not in an exported file" in said
    assert said.endswith("pass --set TEST.BBOX_AUG.ENABLED False TEST.MASK_AUG.ENABLED False")
    picture = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(picture)
    assert "one pass only" in refusal("predict", picture, "--tta", "--checkpoint", small_checkpoint())
