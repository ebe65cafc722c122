"""What the project's pages are made of: one HTML file each, which needs no other."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


def page(title: str, subtitle: str, body: str) -> str:
    """The whole document. body: HTML, made of what the functions below return."""
    return _PAGE.format(title=escape(title), subtitle=escape(subtitle), body=body)


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Pairs of a figure and what it is, large and in a row."""
    return f'<div class="cards">{"".join(_card(*each) for each in figures)}</div>'


def _card(figure: str, what: str) -> str:
    return f'<div class="card"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'


def picture(file: Path, caption: str) -> str:
    """A PNG or JPEG file, held in the page, with the text under it."""
    kind = "jpeg" if file.suffix == ".jpg" else "png"
    content = base64.b64encode(file.read_bytes()).decode()
    source = f"data:image/{kind};base64,{content}"
    return (
        f'<figure><img src="{source}" alt="{file.stem.replace("_", " ")}"/><figcaption>{caption}</figcaption></figure>'
    )


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A row's first cell is its name."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str]) -> str:
    name, *values = row
    return f"<th>{escape(name)}</th>" + "".join(f"<td>{escape(value)}</td>" for value in values)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  color: #24292f; background: #f6f8fa; margin: 0; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }}
h1 {{ font-size: 28px; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 19px; margin: 40px 0 12px; }}
p {{ margin: 4px 0 0; color: #57606a; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0; }}
.card {{ background: #fff; border: 1px solid #d8dee4; border-radius: 8px; padding: 10px 18px; min-width: 84px; }}
.card b {{ display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }}
.card span {{ color: #57606a; font-size: 13px; }}
.columns {{ columns: 2 440px; column-gap: 16px; }}
figure {{ background: #fff; border: 1px solid #d8dee4; border-radius: 8px; margin: 0 0 16px; padding: 14px;
  break-inside: avoid; }}
img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; }}
figcaption {{ color: #57606a; font-size: 13px; margin-top: 8px; }}
.scroll {{ overflow-x: auto; background: #fff; border: 1px solid #d8dee4; border-radius: 8px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 5px 12px; border-top: 1px solid #eaeef2; overflow-wrap: anywhere; }}
thead th {{ border-top: 0; color: #57606a; font-weight: 600; }}
th:first-child {{ text-align: left; font-weight: 500; white-space: nowrap; }}
.list table {{ table-layout: fixed; }}
.list td {{ text-align: left; }}
.list th:first-child {{ width: 170px; }}
.list thead th {{ text-align: left; }}
summary {{ color: #57606a; cursor: pointer; padding: 10px 12px; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{subtitle}</p>
{body}
</main>
</body>
</html>
"""
