"""Names in pictures, plots and reports: letter by letter, in any script that a font here has, else by number."""

import json
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageColor
from report_folders import write_run

from pipelines import show
from ssd.detectors.ssd300.settings import SSD300Settings
from ssd.detectors.table import view_of
from ssd.inference.drawn import draw_detections
from ssd.inference.predictor import ImageDetections
from ssd.matching import encode
from ssd.pictures import lettering
from ssd.pictures.drawing import Box, class_colour, draw_boxes, mosaic
from ssd.pictures.lettering import note_on_numbers, picture_font, plot_families, shown_in_picture, shown_in_plot
from ssd.report import plots
from ssd.report.history import read_history
from ssd.report.page import write_plots_and_report
from ssd.report.plots import confusion, per_class, precision_recall, write_plots
from ssd.views import SquareView

MARKUP = ["$5_$10", "__ignore__", "_background_", r"a\b^2_{x}", "<b>&amp;", "[red]x[/]", "100%", "{0}"]
CAR, PEDESTRIAN = "汽车", "行人"


def write_font(file: Path, letters: str) -> None:
    """A font in which each letter is a square, the later the wider."""
    names = {letter: f"glyph{ord(letter):x}" for letter in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    glyphs, metrics = {}, {}
    for number, name in enumerate([".notdef", *names.values()]):
        pen, side = TTGlyphPen(None), 300 + 20 * number
        pen.moveTo((0, 0))
        for corner in ((0, side), (side, side), (side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name], metrics[name] = pen.glyph(), (side + 50, 0)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(metrics)
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the font files of the machine; none beside matplotlib's own at first."""

    def have(*files: Path) -> None:
        for cached in (lettering._font_file, lettering._font_files):
            cached.cache_clear()
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: [str(file) for file in files])

    have()
    yield have
    for cached in (lettering._font_file, lettering._font_files):
        cached.cache_clear()


@pytest.fixture(scope="module")
def font_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """matplotlib keeps in mind the fonts that it has been told of, so they stay."""
    folder = tmp_path_factory.mktemp("fonts")
    write_font(folder / "Squares-Regular.ttf", f"{CAR}{PEDESTRIAN}0123456789. ")
    write_font(folder / "LastResort.ttf", "火星文0123456789. ")
    (folder / "Aaa.ttf").write_bytes(b"no font")
    return folder


@pytest.fixture
def squares(fonts: Callable[..., None], font_folder: Path) -> None:
    """A machine with a font of Chinese, a damaged one and one that has all letters as the same box."""
    fonts(*sorted(font_folder.iterdir()))


@pytest.mark.parametrize("name", ["", *MARKUP, "Größe", "Кот", "γάτα"])
def test_names_that_any_machine_can_draw(name: str, fonts: Callable[..., None]) -> None:
    assert shown_in_picture(name, 3) == name == shown_in_plot(name, "class 3")


@pytest.mark.parametrize("name", [CAR, "कार", "รถ", "🚗", "caf\udce9"], ids=ascii)
def test_names_without_a_font_are_numbers(name: str, fonts: Callable[..., None]) -> None:
    assert shown_in_picture(name, 3) == "class 3" == shown_in_plot(name, "class 3")


def test_scripts_whose_letters_join(fonts: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib's own font has Arabic, but without shaping its letters come apart, and in the wrong order."""
    for shapes in (True, False):
        monkeypatch.setattr(lettering.features, "check", lambda what, shapes=shapes: shapes)
        monkeypatch.setattr(lettering, "_matplotlib_shapes", lambda shapes=shapes: shapes)
        expected = "سيارة" if shapes else "class 1"
        assert shown_in_picture("سيارة", 1) == expected == shown_in_plot("سيارة", "class 1")


def test_a_font_of_the_machine_is_used(squares: None) -> None:
    assert [shown_in_picture(name, 1) for name in (CAR, PEDESTRIAN, "火星文")] == [CAR, PEDESTRIAN, "class 1"]
    assert picture_font(f"{CAR} 0.90", 20).getname() == ("Squares", "Regular")
    assert picture_font("car 0.90", 20).getname()[0] != "Squares"
    assert plot_families(["car", CAR, PEDESTRIAN]) == ["DejaVu Sans", "Squares"]


def drawn(name: str, label: int) -> bytes:
    boxes = torch.tensor([[100.0, 100.0, 300.0, 300.0]])
    found = ImageDetections(boxes, torch.tensor([0.9]), torch.tensor([label]), [name])
    return draw_detections(Image.new("RGB", (600, 500), "gray"), found).tobytes()


@pytest.mark.parametrize("has_font", [False, True])
def test_classes_look_different_in_pictures(
    has_font: bool, fonts: Callable[..., None], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_font:
        request.getfixturevalue("squares")
    monkeypatch.setattr("ssd.inference.drawn.class_colour", lambda label: "#0072B2")
    assert drawn(CAR, 1) != drawn(PEDESTRIAN, 2)
    assert (drawn(CAR, 1) == drawn("class 1", 1)) is not has_font


def test_mosaics_take_any_name(squares: None) -> None:
    picture = Image.new("RGB", (300, 300), "gray")
    names = [*MARKUP, *(shown_in_picture(name, 1) for name in (CAR, "火星文"))]
    draw_boxes(picture, [Box((0.1, 0.1 * i, 0.9, 0.9), i + 1, name) for i, name in enumerate(names)])
    assert mosaic([(CAR, [picture])], 300).shape == (338, 316, 3)


def test_one_line_names_the_numbers() -> None:
    assert note_on_numbers({"a": "a"}) == ""
    note = note_on_numbers({"a": "a", CAR: "class 2"})
    assert f"show their numbers: class 2 is {CAR}; install a font" in note and "\n" not in note
    assert " and 2 more; " in note_on_numbers({f"{i}é": f"class {i}" for i in range(7)})


def run_of(folder: Path, names: list[str]) -> Path:
    """A run with these classes, each with its own curve."""
    write_run(folder)
    log, file = folder / "log.jsonl", folder / "evaluation.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if line["event"] == "evaluation":
            line["per_class"] = {name: 0.1 * i for i, name in enumerate(names)}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = [np.linspace(1, i / 10, 101).tolist() for i in range(len(names))]
    matrix = np.eye(len(names) + 1, dtype=int).tolist()
    found = {**json.loads(file.read_text()), "classes": names, "boxes": [1] * len(names)}
    confusions = {"iou": 0.5, "score": 0.4, "matrix": matrix}
    file.write_text(json.dumps({**found, "precision_at_iou50": curves, "confusion": confusions}))
    return folder


def texts_of(figure) -> list[str]:
    """What is really drawn; a text in which formulas are looked for is none."""
    axes = figure.axes[0]
    legend = axes.get_legend().get_texts() if axes.get_legend() else []
    texts = [*legend, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [text.get_text() for text in texts if not text.get_parse_math() or "$" not in text.get_text()]


def test_plots_have_names_letter_by_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = read_history(run_of(tmp_path / "$1_run_$2", MARKUP[:6]))
    figures = {}
    for draw in (precision_recall, confusion, per_class):
        monkeypatch.setitem(
            plots._PLOTS,
            draw.__name__,
            lambda histories, draw=draw: figures.setdefault(draw.__name__, draw(histories)),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plots([history], tmp_path / "plots")
    legend = [text.rpartition("  ")[0] for text in texts_of(figures["precision_recall"])]
    assert set(MARKUP[:6]) <= set(legend)
    assert set(MARKUP[:6]) <= set(texts_of(figures["confusion"])) and set(MARKUP[:6]) <= set(
        texts_of(figures["per_class"])
    )


@pytest.mark.parametrize("has_font", [False, True])
def test_plots_of_names_in_chinese(
    has_font: bool, fonts: Callable[..., None], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if has_font:
        request.getfixturevalue("squares")
    folder = run_of(tmp_path / f"run {CAR}", ["cat", CAR, PEDESTRIAN])
    other = run_of(tmp_path / "_other", ["cat", CAR])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that are missing
        notes = [write_plots_and_report(folders, tmp_path / "out") for folders in ([folder], [folder, other])]
    assert all((note == "") is has_font for note in notes)
    assert has_font or f"class 2 is {CAR}, class 3 is {PEDESTRIAN};" in notes[0]
    assert CAR in (tmp_path / "out" / "report.html").read_text()


class _Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_has_names_letter_by_letter(tmp_path: Path) -> None:
    write_plots_and_report([run_of(tmp_path / "<i>run", MARKUP)], tmp_path)
    page = _Words((tmp_path / "report.html").read_text())
    assert set(MARKUP) <= set(page.words) and "<i>run" in page.words and {"b", "i"} & set(page.tags) == {"b"}


def test_a_run_in_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "caf\udce9", ["cat", "dog"])
    write_plots_and_report([folder], folder)
    assert "caf?" in (folder / "report.html").read_text()


def test_a_box_without_an_inside_is_drawn() -> None:
    """As Detectron finds them, less than a pixel wide: the right edge may lie left of the left one."""
    picture = Image.new("RGB", (200, 100), "gray")
    draw_boxes(picture, [Box((0.9, 0.75, 0.895, 0.74), 1, "a")])
    assert picture.getpixel((180, 76)) == ImageColor.getrgb(class_colour(1))


def test_texts_do_not_cover_those_of_better_boxes() -> None:
    picture = Image.new("RGB", (400, 100), "gray")

    def black_px(*boxes: tuple[float, float, float, float]) -> int:
        drawn = picture.copy()
        draw_boxes(drawn, [Box(ltrb, 1, "mushroom") for ltrb in boxes])
        return int((np.asarray(drawn) == 0).all(axis=2).sum())

    box = (0.1, 0.5, 0.3, 0.9)
    alone = black_px(box)
    assert alone > 500 and black_px(box, (0.5, 0.5, 0.7, 0.9)) == 2 * alone
    assert 1.5 * alone < black_px(box, (0.12, 0.5, 0.32, 0.9)) < 2 * alone  # the second's within its own box
    assert black_px((-0.1, -0.1, 1.1, 1.1)) > 500  # which reaches over the picture
    assert black_px(box, box) < black_px(*[box] * 3) == black_px(*[box] * 9)  # above, and within at both ends


def test_each_object_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each default box that learns it gives it back a little differently, here on both sides of a tenth of a pixel."""
    view = view_of(SSD300Settings())
    assert isinstance(view, SquareView)
    truth = torch.tensor([[10.05, 20.05, 110.05, 120.05]]) / 300
    offsets, labels = encode(truth, torch.tensor([1]), view.defaults_cxcywh)
    assert int((labels > 0).sum()) > 3
    drawn: list[Box] = []
    monkeypatch.setattr(show, "draw_boxes", lambda picture, boxes: drawn.extend(boxes))
    show._draw(torch.zeros(3, 300, 300), offsets, labels, ["a"], view)
    assert len(drawn) == 1 and drawn[0].ltrb == pytest.approx(truth[0].tolist(), abs=1e-4)


def test_an_object_of_less_than_a_pixel_is_shown() -> None:
    view = view_of(SSD300Settings())
    offsets, labels = (
        torch.zeros(len(view.defaults_cxcywh), 4),
        torch.zeros(len(view.defaults_cxcywh), dtype=torch.long),
    )
    offsets[0, 2:], labels[0] = -30.0, 1  # the sides of the first default box times exp(-6)
    shown = show._draw(torch.zeros(3, 300, 300), offsets, labels, ["a"], view)
    assert np.asarray(shown).any(axis=2).sum() > 10
