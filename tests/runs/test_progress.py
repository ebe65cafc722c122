"""What a run shows while it trains: the time left, a line now and then without a terminal, and its first pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from square_view import VIEW

from pipelines.readers.coco import read_annotations
from ssd.batch import EvalBatch, whole
from ssd.console import Console
from ssd.distributed import Ranks
from ssd.evaluation.detect import Results
from ssd.report.example_pictures import Examples
from ssd.report.examples import Showcase
from ssd.run.files import Run
from ssd.run.progress import StepProgress, rough_time, told

HERE = Ranks(0, 0, 1, torch.device("cpu"))


def lines_of(
    step_s: float, total_steps: int, *, first_step: int = 0, terminal: bool = False
) -> list[tuple[float, str]]:
    """What is printed of a run whose steps take so long, with the second at which it was."""
    now, printed = 0.0, io.StringIO()
    console = Console(file=printed, force_terminal=terminal, width=200, soft_wrap=True)
    progress = StepProgress(console, total_steps, first_step, clock=lambda: now)
    lines = []
    for step in range(first_step, total_steps):
        now += 30 if step == first_step else step_s  # the first step warms up
        if step % 10 == 9:
            progress.show_state(f"loss of step {step + 1}")
        before = len(printed.getvalue())
        progress.advance()
        lines += [(now, line) for line in printed.getvalue()[before:].splitlines()]
    progress.stop()
    return lines


def test_the_time_left_is_said_after_a_few_steps_without_the_first() -> None:
    (at_s, line), *_ = lines_of(0.8, 512)
    assert at_s == pytest.approx(30 + 5 * 0.8)
    assert line == "training takes about 7 minutes more: 506 steps of 0.8 s, evaluations not counted"
    (_, line), *_ = lines_of(60, 200, first_step=100)
    assert line == "training takes about 1.6 hours more: 97 steps of 60 s, evaluations not counted"


def test_without_a_terminal_there_is_a_line_every_quarter_of_a_minute() -> None:
    (_, _), *lines = lines_of(0.8, 512)
    assert lines[0] == (pytest.approx(30 + 15.2), "step 20/512  0:06:34 left  loss of step 20")
    told = [line.partition("left")[2] for _, line in lines]
    assert len({each for each in told if each}) == len([each for each in told if each])  # each once
    gaps = np.diff([at_s for at_s, _ in lines])
    assert 15 <= gaps.min() and gaps.max() <= 15 + 0.05 * 410


def test_evaluations_are_not_counted_in_the_time_left() -> None:
    now = 0.0
    printed = io.StringIO()
    progress = StepProgress(Console(file=printed, width=200, soft_wrap=True), 10, 0, clock=lambda: now)
    for step in range(9):
        now += 4
        progress.advance()
        if step == 1:
            now += 1000  # of an evaluation
            progress.leave_out(1000)
    assert printed.getvalue().splitlines() == [
        "training takes about 24 seconds more: 6 steps of 4 s, evaluations not counted",
        "step 5/10  0:00:20 left",
        "step 9/10  0:00:04 left",
    ]


def test_in_a_terminal_too() -> None:
    now_s, printed = [0.0], io.StringIO()
    console = Console(file=printed, force_terminal=True, width=200)
    progress = StepProgress(console, 100, 0, clock=lambda: now_s[0])
    for step in range(12):
        now_s[0] += 2
        progress.advance()
        progress.show_state(f"loss of step {step + 1}")
    progress.tell("evaluating: 8 of 19 images")
    bar = progress._bar
    assert bar is not None and bar.state == "evaluating: 8 of 19 images"
    now_s[0] += 1000
    progress.leave_out(1000)
    assert bar.state == "loss of step 12"
    now_s[0] += 2
    progress.advance()
    assert bar.tasks[0].fields["left"] == "0:02:54"  # 87 steps
    progress.stop()


def test_an_evaluation_says_how_far_it_is() -> None:
    now_s, said = [0.0], []
    batch = EvalBatch(torch.zeros(2, 3, 8, 8), whole(torch.zeros(2, 3, 8, 8)), torch.tensor([0, 1]))
    for _ in told([batch] * 5, 19, said.append, images_each=2, clock=lambda: now_s[0]):  # of two ranks
        now_s[0] += 10
    assert said == ["evaluating: 8 of 19 images", "evaluating: 16 of 19 images"]


def test_a_long_run_fills_no_log() -> None:
    lines = lines_of(0.5, 2 * 24 * 3600)  # a day
    assert 300 < len(lines) < 400
    assert max(np.diff([at_s for at_s, _ in lines])) <= 300.5


def test_the_lines_of_a_short_run_are_none() -> None:
    assert lines_of(0.01, 100) == [] and lines_of(1, 5) == []


def test_a_terminal_has_the_bar_and_only_the_estimate_as_a_line() -> None:
    shown = "".join(line for _, line in lines_of(0.8, 512, terminal=True))
    assert shown.count("training takes about 7 minutes more") == 1 and "step 20/512" not in shown


def test_times_are_rough() -> None:
    times = {
        0.2: "a second",
        89: "89 seconds",
        91: "2 minutes",
        5000: "83 minutes",
        5400: "1.5 hours",
        1e6: "278 hours",
    }
    assert {seconds: rough_time(seconds) for seconds in times} == times


def test_example_pictures_have_the_colours_of_the_images(demo_data: Path) -> None:
    """Whatever values the view makes of them."""
    truth = read_annotations(demo_data, "val2017").ground_truth()
    view = VIEW._replace(mean=(0.1, 0.1, 0.1), std=(1 / 255, 1 / 255, 1 / 255))
    examples = Examples(truth, 1, view)
    images = torch.full((1, 3, 300, 300), 255 * (0.7 - 0.1))  # of the level 0.7
    examples.remember(EvalBatch(images, whole(images), torch.tensor([0])))
    sheet = examples.sheet([])
    assert abs(int(np.median(sheet[sheet < 250])) - round(0.7 * 255)) <= 1


def test_example_detections_are_drawn_after_each_evaluation_and_named_once(
    demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_annotations(demo_data, "val2017").ground_truth()
    images = torch.zeros(2, 3, 300, 300)
    batch = EvalBatch(images, whole(images), torch.tensor([0, 1]))
    shown = Showcase([batch], truth, Run(tmp_path / "run", HERE), "faster", VIEW, plots=True)
    file = tmp_path / "run" / "plots" / "predictions.jpg"
    assert [len(batch.indices) for batch in shown] == [2] and not file.exists()
    category_id = truth.category_ids[0]
    for score in (0.5, 0.9):
        found = [[image_id, 30, 40, 100, 80, score, category_id] for image_id in truth.image_ids[:2]]
        shown.take(Results(np.array(found, dtype=np.float64)), step=1)
        with Image.open(file) as picture:
            assert picture.format == "JPEG" and np.array(picture).std() > 0
        file.rename(tmp_path / f"{score}.jpg")
    assert (tmp_path / "0.5.jpg").read_bytes() != (tmp_path / "0.9.jpg").read_bytes()
    assert capsys.readouterr().out == f"example detections, drawn anew after each evaluation: {file}\n"


def test_without_plots_no_examples_are_drawn(demo_data: Path, tmp_path: Path) -> None:
    truth = read_annotations(demo_data, "val2017").ground_truth()
    images = torch.zeros(2, 3, 300, 300)
    batch = EvalBatch(images, whole(images), torch.tensor([0, 1]))
    shown = Showcase([batch], truth, Run(tmp_path / "run", HERE), "faster", VIEW, plots=False)
    assert len(list(shown)) == 1
    shown.take(Results(np.zeros((0, 7))), step=1)
    assert not (tmp_path / "run" / "plots").exists()
