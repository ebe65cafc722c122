"""The learning rate, step by step, by hand."""

from dataclasses import replace

import pytest

from ssd.config import Config
from ssd.errors import InputError
from ssd.schedule import (
    Pace,
    Warmup,
    as_begun,
    epochs_at,
    lr_at,
    notes_on_rate,
    plan_of,
    step_after_change,
    within_minutes,
)

PLAIN = {"base_lr": 0.08, "global_batch_size": 32, "falls": ()}


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
    assert lr(step, warmup=Warmup(4)) == near(expected)


def test_warmup_of_one_step_is_none() -> None:
    assert lr(0, warmup=Warmup(1)) == 0.08


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.08),
        (19, 0.08),
        (20, 0.008),  # the first after 20 steps
        (29, 0.008),
        (30, 0.0008),
        (1000, 0.0008),
    ],
)
def test_a_tenth_right_after_each_fall(step: int, expected: float) -> None:
    assert lr(step, falls=((20, 0.1), (30, 0.1))) == near(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.08 * (1 / 4) ** 4),  # the first update is the first of four
        (1, 0.08 * (2 / 4) ** 4),
        (3, 0.008),
        (9, 0.008),
        (10, 0.0016),
    ],
)
def test_a_warmup_by_a_power_and_falls_of_their_own(step: int, expected: float) -> None:
    assert lr(step, warmup=Warmup(4, power=4), falls=[(3, 0.1), (10, 0.2)]) == near(expected)


@pytest.mark.parametrize(("step", "expected"), [(9, 0.04), (10, 0.0044), (18, 0.0076), (19, 0.008), (25, 0.008)])
def test_warmup_across_a_decay(step: int, expected: float) -> None:
    # Of 20 steps of warm-up: 10/20 x 0.08; then a tenth of 11/20, 19/20 and 20/20 of it.
    assert lr(step, warmup=Warmup(20), falls=((10, 0.1),)) == near(expected)


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
    recipe = {"base_lr": 2.6e-3, "global_batch_size": 256, "warmup": Warmup(300)}
    assert lr(step, **recipe, falls=plan_of(Config(), 459).falls) == near(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.02), (1, 0.035), (2, 0.05), (3, 0.065), (4, 0.08), (50, 0.08)],  # 1/4 + 3/4 x step / 4
)
def test_warmup_from_a_factor_reaches_the_peak_at_its_last_step(step: int, expected: float) -> None:
    assert lr(step, warmup=Warmup(4, factor=0.25)) == near(expected)


# --- the length ---


def test_epochs_are_as_many_steps_as_the_data_has() -> None:
    plan = plan_of(Config(epochs=4, multistep=(2, 3), evaluation=(1, 3, 9)), 10)
    assert plan == (40, ((20, 0.1), (30, 0.1)), {10, 30, 40})  # not after epoch 9, which it has not, and after the last


def test_steps_count_for_themselves_whatever_an_epoch_is() -> None:
    config = Config().overlaid({"steps": 90, "multistep": (60, 80), "evaluation": (45,)})
    assert plan_of(config, 10) == plan_of(config, 7) == (90, ((60, 0.1), (80, 0.1)), {45, 90})


def test_a_length_in_steps_keeps_the_shares_of_the_run() -> None:
    recipe = Config(epochs=10, multistep=(6, 8), evaluation=(5, 10))
    assert plan_of(recipe.overlaid({"steps": 1000}), 7) == (1000, ((600, 0.1), (800, 0.1)), {500, 1000})
    assert plan_of(recipe.overlaid({"steps": 1000}).overlaid({"steps": 500, "evaluation": ()}), 7) == (
        500,
        ((600, 0.1), (800, 0.1)),  # were told in steps already
        {500},
    )


