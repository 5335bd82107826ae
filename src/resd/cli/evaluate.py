"""`resd eval`: any model on any task, with or without a playbook."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from resd.errors import one_line, terminal_safe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd eval`."""
    parser.add_argument("model", help="a run directory, a model directory, 'lab', or a hub id")
    parser.usage = "resd eval MODEL [options] [--KEY VALUE ...]"
    parser.description = "Settings as in resd train go with it, after the model."
    parser.add_argument("--which", choices=("final", "best"), default="final", help="of a run")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML, in place of the run's")
    parser.add_argument("--task", help="the task (default: the run's, or the lab)")
    parser.add_argument(
        "--context", choices=("none", "playbook"), default="none", help="shown beside the question"
    )
    parser.add_argument(
        "--playbook", type=Path, help="run or playbook.json to show (default: the run's own)"
    )
    parser.add_argument("--samples", type=int, default=None, help="n of mean@n and best@n")
    parser.add_argument("--seed", type=int, default=None, help="default: the run's")
    parser.add_argument(
        "--output", type=Path, help="directory of the answers (default: in the run, or in runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what was found, and where the answers are."""
    from resd.loop.view import describe
    from resd.measure import at_least, default_output, measure

    named = list(options.overrides)
    if options.samples is not None:
        named.append(("evaluation.samples", at_least(1, options.samples, "--samples")))
    if options.seed is not None:
        named.append(("seed", at_least(0, options.seed, "--seed")))
    if options.task is not None:
        named.append(("task", options.task))
    result, place = measure(
        options.model,
        named,
        which=options.which,
        file=options.config,
        context=options.context,
        playbook=options.playbook,
        output=options.output or default_output(options.model, options.which, options.context),
    )
    if result.failed:
        print(
            f"warning: the environment failed on {result.failed} responses, which count as not "
            f"passed; the first: {one_line(str(result.first_failure))}",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps({**result.row(), "answers": str(place)}))
    else:
        print(terminal_safe(f"{describe(result)}\nanswers: {place}", sys.stdout))
    return 0
