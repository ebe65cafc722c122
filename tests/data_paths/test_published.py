"""`--augmentation published` is what DeepLearningExamples' DALI graph does, on both data paths."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from square_view import view_with

import main
import pipelines
from pipelines import augmentation
from pipelines.no_dali import samples
from pipelines.readers.coco import read_annotations
from ssd import images
from ssd.batch import RGB_MEAN, RGB_STD
from ssd.detectors.ssd300 import recipes, settings
from ssd.distributed import Ranks
from ssd.views import AUGMENTATIONS

PUBLISHED = AUGMENTATIONS["published"]
PATHS = ("dali", "no_dali")
HERE = Ranks(0, 0, 1, torch.device("cpu"))


def run_once(graph: Any, batch_size: int) -> np.ndarray:
    pipeline = graph(batch_size=batch_size, num_threads=1, device_id=None)
    pipeline.build()
    (output,) = pipeline.run()
    return np.stack([np.array(sample) for sample in output])


def noise(count: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_the_names_are_the_settings() -> None:
    assert tuple(AUGMENTATIONS) == settings.AUGMENTATIONS and settings.SSD300Settings().augmentation == "own"
    assert recipes.RECIPES["published"]().detector.augmentation == "published"


@pytest.mark.parametrize(("height", "width"), [(480, 640), (150, 200), (90, 1000)])
def test_the_resize_is_dalis_without_antialiasing(height: int, width: int) -> None:
    (image,) = noise(1, height, width)

    @pipeline_def
    def graph():
        return fn.resize(fn.external_source(source=lambda: [image], layout="HWC"), size=[300, 300], antialias=False)

    ours = images.resize(image, (300, 300), antialias=PUBLISHED.antialias)
    assert np.abs(ours.astype(int) - run_once(graph, 1)[0]).max() <= 1  # of 255: rounding
    if width > 300:
        assert np.abs(ours.astype(int) - images.resize(image, (300, 300))).max() > 30


def test_colour_is_that_of_the_published_operators() -> None:
    """Theirs rounds to whole levels between: half a level at the most, 0.5 / 255 / std."""
    pictures = [np.maximum(picture, 96) for picture in noise(16, 40, 50)]  # far from a mean of 128
    rng = np.random.default_rng(1)
    colours = [augmentation.random_colour(rng, PUBLISHED.hue_degrees) for _ in pictures]

    @pipeline_def
    def graph():
        source = fn.external_source(source=lambda: pictures, layout="HWC")
        hue, saturation, brightness, contrast = fn.external_source(
            source=lambda: tuple([c[i] for c in colours] for i in range(4)), num_outputs=4
        )
        twisted = fn.hsv(source, hue=hue, saturation=saturation, dtype=types.FLOAT)
        twisted = fn.brightness_contrast(
            twisted, brightness=brightness, contrast=contrast, contrast_center=128, dtype=types.UINT8
        )
        mean, std = ([255 * value for value in values] for values in (RGB_MEAN, RGB_STD))
        return fn.crop_mirror_normalize(twisted, mean=mean, std=std, dtype=types.FLOAT)

    theirs = torch.from_numpy(run_once(graph, len(pictures)))
    given = torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(colours))
    half_a_level = 0.5 / 255 / min(RGB_STD) + 1e-4
    ours = augmentation.finish(*given, contrast_centre=PUBLISHED.contrast_centre)
    assert (ours - theirs).abs().max() <= half_a_level
    assert (augmentation.finish(*given) - theirs).abs().max() > 10 * half_a_level  # about the mean


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_the_paths_draw_and_turn_as_chosen(
    name: str, preset: str, demo_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = AUGMENTATIONS[preset]
    hues: list[float] = []
    finish, resize = augmentation.finish, images.resize

    def recording_finish(
        pixels: Any, colour: Any, flip: Any, contrast_centre: float | None, **normalisation: Any
    ) -> Any:
        hues.extend(colour[:, 0].tolist())
        assert contrast_centre == chosen.contrast_centre
        return finish(pixels, colour, flip, contrast_centre, **normalisation)

    def checking_resize(pixels: np.ndarray, size_px: tuple[int, int], *, antialias: bool) -> np.ndarray:
        assert antialias == chosen.antialias
        return resize(pixels, size_px, antialias=antialias)

    monkeypatch.setattr(augmentation, "finish", recording_finish)
    monkeypatch.setattr(images, "resize", checking_resize)  # DALI's path without a GPU
    monkeypatch.setattr(samples, "resize", checking_resize)
    split = read_annotations(demo_data, "train2017")
    loader = pipelines.build_train(name, split, batch_size=8, num_workers=0, seed=1, ranks=HERE, view=view_with(chosen))
    list(islice(loader.batches(0), 4))
    limit = 0.5 if preset == "published" else 18
    assert len(hues) >= 32 and 0.5 * limit < max(map(abs, hues)) <= limit


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_the_flag_has_crowds_learned_and_the_rest_as_published(
    name: str,
    data_copy: Path,
    edit_annotations: Callable[[Path, str, Callable[[dict[str, Any]], None]], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_crowds(document: dict[str, Any]) -> None:
        for box in document["annotations"]:
            box["iscrowd"] = 1

    edit_annotations(data_copy, "train2017", only_crowds)
    passed: list[Any] = []
    build_train = pipelines.build_train
    monkeypatch.setattr(
        pipelines,
        "build_train",
        lambda *a, **named: (passed.append(named["view"].augmentation), build_train(*a, **named))[1],
    )
    flags = "--epochs 1 --bs 4 --backbone resnet18 --backbone-weights none --device cpu --num-workers 1 --seed 1 "
    flags += f"--no-plots --data_pipeline {name} --data {data_copy} --output {tmp_path / 'run'}"
    assert main.main([*flags.split(), "--augmentation", "published"]) == 0
    assert "11 of 12 images to train on" in capsys.readouterr().out and passed == [PUBLISHED]
    assert main.main(flags.replace("/run", "/other").split()) == 2  # by default nothing is left to learn