def test_minutes_become_steps_beside_the_evaluations() -> None:
    recipe = Config(epochs=10, multistep=(6, 8), evaluation=(5, 10, 12), minutes=2, warmup=300, ema=0.999)
    config = within_minutes(recipe, Pace(step_s=0.5, evaluation_s=10))
    # 120 s less two evaluations, after half of the run and at its end.
    assert config.steps == 200
    assert (config.multistep, config.evaluation, config.warmup, config.ema) == ((120, 160), (100,), 20, 0.95)
    assert plan_of(config, 7).total_steps == 200 and plan_of(config, 7).judged == {100, 200}
    of_steps = replace(recipe, steps=1000, multistep=(600, 800), evaluation=(500,))
    assert within_minutes(of_steps, Pace(0.5, 10)) == config
    long = within_minutes(replace(recipe, minutes=600), Pace(0.5, 10))
    assert (long.warmup, long.ema) == (300, 0.999) and within_minutes(replace(recipe, ema=None), Pace(1, 1)).ema is None
    # Of 25 evaluations of 10 s those stay that take 40 of 120 s, evenly over the run: after a quarter, a half, ...
    often = within_minutes(replace(recipe, epochs=26, evaluation=tuple(range(1, 27))), Pace(0.5, 10))
    assert often.steps == 160 and often.evaluation == tuple(round(160 * after / 26) for after in (6, 12, 18))
    assert within_minutes(replace(recipe, minutes=0.5), Pace(0.5, 20)).evaluation == ()
    with pytest.raises(InputError, match="a step takes about 0.5 s and an evaluation 10 s; pass 0.18 or more"):
        within_minutes(replace(recipe, minutes=0.1), Pace(0.5, 10))
    assert within_minutes(replace(recipe, minutes=0.18), Pace(0.5, 10)).steps == 1


def test_a_run_in_minutes_goes_on_with_the_steps_of_its_beginning() -> None:
    recipe = Config(epochs=10, multistep=(6, 8), evaluation=(5,), minutes=2, warmup=300, ema=0.999)
    begun = within_minutes(recipe, Pace(0.5, 10))
    saved = begun.to_dict()
    assert as_begun(recipe, saved, 1, ()) == begun
    # On half of the ranks a step has half of the images.
    halved = as_begun(recipe, saved, 2, ())
    assert (halved.steps, halved.multistep, halved.evaluation, halved.warmup) == (400, (240, 320), (200,), 40)
    assert as_begun(replace(recipe, warmup=7, ema=0.5), saved, 1, ("warmup", "ema")).warmup == 7
    # With another length the warm-up does not begin again.
    longer = as_begun(replace(recipe, minutes=None, steps=900), saved, 1, ("steps",))
    assert (longer.steps, longer.warmup, longer.ema) == (900, 20, 0.95)
    assert as_begun(Config(epochs=3), Config(epochs=2).to_dict(), 1, ()) == Config(epochs=3)
    with pytest.raises(InputError, match="not one of 3 minutes; pass --minutes 2, or --steps for another length"):
        as_begun(replace(recipe, minutes=3), saved, 1, ())
    with pytest.raises(InputError, match="not one of 2 minutes; leave --minutes out"):
        as_begun(recipe, {"steps": 3}, 1, ())


def test_a_trial_of_a_few_steps_is_judged_at_its_end() -> None:
    """Elsewhere what is told in epochs keeps its share."""
    recipe = Config(epochs=8, evaluation=(1, 2, 4), multistep=(6,), warmup=0)
    assert recipe.overlaid({"steps": 4}).evaluation == ()
    assert recipe.overlaid({"steps": 24}).evaluation == (3, 6, 12)
    assert recipe.overlaid({"steps": 800}).evaluation == (100, 200, 400)
    assert recipe.overlaid({"steps": 4, "evaluation": (2,)}).evaluation == (2,)  # said so
    assert plan_of(recipe.overlaid({"steps": 4}), 10).judged == {4}


def test_falls_at_or_beyond_the_end_are_named() -> None:
    (said,) = notes_on_rate(Config(epochs=43, multistep=(20, 43, 54)), 10)
    assert said.startswith("the rate will not fall after epochs 43 and 54, because the run ends with 43;")
    assert notes_on_rate(Config(epochs=44, multistep=(20, 43)), 10) == []
    assert notes_on_rate(Config(epochs=10, multistep=(20, 43), schedule="cosine"), 10) == []
    (said,) = notes_on_rate(Config(epochs=3, steps=500, multistep=(400, 600)), 10)
    assert "not fall after step 600, because the run ends with 500;" in said


def test_a_warm_up_of_half_the_run_is_named() -> None:
    cosine = Config(epochs=6, schedule="cosine", warmup=30)
    assert notes_on_rate(cosine, 10) == [
        "30 steps of warm-up are much of the run's 60; pass a smaller --warmup, such as 6"
    ]
    assert notes_on_rate(cosine, 11) == []
    (said,) = notes_on_rate(replace(cosine, steps=5), 10)
    assert said == "30 steps of warm-up are much of the run's 5; pass a smaller --warmup, such as 0"


def test_epochs_are_whole_where_they_are() -> None:
    assert [epochs_at(step, 8) for step in (0, 8, 12, 16)] == [0, 1, 1.5, 2]
    assert isinstance(epochs_at(16, 8), int)


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
