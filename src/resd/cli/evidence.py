"""`resd evidence`: the registered experiments, and which claims hold."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd evidence`."""
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="this experiment alone; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps on 3 dialects: does everything work?"
    )
    parser.add_argument("--list", action="store_true", help="what there is to run, and stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("evidence"), help="directory")
    parser.set_defaults(run=_evidence)


def _evidence(options: argparse.Namespace) -> int:
    from resd.evidence.command import evidence

    return evidence(
        options.only,
        options.output,
        quick=options.quick,
        listing=options.list,
        jobs=options.jobs,
    )
