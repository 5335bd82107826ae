"""One HTML file of a run: the template with styles, scripts and the packed data inside it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from resd.report.page.comparison import comparison_data, is_comparison, write_pages
from resd.report.page.data import LEVELS, first_level, page_data
from resd.runs import atomic

_HERE = Path(__file__).parent
_SCRIPTS = (
    *("dom.js", "chart.js", "summary.js", "playbook.js", "tokens.js", "stories.js"),
    *("comparison.js", "page.js"),
)
# Bytes of a page (the promise is 5 MB), less what template, styles and scripts take.
_MOST_PACKED = 4_700_000


def run_page(run: Path, *, every: int | None = None, most: int = _MOST_PACKED) -> str:
    """The page of a run.

    Args:
        run: its directory.
        every: seconds after which the page loads itself again; None for never.
        most: most bytes of its packed data; stories are shortened until it fits.

    Raises:
        UserError: it is no run.
    """
    packed = ""
    data: dict[str, Any] = {}
    for level in range(first_level(run), len(LEVELS)):
        data = page_data(run, level)
        packed = pack(data)
        if len(packed) <= most:
            break
    return page(f"{data['name']}: {data['headline']['task']}", packed, every)


def write_page(run: Path, output: Path, *, every: int | None = None) -> None:
    """Write the page of a run or of a comparison, atomically.

    Args:
        run: the directory; of a comparison each finished run gets its page too.
        output: the file.
        every: see `run_page`.

    Raises:
        UserError: it is neither, or the file cannot be written.
    """
    if is_comparison(run):
        write_pages(run, write_page)
        data = comparison_data(run)
        text = page(data["name"], pack(data))
    else:
        text = run_page(run, every=every)
    atomic.write_text(output, text, lasting=False)


def page(title: str, packed: str, every: int | None = None) -> str:
    """An HTML file around packed data."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    scripts = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return environment.get_template("page.html.jinja").render(
        title=title,
        styles=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        scripts=Markup(scripts),
        data=packed,
        every=every or 0,
    )


def pack(data: Mapping[str, Any]) -> str:
    """Data as gzip in base64: no text of a model can be read as HTML, and it takes little room."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    raw = gzip.compress(text.encode("utf-8", "replace"), mtime=0)
    return base64.b64encode(raw).decode("ascii")
