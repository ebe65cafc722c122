"""Plots, metrics.csv and report.html of runs' folders."""

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_folders import NAMES, Page, assert_self_contained, write_run

import main
from ssd.report.history import read_history, write_csv
from ssd.report.page import report
from ssd.report.plots import _LOSS_LOOKS, curves, per_class, write_plots

PLOTS = ["curves", "per_class", "precision_recall", "confusion", "box_sizes"]


# --- plots ---


def test_a_finished_run_has_every_plot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    files = write_plots([read_history(run)], tmp_path / "plots")
    assert [file.stem for file in files] == PLOTS
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert min(pixels.shape[:2]) > 150 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, file


def test_a_run_that_was_not_evaluated_yet_has_its_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluated=False)
    assert [file.stem for file in write_plots([read_history(run)], tmp_path)] == ["curves"]


def test_several_runs_are_overlaid_and_their_own_plots_left_out(tmp_path: Path) -> None:
    runs = [read_history(write_run(tmp_path / name, ap=ap)) for name, ap in (("a", 0.2), ("b", 0.4))]
    runs.append(read_history(write_run(tmp_path / "c", evaluated=False)))
    assert [file.stem for file in write_plots(runs, tmp_path)] == PLOTS[:3]


def test_runs_of_other_classes_have_bars_of_their_own(tmp_path: Path) -> None:
    cells, balloons = write_run(tmp_path / "cells", ap=0.6), write_run(tmp_path / "balloons", ap=0.3)
    log = (cells / "log.jsonl").read_text().replace(NAMES[0], "RBC")
    (cells / "log.jsonl").write_text(log)
    figure = per_class([read_history(cells), read_history(balloons)])
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [NAMES[0], "RBC"]  # the other has no objects
    assert [text.get_text() for text in axes.texts] == ["0.600", "0.300"]


def test_a_run_of_one_line_shows_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", epochs=1, evaluated=False)
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text().splitlines(keepends=True)[0])
    loss, _, rate, _ = curves([read_history(run)]).axes
    assert [line.get_marker() for line in (*loss.lines[1::2], *rate.lines)] == ["o"] * 4


