"""`resd probe`: whether the method can work for a task and a model, in minutes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from resd.errors import UserError, terminal_safe

if TYPE_CHECKING:
    from resd.loop.probe import Probed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd probe`."""
    parser.usage = "resd probe TASK MODEL [--KEY VALUE ...] [options]"
    parser.description = "Settings as in resd train go with it, for example --preset real-small."
    parser.add_argument("task", metavar="TASK", help="as in resd train --task")
    parser.add_argument("model", metavar="MODEL", help="as in resd train --model.path")
    parser.add_argument("--examples", type=int, default=16, help="training examples used")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what each section of the teacher's prompt does for the right answer."""
    from resd.measure import probe_model

    if options.examples < 2:
        raise UserError(f"--examples must be at least 2, found {options.examples}")
    named = [("task", options.task), ("model.path", options.model), *options.overrides]
    found = probe_model(named, options.examples)
    if options.json:
        print(json.dumps({**asdict(found), "verdict": found.verdict()}))
    else:
        print(terminal_safe(table(found)))
    return 0


def table(found: Probed) -> str:
    """A row for each section, the notes, and the verdict."""
    lines = [
        f"right answer under the question alone: log p {found.bare:.2f} nats, the likeliest on "
        f"{found.bare_right:.0%}; sampled trials passed: {found.passed:.0%}",
        "",
        f"{'beside the question':<20}{'gain':>8}{'+-':>6}{'another':>9}{'above it':>10}{'+-':>6}"
        f"{'likeliest':>11}{'examples':>10}",
    ]
    for name, gain in found.gains.items():
        lines.append(
            f"{name:<20}{gain.mean:>+8.2f}{gain.error:>6.2f}{gain.shuffled:>+9.2f}"
            f"{gain.above:>+10.2f}{gain.above_error:>6.2f}{gain.right:>11.0%}{gain.examples:>10}"
        )
    lines += [
        "",
        "gain: nats that the log-probability of the right answer rises by; another: the same with "
        "the sections",
        "of another example (of the lessons, with their last words exchanged); +-: standard error",
        *found.notes,
        found.verdict(),
    ]
    return "\n".join(lines)
