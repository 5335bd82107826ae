"""`resd report`, `resd watch` and `resd traces`: what there is to see of a run."""

from __future__ import annotations

import argparse
import time
import webbrowser
from pathlib import Path
from typing import Any

from resd.errors import UserError

# Tables of `resd.report.tables`, which takes a while to import.
FORMATS = ("jsonl", "parquet", "datasets")

# Seconds between two pages of a run that goes on, and how much longer than making one it is.
_EVERY_S = 10
_PAUSE = 20


def add_commands(commands: Any) -> None:
    """`resd report`, `resd watch` and `resd traces`."""
    _add_report(commands.add_parser("report", help="a run's page, one HTML file"))
    shown = commands.add_parser("watch", help="the live view of a run that goes on elsewhere")
    shown.add_argument("run_directory", type=Path, help="the run")
    shown.set_defaults(run=_watch)
    kept = commands.add_parser("traces", help="what a run kept of its rollouts")
    actions = kept.add_subparsers(metavar="ACTION", required=True)
    export = actions.add_parser("export", help="write it as tables")
    export.add_argument("run_directory", type=Path, help="the run")
    export.add_argument("--to", choices=FORMATS, default="jsonl", help="default: jsonl")
    export.add_argument("--output", type=Path, help="directory (default: export in the run)")
    export.set_defaults(run=_export)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path, help="a run, or what resd compare wrote")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    parser.add_argument(
        "--follow", action="store_true", help="make it again until the run is complete"
    )
    parser.add_argument("--output", type=Path, help="the file (default: report.html there)")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    run: Path = options.run_directory
    output: Path = options.output or run / "report.html"
    if output.is_dir():
        raise UserError(f"--output: {output} is a directory; name a file, as in page.html")
    if options.follow and not (run / "config.toml").is_file():
        raise UserError(f"--follow: {run} is no run (yet)")
    every, began = _EVERY_S, time.monotonic()
    write(run, output, every=every if options.follow else None)
    if options.open:
        webbrowser.open(output.resolve().as_uri())
    while options.follow and not (run / "done.json").is_file():
        # A page that takes long to make is made seldom: the run needs the processor too.
        every = max(_EVERY_S, round(_PAUSE * (time.monotonic() - began)))
        time.sleep(every)
        complete, began = (run / "done.json").is_file(), time.monotonic()
        write(run, output, every=None if complete else every, say=complete)
    return 0


def write(run: Path, output: Path, *, every: int | None = None, say: bool = True) -> None:
    """Write the page of a run or of a comparison, and say where it is."""
    from resd.report.page import write_page

    write_page(run, output, every=every)
    if say:
        print(f"written to {output}", flush=True)


def _watch(options: argparse.Namespace) -> int:
    from resd.loop.view import make_view
    from resd.loop.watch import watch

    watch(options.run_directory, make_view())
    return 0


def _export(options: argparse.Namespace) -> int:
    from resd.report.tables import export

    output = options.output or options.run_directory / "export"
    if output.is_file():
        raise UserError(f"--output: {output} is a file; name a directory")
    for place in export(options.run_directory, options.to, output):
        print(f"written to {place}")
    return 0
