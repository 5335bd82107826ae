"""What a person sees of a run: a live view in a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resd.config import RunConfig
from resd.errors import one_line, terminal_safe
from resd.loop.clock import describe_phases
from resd.loop.evaluate import Baseline, Evaluation

# Seconds without a line after which a run in plain lines says how far it is.
_SILENCE_S = 30.0


class RunView(Protocol):
    """Told of everything that happens in a run."""

    def begin(self, config: RunConfig, step: int, steps: int) -> None:
        """The run starts, or goes on after `step`; 0 steps in all are not known ones."""

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of a part of a step or evaluation is done: of the rollouts, of the update."""

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None:
        """A step is done; `lesson` is the newest playbook entry, if there is a new one."""

    def evaluated(self, step: int, result: Evaluation) -> None:
        """An evaluation is done."""

    def warn(self, text: str) -> None:
        """Something was skipped."""

    def finished(self, path: Path, best: int, evaluations: Sequence[Mapping[str, float]]) -> None:
        """The run is complete."""

    def close(self) -> None:
        """Give the terminal back."""


def make_view(console: Console | None = None) -> RunView:
    """A live view if the output is a terminal, else plain lines."""
    console = console or Console()
    return LiveView(console) if console.is_terminal else PlainView()


class MuteView:
    """Shows nothing: for the processes beside the first."""

    def begin(self, config: RunConfig, step: int, steps: int) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None: ...

    def evaluated(self, step: int, result: Evaluation) -> None: ...

    def warn(self, text: str) -> None: ...

    def finished(
        self, path: Path, best: int, evaluations: Sequence[Mapping[str, float]]
    ) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """One line an event."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._part = ("", 0, self._heard)

    def begin(self, config: RunConfig, step: int, steps: int) -> None:
        self._steps, self._first, self._began = steps, step, time.monotonic()
        self._heard = self._began
        where = f" from step {step}" if step else ""
        length = f", {steps} steps" if steps else ""
        self._say(f"{config.method.name} on {config.task}{length}{where}, seed {config.seed}")

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        name, before, since = self._part
        if name != what or done < before:
            since = now
        self._part = (what, done, since)
        if now - self._heard > _SILENCE_S:
            left = f", about {(now - since) / done * (total - done):.0f} s left" if done else ""
            self._say(f"  {what}: {done} of {total}{left}")

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None:
        of = f"/{self._steps}" if self._steps else ""
        text = f"step {step}{of}  passed {row['rollout/passed']:.2f}"
        if "train/loss" in row:
            text += f"  loss {row['train/loss']:.4f}"
        if "playbook/entries" in row:
            text += f"  playbook {row['playbook/entries']:.0f}"
        if self._steps:
            spent = time.monotonic() - self._began
            left = spent / max(1, step - self._first) * (self._steps - step)
            text += f"  left {left:.0f} s"
        self._say(text + (f"  learnt: {lesson}" if lesson else ""))
        if phases := describe_phases(row):
            self._say(f"  seconds: {phases}")

    def evaluated(self, step: int, result: Evaluation) -> None:
        self._say(f"step {step}  {describe(result)}")

    def warn(self, text: str) -> None:
        print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)

    def finished(self, path: Path, best: int, evaluations: Sequence[Mapping[str, float]]) -> None:
        self._say(f"done: {path}  (model in {path / 'final'}, best step {best})")

    def close(self) -> None: ...

    def _say(self, text: str) -> None:
        self._heard = time.monotonic()
        print(terminal_safe(text, sys.stdout), flush=True)


class LiveView:
    """Progress bar, accuracy, playbook size, the last lesson learnt, time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._doing = ("", 0)
        self._facts: dict[str, str] = {}
        self._history: list[float] = []
        self._live = Live(console=console, get_renderable=self._render)

    def begin(self, config: RunConfig, step: int, steps: int) -> None:
        title = escape(one_line(f"{config.method.name} on {config.task}"))
        self._task = self._progress.add_task(title, total=steps or None, completed=step)
        # What is done within a step stands below the steps, with a time of its own.
        self._part = self._progress.add_task("", total=None, visible=False)
        self._live.start()

    def progress(self, what: str, done: int, total: int) -> None:
        name, before = self._doing
        if name != what or done < before:
            self._progress.reset(self._part, total=total, description=escape(f"  {what}"))
        self._doing = (what, done)
        self._progress.update(self._part, completed=done, total=total, visible=True)

    def stepped(self, step: int, row: Mapping[str, Any], lesson: str) -> None:
        self._rest()
        self._progress.update(self._task, completed=step)
        self._facts["rollouts passed"] = f"{row['rollout/passed']:.0%}"
        if "train/loss" in row:
            self._facts["loss"] = f"{row['train/loss']:.4f}"
        if "playbook/entries" in row:
            size = f"{row['playbook/entries']:.0f} lessons"
            self._facts["playbook"] = f"{size}, {row['playbook/candidates']:.0f} candidates"
        if phases := describe_phases(row):
            self._facts["seconds"] = phases
        if lesson:
            self._facts["last lesson"] = lesson[:100]

    def evaluated(self, step: int, result: Evaluation) -> None:
        self._rest()
        self._history.append(result.mean)
        self._facts["accuracy"] = f"{describe(result)}  {_spark(self._history)}"

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]warning[/]: {escape(one_line(text))}")

    def finished(self, path: Path, best: int, evaluations: Sequence[Mapping[str, float]]) -> None:
        self.close()
        text = f"done: {path}  (model in {path / 'final'}, best step {best})"
        self._console.print(terminal_safe(text), markup=False)

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _rest(self) -> None:
        self._doing = ("", 0)
        self._progress.update(self._part, visible=False)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self._facts.items():
            table.add_row(f"[dim]{name}", Text(terminal_safe(value)))
        return Group(self._progress, table)


def describe(result: Evaluation) -> str:
    """The evaluation in a few words."""
    n = result.samples
    text = f"mean@{n} {result.mean:.3f}  best@{n} {result.best:.3f}"
    if (result.case_mean, result.case_best) != (result.mean, result.best):
        text += f"  cases: mean@{n} {result.case_mean:.3f}  best@{n} {result.case_best:.3f}"
    if result.retention:
        kept = ", ".join(f"{name} {value:.2f}" for name, value in result.retention.items())
        text += f"  (kept: {kept})"
    beside = [f"{name} {_baseline(b)}" for name, b in result.baselines.items()]
    return f"{text}  (trivial: {', '.join(beside)})" if beside else text


def _baseline(baseline: Baseline) -> str:
    if baseline.case_mean == baseline.mean:
        return f"{baseline.mean:.3f}"
    return f"{baseline.mean:.3f}, cases {baseline.case_mean:.3f}"


def _spark(values: Sequence[float]) -> str:
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(value * 8))] for value in values)
