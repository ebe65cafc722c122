"""The docs build without a warning and leave no command, flag or module out; the texts at the top level render."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from main import COMMANDS

ROOT = Path(__file__).parents[2]
NEEDS_SPHINX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="Sphinx, furo or myst-parser is not installed; pip install -e '.[docs]'",
)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_of(file: Path) -> str:
    reader = _Text()
    reader.feed(file.read_text())
    return "".join(reader.parts)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the HTML, as `make docs` builds it but for defaults as they are written, which take a third of the
    time."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(folder)]
    command += ["-D", "autodoc_preserve_defaults=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@NEEDS_SPHINX
def test_the_tables_of_detectrons_keys_have_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from from_the_code import _tables_of_keys

    from ssd.detectors.detectron.config.keys import KEYS

    rows = [line for line in _tables_of_keys(KEYS) if line.startswith("   * - ``")]
    assert sorted(rows) == sorted(f"   * - ``{name}``" for name in KEYS)


@NEEDS_SPHINX
@pytest.mark.slow
def test_detectrons_page_has_every_name_and_key(built: Path) -> None:
    from ssd.detectors.detectron.config.keys import KEYS
    from ssd.detectors.detectron.config.shipped import NAMES

    text = text_of(built / "detectron.html")
    assert [word for word in (*KEYS, *NAMES) if word not in text] == []


@NEEDS_SPHINX
@pytest.mark.slow
def test_the_page_on_files_of_distillation_has_every_name_and_key(built: Path) -> None:
    from ssd.distillation.detectron2_config.distill_keys import DISTILL
    from ssd.distillation.detectron2_config.model_keys import MODEL
    from ssd.distillation.detectron2_config.run_keys import RUN
    from ssd.distillation.detectron2_config.shipped import NAMES

    text = text_of(built / "distillation-files.html")
    own = [name for name, key in MODEL.items() if key.default is not None]
    parts = [part for name in NAMES for part in name.split("Res50_2x_")]
    assert [word for word in (*DISTILL, *RUN, *own, *parts) if word not in text] == []


@NEEDS_SPHINX
@pytest.mark.slow
def test_the_reference_has_every_flag_of_every_command(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from from_the_code import command_name

    from ssd.cli.commands import every_parser

    text = text_of(built / "reference" / "flags.html")
    made = every_parser()
    assert {command_name(parser).split()[1] for parser in made} == COMMANDS.keys()
    for parser in made:
        flags = {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}
        assert [flag for flag in flags if flag not in text] == [], parser.prog
    assert "SUPPRESS" not in text and "%(" not in text


@NEEDS_SPHINX
@pytest.mark.slow
@pytest.mark.parametrize("package", ["ssd", "pipelines"])
def test_the_reference_has_every_module(built: Path, package: str) -> None:
    text = text_of(built / "reference" / f"{package}.html")
    files = [file.relative_to(ROOT) for file in (ROOT / package).rglob("[!_]*.py")]
    modules = [".".join(file.with_suffix("").parts) for file in files]
    assert len(modules) > 10 and [name for name in modules if name not in text] == []


@NEEDS_SPHINX
@pytest.mark.slow
def test_docstrings_are_laid_out(built: Path) -> None:
    html = (built / "reference" / "ssd.html").read_text()
    assert "<strong>defaults_ltrb</strong>: A x 4" in html  # in the middle of a line of ssd300.matching.match
    assert "Alias for field number" not in html


@pytest.mark.parametrize("name", ["README.rst", "CONTRIBUTING.rst"])
def test_a_text_at_the_top_level_renders(name: str) -> None:
    docutils = pytest.importorskip("docutils.core", reason="docutils is not installed; pip install -e '.[docs]'")
    # Plain docutils, which knows none of Sphinx's roles and directives: so the project's host and the index have it.
    docutils.publish_string(
        (ROOT / name).read_text(), source_path=str(ROOT / name), writer="null", settings_overrides={"halt_level": 2}
    )


@pytest.mark.parametrize(
    "name", ["README.rst", "CONTRIBUTING.rst", *sorted(p.name for p in (ROOT / "docs").glob("*.rst"))]
)
def test_what_a_text_names_is_there(name: str) -> None:
    file = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
    named = re.findall(r"``((?:ssd|pipelines|tests|benchmarks|docs|docker|launch)/[\w./-]*)``", file.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readme_is_two_screens_long() -> None:
    """A hundred lines of text, and some of markup; what does not fit has a page in docs/."""
    assert len((ROOT / "README.rst").read_text().splitlines()) <= 120
