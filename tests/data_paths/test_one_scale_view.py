"""The view that scales both sides by one factor, as Detectron does."""

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def

from pipelines.dali.ragged_graph import finish, inputs_of
from pipelines.ragged.draws import Sample
from ssd.images import resize
from ssd.views import ShortSideView, evaluated, largest_px, resized

VIEW = ShortSideView((800,), 1333, resize_rule="detectron", evaluated_sides_px=(500, 833))


@pytest.mark.parametrize(
    ("size_px", "expected", "scale"),
    [
        ((640, 480), (1067, 800), 800 / 480),  # 1066.67 is rounded up, where torchvision rounds down
        ((1200, 480), (1333, 533), 1333 / 1200),
        # The long side is 1333.33, which is rounded before it is compared: 800 / 480 stays.
        ((800, 480), (1333, 800), 800 / 480),
        ((801, 480), (1333, 799), 1333 / 801),
        ((480, 801), (799, 1333), 1333 / 801),
        ((2, 5000), (1, 1333), 1333 / 5000),
    ],
)
def test_sides_are_scaled_by_one_factor_and_rounded(
    size_px: tuple[int, int], expected: tuple[int, int], scale: float
) -> None:
    assert resized(VIEW, size_px, (800, 1333)) == (expected, scale)


def test_evaluation_has_sides_of_its_own() -> None:
    assert evaluated(VIEW, (640, 480)) == ((667, 500), 500 / 480)
    assert evaluated(VIEW._replace(evaluated_sides_px=None), (640, 480)) == ((1067, 800), 800 / 480)
    assert largest_px(VIEW) == 800 * 1333
    assert largest_px(VIEW._replace(evaluated_sides_px=(1200, 2000))) == 1200 * 2000


def by_hand(image: np.ndarray, size_px: tuple[int, int], scale: float) -> np.ndarray:
    """cv2.resize's rule where it is given factors: output pixel j looks at (j + 0.5) / scale - 0.5."""

    def weights(count: int, of: int) -> np.ndarray:
        place = ((np.arange(count) + 0.5) / scale - 0.5).clip(0, of - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(of)))

    height, width = image.shape[:2]
    rows, columns = weights(size_px[1], height), weights(size_px[0], width)
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize(("size_px", "scale"), [((17, 10), 1.3), ((13, 8), 1.0), ((9, 5), 0.66), ((33, 20), 2.51)])
def test_pixels_are_sampled_with_the_factor_itself(size_px: tuple[int, int], scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    assert size_px == (round(13 * scale), round(8 * scale))
    found = resize(image, size_px, antialias=False, scale=scale)
    assert found.shape == (size_px[1], size_px[0], 3)
    assert np.abs(found - by_hand(image, size_px, scale)).max() <= 1  # levels are rounded
    if scale == 2.51:
        assert np.abs(resize(image, size_px, antialias=False) - by_hand(image, size_px, scale)).max() > 1


class _Sizes:
    sizes_px = np.array([[13, 8]])


@pytest.mark.parametrize(("size_px", "scale"), [((17, 10), 1.3), ((9, 5), 0.66), ((33, 20), 2.51)])
def test_dali_samples_with_the_factor_too(size_px: tuple[int, int], scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    view = VIEW._replace(divisor=1, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    sample = Sample(0, size_px, False, scale=scale)
    inputs = inputs_of([sample], [image], view, _Sizes())  # type: ignore[arg-type]

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph():  # type: ignore[no-untyped-def]
        pixels, *others = fn.external_source(source=iter([inputs]), num_outputs=6, batch=True)
        return finish(pixels, *others, view=view)

    pipeline = graph()
    pipeline.build()
    (found,) = pipeline.run()
    assert np.abs(np.asarray(found[0]) - by_hand(image, size_px, scale)).max() <= 1
