"""`resd compare`: several methods and seeds, one table and one picture.

What it leaves:

    output/LABEL-sSEED/           a run directory each
    output/logs/LABEL-sSEED.err   what it wrote to standard error; .out what it printed
    output/table.md               the table
    output/results.json           settings, summaries and curves
    output/compare.png, .svg      validation accuracy against rollouts
    output/shared.toml            the config file, as it was when the runs were started
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from resd.compare.plan import (
    Command,
    Run,
    State,
    check_jobs,
    make_folders,
    make_runs,
    train_command,
    with_file_kept,
)
from resd.compare.progress import make_comparison_view
from resd.compare.runner import run_all
from resd.compare.variants import Variant, parse_seeds, parse_variants
from resd.errors import one_line, terminal_safe
from resd.report.results import Summary, summarise
from resd.report.table import as_json, failure_lines, markdown_table, notes, rich_table, title
from resd.runs import atomic

__all__ = ["Variant", "compare", "parse_seeds", "parse_variants"]


def compare(
    config_file: Path | None,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    shared: Sequence[tuple[str, Any]],
    jobs: int,
    output: Path,
    *,
    command: Command = train_command,
    console: Console | None = None,
) -> int:
    """Run every variant with every seed, and compare.

    A run that is finished is used as it is, one that broke off goes on; so the same call goes on
    with a comparison that was stopped, and a call with more seeds or variants adds to it.

    Args:
        config_file: TOML that all runs share.
        variants: the curves.
        seeds: of each variant.
        shared: dotted settings of all runs; those of a variant win over them.
        jobs: runs at a time.
        output: directory.
        command: makes the command line of a run.
        console: where to show progress and table.

    Returns:
        0, or 1 if a run has no result, or 130 if somebody stopped it.

    Raises:
        UserError: something is wrong that the user can mend; said before anything runs.
    """
    check_jobs(jobs)
    runs = make_runs(config_file, variants, seeds, shared, output)
    console = console or Console()
    make_folders(output, "logs")
    if any(run.state() is not State.FINISHED for run in runs):
        runs = with_file_kept(runs, output)
    view = make_comparison_view(len(runs), output / "logs", console)
    try:
        failures = run_all(runs, jobs, output / "logs", view, command)
    except KeyboardInterrupt:
        view.close()
        print("resd: stopped; the same command goes on with it", file=sys.stderr)
        return 130
    finally:
        view.close()
    summaries = summarise(runs, failures)
    _write(summaries, runs, output)
    _show(summaries, console, output)
    if failures:
        what = f"{len(failures)} of {len(runs)} runs have no result"
        print(f"resd: {one_line(what)}; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0


def _write(summaries: Sequence[Summary], runs: Sequence[Run], output: Path) -> None:
    # Nobody's error message shall be read as Markdown.
    failures = [f"`{line.replace('`', chr(39))}`" for line in failure_lines(summaries)]
    text = [f"**{title(summaries)}**", markdown_table(summaries), *notes(summaries), *failures]
    atomic.write_text(output / "table.md", "\n\n".join(part.rstrip() for part in text) + "\n")
    atomic.write_json(output / "results.json", as_json(summaries, runs))
    pictures = output / "compare.png", output / "compare.svg"
    if any(summary.results for summary in summaries):
        from resd.report.plot import save_pictures  # matplotlib takes a while to import

        save_pictures(summaries, *pictures)
    else:
        for picture in pictures:
            picture.unlink(missing_ok=True)


def _show(summaries: Sequence[Summary], console: Console, output: Path) -> None:
    if console.is_terminal:
        console.print(rich_table(summaries, console))
    else:
        # A pipe has no width; a table cut to 80 columns there would be of no use.
        _print(console, f"{title(summaries)}\n\n{markdown_table(summaries)}")
    for line in [*notes(summaries), *failure_lines(summaries)]:
        _print(console, line)
    names = ("table.md", "results.json", "compare.png", "compare.svg")
    there = [name for name in names if (output / name).exists()]
    _print(console, f"written to {output}: {', '.join(there)}")


def _print(console: Console, text: str) -> None:
    console.print(
        terminal_safe(text), markup=False, highlight=False, soft_wrap=not console.is_terminal
    )
