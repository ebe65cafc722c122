"""The learning rate, step by step, by hand."""

import pytest

from ssd.schedule import lr_at, step_after_change

PLAIN = {"base_lr": 0.08, "global_batch_size": 32, "steps_per_epoch": 10, "warmup_steps": 0, "multistep": ()}


def lr(step: int, **settings: object) -> float:
    return lr_at(step, **{**PLAIN, **settings})


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=0)  # a few roundings of a double


@pytest.mark.parametrize("step", [0, 1, 999])
def test_without_warmup_and_decay_it_is_constant(step: int) -> None:
    assert lr(step) == 0.08


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(32, 0.08), (8, 0.02), (64, 0.16), (1024, 2.56), (48, 0.12)],  # x 1, 1/4, 2, 32, 3/2
)
def test_linear_scaling(batch: int, expected: float) -> None:
    assert lr(5, global_batch_size=batch) == near(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.02), (1, 0.04), (2, 0.06), (3, 0.08), (4, 0.08), (50, 0.08)],  # 1/4, 2/4, 3/4, 4/4, and no more
)
def test_warmup_rises_in_equal_steps_from_the_first(step: int, expected: float) -> None:
    assert lr(step, warmup_steps=4) == near(expected)


def test_warmup_of_one_step_is_none() -> None:
    assert lr(0, warmup_steps=1) == 0.08


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.08),
        (19, 0.08),  # the last step of the second epoch
        (20, 0.008),  # the first of the third: after epoch 2
        (29, 0.008),
        (30, 0.0008),  # after epoch 3
        (1000, 0.0008),
    ],
)
def test_a_tenth_right_after_each_epoch_of_multistep(step: int, expected: float) -> None:
    assert lr(step, multistep=(2, 3)) == near(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.08 * (1 / 4) ** 4),  # the first update is the first of four
        (1, 0.08 * (2 / 4) ** 4),
        (2, 0.08 * (3 / 4) ** 4),  # a scale that is due already waits for the warm-up's end
        (3, 0.008),
        (9, 0.008),
        (10, 0.0016),  # the eleventh
    ],
)
def test_darknets_burn_in_and_steps(step: int, expected: float) -> None:
    assert lr(step, warmup_steps=4, warmup_power=4, rate_scales=[(2, 0.1), (11, 0.2)]) == near(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.008), (98, 0.008), (99, 0.08), (19999, 0.008), (29999, 0.0008)])
def test_the_steps_of_yolov2_tiny_voc_are_its_warm_up(step: int, expected: float) -> None:
    scales = [(-1, 0.1), (100, 10.0), (20000, 0.1), (30000, 0.1)]
    assert lr(step, rate_scales=scales) == near(expected)


@pytest.mark.parametrize(("step", "expected"), [(9, 0.04), (10, 0.0044), (18, 0.0076), (19, 0.008), (25, 0.008)])
def test_warmup_across_a_decay(step: int, expected: float) -> None:
    # Of 20 steps of warm-up: 10/20 x 0.08; then a tenth of 11/20, 19/20 and 20/20 of it.
    assert lr(step, warmup_steps=20, multistep=(1,)) == near(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # 8 GPUs x 32 images: 2.6e-3 x 256 / 32 = 0.0208; an epoch is ceil(117266 / 256) = 459 steps.
        (299, 0.0208),  # the end of the warm-up
        (149, 0.0104),  # half of it
        (43 * 459 - 1, 0.0208),
        (43 * 459, 0.00208),
        (54 * 459 - 1, 0.00208),
        (54 * 459, 0.000208),
        (65 * 459 - 1, 0.000208),
    ],
)
def test_the_published_recipe(step: int, expected: float) -> None:
    recipe = {"base_lr": 2.6e-3, "global_batch_size": 256, "steps_per_epoch": 459, "warmup_steps": 300}
    assert lr(step, **recipe, multistep=(43, 54)) == near(expected)


# --- another global batch ---


def test_a_run_goes_on_by_the_images_it_has_seen() -> None:
    """100 images: 13 steps of 8, 25 of 4, 7 of 16, 9 of 12."""

    def goes_on_at(step: int, steps: int, batch: int, new_steps: int, new_batch: int) -> int:
        return step_after_change(
            step,
            steps_per_epoch=steps,
            global_batch_size=batch,
            new_steps_per_epoch=new_steps,
            new_global_batch_size=new_batch,
        )

    for step in range(40):
        assert goes_on_at(step, 13, 8, 13, 8) == step
    assert [goes_on_at(step, 13, 8, 25, 4) for step in (0, 1, 12, 13, 26, 27)] == [0, 2, 24, 25, 50, 52]
    assert [goes_on_at(step, 13, 8, 7, 16) for step in (0, 1, 2, 3, 12, 13, 15)] == [0, 0, 1, 1, 6, 7, 8]
    assert [goes_on_at(step, 13, 8, 9, 12) for step in (1, 2, 3, 12, 13, 14)] == [0, 1, 2, 8, 9, 9]
    # Of a larger data set, which takes --resume-anyway: never past the end of the epoch.
    assert goes_on_at(39, 40, 8, 13, 8) == 12
