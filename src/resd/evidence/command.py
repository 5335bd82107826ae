"""`resd evidence`: run the registered experiments, and say which claims hold.

What it leaves:

    output/evidence.md       a row a claim, and a section an experiment
    output/evidence.json     the same as data, with the values of every dialect
    output/figures/          a picture an experiment
    output/runs/NAME-HASH/   a run each, named by what it is made of; without its models
    output/made/             with which code each was made, and how long that took
    output/logs/             what runs printed
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd.compare.plan import Command, Run, State, check_jobs, make_folders, train_command
from resd.compare.progress import ComparisonView, make_comparison_view
from resd.compare.runner import run_all
from resd.errors import terminal_safe
from resd.evidence import made
from resd.evidence.plan import Planned, code_version, plan
from resd.evidence.registry import Experiment, chosen, load_experiments
from resd.evidence.results import Result, gather
from resd.evidence.write import claim_rows, write_report
from resd.report.results import RunResult


def evidence(
    only: Sequence[str],
    output: Path,
    *,
    quick: bool = False,
    listing: bool = False,
    jobs: int = 1,
    experiments: Mapping[str, Experiment] | None = None,
    run_command: Command = train_command,
    console: Console | None = None,
) -> int:
    """Run experiments one after the other, and write down what came of them after each.

    Runs that are there are used as they are, so the same call goes on with what was stopped.

    Args:
        only: names of experiments; all by default, or with `quick` those that are made for it.
        output: directory.
        quick: a few steps on few dialects, to see that everything works.
        listing: only say what there is to run.
        jobs: runs at a time.
        experiments: by default those that ship.
        run_command: makes the command line of a run; by default `resd train`.
        console: where to show progress and table.

    Returns:
        0, or 1 if a run has no result, or 130 if somebody stopped it.

    Raises:
        UserError: something is wrong that the user can mend; said before anything runs.
    """
    check_jobs(jobs)
    console = console or Console()
    every = load_experiments() if experiments is None else dict(experiments)
    picked = chosen(every, only)
    if quick and not only:
        picked = {name: experiment for name, experiment in picked.items() if experiment.quick}
    plans = {name: plan(every, name, output, quick) for name in every}
    if listing:
        _list(picked, plans, console)
        return 0
    make_folders(output, "runs", "made", "logs", "figures")
    failures: dict[str, str] = {}

    def report() -> list[Result]:
        """Of what was asked for, and of whatever else there is in the directory."""
        results = gather(every, plans, failures, output, quick)
        results = [result for result in results if result.name in picked or result.complete]
        write_report(results, output, quick)
        return results

    try:
        for name in picked:
            if _run(name, plans[name], output, jobs, run_command, failures, console):
                report()
    except KeyboardInterrupt:
        report()
        print("resd: stopped; the same command goes on with it", file=sys.stderr)
        return 130
    _show([result for result in report() if result.name in picked], console, output)
    return 1 if failures else 0


def _run(
    name: str,
    planned: Sequence[Planned],
    output: Path,
    jobs: int,
    command: Command,
    failures: dict[str, str],
    console: Console,
) -> bool:
    """Make what is missing of an experiment; returns whether there was anything to do.

    Args:
        name: of the experiment.
        planned: its runs.
        output: directory.
        jobs: runs at a time.
        command: makes the command line of a run.
        failures: gets why runs failed; what failed for another experiment is not tried again.
        console: where to show progress.
    """
    runs = list({item.run.path: item.run for item in planned}.values())
    waiting = [r for r in runs if r.state() is not State.FINISHED and r.name not in failures]
    if not waiting:
        return False
    console.print(f"{name}: {len(waiting)} of {len(runs)} runs to do", highlight=False)
    noted = made.Noting(command, output / "made", code_version())
    view = make_comparison_view(len(waiting), output / "logs", console)
    try:
        failures |= run_all(waiting, jobs, output / "logs", _Keeping(view, noted), noted)
    finally:
        view.close()
    return True


class _Keeping:
    """Passes everything on, and keeps of a finished run what the report reads."""

    def __init__(self, view: ComparisonView, noted: made.Noting) -> None:
        self._view, self._noted = view, noted

    def started(self, run: Run) -> None:
        self._view.started(run)

    def finished(self, run: Run, result: RunResult, reused: bool) -> None:
        self._noted.finished(run)
        made.without_models(run.path)
        self._view.finished(run, result, reused)

    def failed(self, run: Run, reason: str) -> None:
        self._view.failed(run, reason)

    def close(self) -> None:
        self._view.close()


def _list(
    picked: Mapping[str, Experiment], plans: Mapping[str, Sequence[Planned]], console: Console
) -> None:
    """What there is to run, in order; a run that several share counts where it comes first."""
    table = Table(box=None, pad_edge=False)
    for heading in ("experiment", "runs", "new", "done", "of", "title"):
        table.add_column(heading, justify="right" if heading in ("runs", "new", "done") else "left")
    seen: set[Path] = set()
    totals = [0, 0]
    for name, experiment in picked.items():
        paths = {item.run.path: item.run for item in plans[name]}
        new = [run for path, run in paths.items() if path not in seen]
        done = sum(run.state() is State.FINISHED for run in new)
        seen.update(paths)
        totals[0] += len(new)
        totals[1] += done
        note = " (out of reach)" if experiment.out_of_reach else ""
        cells = (str(experiment.runs), str(len(new)), str(done), experiment.source)
        table.add_row(name, *cells, Text(experiment.title + note))
    table.add_row("", "", str(totals[0]), str(totals[1]), "", "")
    console.print(table)


def _show(results: Sequence[Result], console: Console, output: Path) -> None:
    for row in claim_rows(results):
        text = f"{row.verdict:<12} {row.effect:<26} {row.experiment}: {row.text}"
        console.print(terminal_safe(text), markup=False, highlight=False, soft_wrap=True)
    for result in results:
        for name, reason in result.failures.items():
            line = f"{result.name}: {name} has no result: {reason}"
            console.print(terminal_safe(line), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {output / 'evidence.md'}", highlight=False, soft_wrap=True)
