"""What a person sees of a comparison that is going on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resd.compare.plan import Run
from resd.errors import one_line
from resd.report.results import RunResult, newest


class ComparisonView(Protocol):
    """Told of every run."""

    def started(self, run: Run) -> None:
        """The run starts, or goes on."""

    def finished(self, run: Run, result: RunResult, reused: bool) -> None:
        """The run is complete; if `reused`, it was so before."""

    def failed(self, run: Run, reason: str) -> None:
        """The run has no result."""

    def close(self) -> None:
        """Give the terminal back."""


def make_comparison_view(total: int, logs: Path, console: Console) -> ComparisonView:
    """A live view if the output is a terminal, else a line a finished run."""
    view = LiveComparisonView if console.is_terminal else PlainComparisonView
    return view(total, logs, console)


class PlainComparisonView:
    """One line a finished run."""

    def __init__(self, total: int, logs: Path, console: Console) -> None:
        self._total, self._logs, self._console = total, logs, console
        self._done = 0
        self._began: dict[str, float] = {}

    def started(self, run: Run) -> None:
        """Note when."""
        self._began[run.name] = time.monotonic()

    def finished(self, run: Run, result: RunResult, reused: bool) -> None:
        """Print the last evaluation."""
        n, last = result.samples, result.final
        spent = "" if reused else f"  {self._spent(run):.0f} s"
        text = f"mean@{n} {last.mean:.3f}  best@{n} {last.best:.3f}  {result.rollouts} rollouts"
        self._line(run, text + spent + ("  (finished before)" if reused else ""))

    def failed(self, run: Run, reason: str) -> None:
        """Print why."""
        self._line(run, one_line(f"FAILED: {reason} (see {self._logs / run.name}.err)"))

    def close(self) -> None:
        """Nothing was taken."""

    def _line(self, run: Run, text: str) -> None:
        self._done += 1
        self._began.pop(run.name, None)
        line = f"[{self._done}/{self._total}] {one_line(run.name)}  {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _spent(self, run: Run) -> float:
        return time.monotonic() - self._began.get(run.name, time.monotonic())


class LiveComparisonView(PlainComparisonView):
    """The same lines, and below them the runs that are going on."""

    def __init__(self, total: int, logs: Path, console: Console) -> None:
        super().__init__(total, logs, console)
        self._running: dict[str, Run] = {}
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._render)
        self._live.start()

    def started(self, run: Run) -> None:
        """Show it below."""
        super().started(run)
        self._running[run.name] = run
        self._live.refresh()

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()

    def _line(self, run: Run, text: str) -> None:
        self._running.pop(run.name, None)
        super()._line(run, text)

    def _render(self) -> Group:
        # No markup: what is printed above the live part decides whether it would be understood.
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(self._total, self._done, width=30)
        head.add_row(Text("compare", "bold"), bar, Text(f"{self._done}/{self._total} runs"))
        table = Table.grid(padding=(0, 2))
        for run in list(self._running.values()):
            step, mean = newest(run.path)
            steps, n = run.config.train.steps, run.config.evaluation.samples
            table.add_row(
                Text(one_line(run.name)),
                Text(f"step {step}" + (f"/{steps}" if steps else "")),
                Text(f"mean@{n} {mean:.3f}" if mean is not None else ""),
                Text(f"{self._spent(run):.0f} s", "dim"),
            )
        return Group(head, table)