def test_many_classes_and_losses_that_were_infinite_can_be_drawn(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"))
    names = [f"class {number}" for number in range(25)]
    curve = np.linspace(1, 0, 101).tolist()
    about = {"classes": names, "boxes": [1] * 25, "precision_at_iou50": [curve] * 25}
    about["confusion"] = {"iou": 0.5, "score": 0.4, "matrix": np.eye(26, dtype=int).tolist()}
    assert history.evaluation is not None
    judged = [{**line, "per_class": dict.fromkeys(names, 0.5)} for line in history.evaluations]
    lost = [{**history.steps[0], "loss": None, "box_loss": None, "class_loss": None}]
    history = history._replace(evaluation=history.evaluation | about, evaluations=judged, steps=lost + history.steps)
    assert [file.stem for file in write_plots([history], tmp_path)] == PLOTS


def test_a_page_shows_all_metrics_and_calls_best_what_decided(tmp_path: Path) -> None:
    """By COCO's AP, which rises, the last evaluation is the best; by VOC's it is the second."""
    history = read_history(write_run(tmp_path / "run", ap=0.3))
    voc, masks = (0.5, 0.7, 0.6), (0.11, 0.12, 0.13)
    judged = [
        {**line, "VOC07": own, "segm_AP": of_masks, "VOC07_per_class": {NAMES[0]: own / 2, NAMES[1]: None}}
        for line, own, of_masks in zip(history.evaluations, voc, masks, strict=True)
    ]
    settings = {**history.config["settings"], "metrics": ["voc07", "coco"]}
    by_voc = history._replace(evaluations=judged, config={**history.config, "settings": settings})
    words = Page(report([by_voc], [])).words
    assert words[words.index("best VOC07, epoch 2") - 1] == "0.700" and "best AP, epoch 2" not in words
    assert words[words.index("VOC07") - 1] == "0.600"
    table = words[words.index("Other metrics of the last evaluation") :]
    assert table[table.index("segm_AP") + 1] == "0.130" and table[table.index("VOC07") + 1] == "0.600"
    of_classes = words[words.index("class") :]
    assert of_classes[1:5] == ["AP", "VOC07", "AP50", "boxes"]
    assert of_classes[of_classes.index(NAMES[0]) + 2] == "0.300"
    axes = curves([by_voc, by_voc]).axes
    assert axes[1].get_title() == "VOC07" and axes[3].get_title() == "VOC07 over time"
    assert [tuple(line.get_ydata()) for line in axes[1].lines] == [voc, voc]
    words = Page(report([history._replace(evaluations=judged)], [])).words
    assert not any(word.startswith("best ") for word in words)
    assert "Other metrics of the last evaluation" not in Page(report([history], [])).words


def test_any_set_of_metrics_is_drawn_and_told(tmp_path: Path) -> None:
    """Of names that nothing here knows, without COCO's; and those of masks and keypoints as curves too."""
    history = read_history(write_run(tmp_path / "run"))
    scores = (0.25, 0.5, 0.75)
    line = {"event": "evaluation", "evaluation_s": 1.0, "shapeliness_per_class": {}}
    judged = [
        {**line, "epoch": epoch, "step": 10 * epoch, "shapeliness": score}
        for epoch, score in zip((1, 2, 3), scores, strict=True)
    ]
    made_up = history._replace(evaluations=judged, evaluation=None)
    for several in ([made_up], [made_up, made_up]):
        assert all(tuple(line.get_ydata()) == scores for line in curves(several).axes[1].lines)
        assert len(curves(several).axes[1].lines) == len(several)
    words = Page(report([made_up], [])).words
    assert words[words.index("shapeliness") - 1] == "0.750"
    table = words[words.index("Other metrics of the last evaluation") :]
    assert table[table.index("shapeliness") + 1] == "0.750" and "AP50" not in table and "evaluation_s" not in table
    write_csv(tmp_path / "metrics.csv", made_up)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows[29]["shapeliness"] == "0.75" and "shapeliness_per_class" not in rows[29]

    parts = {"segm_AP": 0.1, "segm_AP50": 0.2, "keypoints_AP": 0.3, "VOC07": 0.4}
    of_parts = history._replace(evaluations=[line | parts for line in history.evaluations])
    lines = curves([of_parts]).axes[1].lines
    assert [line.get_ydata()[-1] for line in lines] == [0.3, 0.3, 0.3, 0.4, 0.1, 0.3]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 6


def test_legends_lie_in_their_axes(tmp_path: Path) -> None:
    """Of the longest names of losses and metrics that detectors here have."""
    history = read_history(write_run(tmp_path / "run"))
    names = ("loss_classifier", "loss_box_reg", "loss_keypoint", "loss_objectness", "loss_rpn_box_reg")
    steps = [{**step, **{f"{name}_loss": 1.0 for name in names}} for step in history.steps]
    evaluations = [{**line, "keypoints_AP": 0.3} for line in history.evaluations]
    figure = curves([history._replace(steps=steps, evaluations=evaluations)])
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        inside, legend = axes.get_window_extent(), axes.get_legend()
        assert legend is not None and all(inside.contains(*corner) for corner in legend.get_window_extent().corners())


def test_metrics_csv_has_a_row_a_line_and_the_evaluations_in_theirs(tmp_path: Path) -> None:
    write_csv(tmp_path / "metrics.csv", read_history(write_run(tmp_path / "run")))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [*range(1, 31)]
    assert float(rows[1]["loss"]) == 15 and float(rows[-1]["elapsed_s"]) == 15
    assert [row["AP"] for row in rows if row["AP"]] == ["0.1", "0.2", "0.3"] and float(rows[29]["AP balloon"]) == 0.3
    assert rows[29]["AP <crate> & co"] == ""


# --- the report ---


def test_the_report_says_all_there_is_to_say_and_needs_no_other_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ap=0.318)
    assert main.main(["plot", str(run)]) == 0
    text = (run / "report.html").read_text()
    page = assert_self_contained(text)
    for words in ("0.318", "<crate> & co", "resnet18", "main.py --data /data/b", "2.15", "AP50", "balloon"):
        assert any(words in found for found in page.words), words
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == len(PLOTS) and (run / "metrics.csv").exists()


def test_the_report_of_several_runs_compares_them(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "short", epochs=2, ap=0.125), write_run(tmp_path / "long", ap=0.25)]
    assert main.main(["plot", *map(str, runs), "--output", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    assert_self_contained(text)
    shared = text.index("<details>")
    assert "<th>epochs</th><td>2</td><td>3</td>" in text[:shared] and "<th>backbone</th>" in text[shared:]
    assert "0.125" in text and "0.250" in text
    assert not (tmp_path / "short" / "report.html").exists()


def test_the_report_of_a_run_that_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluated=False)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"event": "train", "st')
    Page(report([read_history(run)], []))


def test_what_cannot_be_plotted(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert str(tmp_path / "none") in refusal("plot", tmp_path / "none")
    run = write_run(tmp_path / "run")
    assert "--output" in refusal("plot", run, run)
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal("plot", run, "--output", tmp_path / "file")
    (run / "log.jsonl").write_text("")
    assert "nothing is logged" in refusal("plot", run)
    (run / "evaluation.json").write_text("{")
    assert "evaluation.json" in refusal("plot", run)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_chromium_shows_the_report(tmp_path: Path) -> None:
    run, shot = write_run(tmp_path / "run"), tmp_path / "shot.png"
    assert main.main(["plot", str(run)]) == 0
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1000"]
    page = (run / "report.html").resolve().as_uri()
    subprocess.run([str(CHROMIUM), *flags, f"--screenshot={shot}", page], capture_output=True, timeout=60, check=True)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    blue = (abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 30).sum()  # curves: the pictures are shown
    assert pixels.shape == (1000, 1200, 3) and blue > 300
    assert (pixels[:, :10] == (0xF6, 0xF8, 0xFA)).all()  # the style is read


def test_no_two_of_a_run_s_losses_look_alike() -> None:
    """A student of two methods has eight."""
    assert len(set(_LOSS_LOOKS)) == len(_LOSS_LOOKS) == 16
