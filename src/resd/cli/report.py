"""`resd report`, `resd watch` and `resd traces`: what there is to see of a run."""

from __future__ import annotations

import argparse
import time
import webbrowser
from pathlib import Path

from resd.errors import UserError

# Seconds between two pages of a run that goes on.
_EVERY_S = 10


def add_report(parser: argparse.ArgumentParser) -> None:
    """Arguments of `resd report`."""
    parser.add_argument("run_directory", type=Path, help="the run")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    parser.add_argument(
        "--follow", action="store_true", help="make it again until the run is complete"
    )
    parser.add_argument("--output", type=Path, help="the file (default: report.html in the run)")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from resd.report.page import write_page

    run: Path = options.run_directory
    output: Path = options.output or run / "report.html"
    if output.is_dir():
        raise UserError(f"--output: {output} is a directory; name a file, as in page.html")
    every = _EVERY_S if options.follow else None
    write_page(run, output, every=every)
    print(f"written to {output}", flush=True)
    if options.open:
        webbrowser.open(output.resolve().as_uri())
    while options.follow and not (run / "done.json").is_file():
        time.sleep(_EVERY_S)
        write_page(run, output, every=every)
    return 0
