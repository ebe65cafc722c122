"""Runs' folders made up, and what is true of every page that shows them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from ssd.config import Config
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.evaluation.coco import METRIC_NAMES

NAMES = ["balloon", "<crate> & co"]


def write_run(folder: Path, *, epochs: int = 3, evaluated: bool = True, ap: float = 0.3) -> Path:
    """A run of ten lines an epoch, as ssd.run.files writes it."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, 10 * epochs + 1):
        losses = {"loss": 30 / step, "box_loss": 10 / step, "class_loss": 20 / step}
        times = {"images_per_second": 16.0, "data_wait_s": 0.1, "elapsed_s": 0.5 * step, "skipped_steps": 0}
        lines.append({"event": "train", "step": step, "epoch": step / 10, **losses, **times, "learning_rate": 0.01})
        if evaluated and step % 10 == 0:
            metrics = dict.fromkeys(METRIC_NAMES, ap * step / (10 * epochs))
            judged = {
                "epoch": step // 10,
                "step": step,
                "evaluation_s": 1.0,
                "per_class": {NAMES[0]: ap, NAMES[1]: None},
            }
            lines.append({"event": "evaluation", **judged, **metrics})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Config(data="/data/balloons", epochs=epochs, detector=SSD300Settings("resnet18")).to_dict()
    machine = {"world_size": 1, "hardware": {"device": "cpu"}, "versions": {"torch": "2.15"}, "git_revision": None}
    config = {"settings": settings, "command": ["main.py", "--data", "/data/b"], **machine}
    (folder / "config.json").write_text(json.dumps(config))
    if evaluated:
        evaluation = {
            "images": 4,
            "classes": NAMES,
            "boxes": [5, 0],
            "precision_at_iou50": [np.linspace(1, 0, 101).tolist(), None],
            "confusion": {"iou": 0.5, "score": 0.4, "matrix": [[3, 0, 2], [0, 0, 0], [1, 1, 0]]},
            "box_sizes": {"edges_px": [3, 10, 30, 300], "covered": [0, 3, 1], "uncovered": [1, 0, 0]},
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        (folder / "results.json").write_text(json.dumps({**lines[-1], "images_per_second": 16.0}))
    return folder


class Page(HTMLParser):
    """Asserts that tags are closed in order, and keeps the text, the tags and where pictures come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def assert_self_contained(text: str) -> Page:
    page = Page(text)
    sources = [value or "" for name, value in page.attributes if name in ("src", "href", "data", "srcset")]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"url\(|@import|https?://|<script", text)
    return page
