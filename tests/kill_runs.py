"""Runs that are killed, or whose disk is full, and resumed; compared with the run that was not.

    python kill_runs.py PLANS.json

PLANS.json holds a list of plans, and a plan
    place     scratch directory
    settings  dotted settings of the run
    unit      what is counted: "write" (the barriers between writes) or "system_call" (of Python,
              that changes the file system)
    fault     what happens there: "kill" (SIGKILL) or "full" (no file can grow any more)
    cases     "all"; "kinds", one of every kind of write; "some", of every sixth kind; or a list of
              cases, each a list of where the first process, its resumption, and so on meet the
              fault: the count; below 1 a fraction of the whole run's count; or the last write whose
              name starts so

and a list of reports is printed as JSON. Every process is a fork of this one, which has imported
everything already: a case takes about a second. The children do not fsync: a kill leaves the page
cache alone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import tiny
import torch
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from resd.cli import main
from resd.loop.trainer import Trainer
from resd.runs import atomic

torch.set_num_threads(1)
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def count_writes(tick: Callable[[str], None]) -> None:
    """Call `tick` at every barrier between two writes."""
    atomic.barrier = tick


def count_system_calls(tick: Callable[[str], None]) -> None:
    """Call `tick` before every system call of Python that changes the file system."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in _CHANGES or (writes and not str(args[0]).startswith("/dev")):
            tick(event)

    sys.addaudithook(hook)


COUNTERS = {"write": count_writes, "system_call": count_system_calls}


def kill(run: Path, what: str) -> None:
    """Die here."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(run: Path, what: str) -> None:
    """From here on no file grows: a write stops after ten bytes."""
    metrics = run / "metrics.jsonl"
    size = (
        metrics.stat().st_size
        if what == "before append to metrics.jsonl" and metrics.exists()
        else 0
    )
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))


FAULTS = {"kill": kill, "full": fill_disk}


class Attempt:
    """One process: how it ended, what it said, which steps it began, what it counted."""

    def __init__(self, words: list[str], run: Path, unit: str, fault: str, at: int | None) -> None:
        pipes = [os.pipe() for _ in range(3)]
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.dup2(pipes[0][1], 1)
                os.dup2(pipes[1][1], 2)
                code = _run(words, run, unit, fault, at, pipes[2][1])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        for _, write in pipes:
            os.close(write)
        # Each holds far less than a pipe does: one can be read after the other.
        said = [open(read, encoding="utf-8", errors="replace").read() for read, _ in pipes]  # noqa: SIM115
        self.status = os.waitpid(pid, 0)[1]
        self.out, self.err = said[0], said[1]
        steps, _, names = said[2].partition("=")
        self.steps = [int(step) for step in steps.split()]
        self.ticks: list[str] | None = json.loads(names) if names else None


def _run(words: list[str], run: Path, unit: str, fault: str, at: int | None, log: int) -> int:
    os.fsync = lambda fd: None  # type: ignore[assignment]
    tiny.patch_writer()
    step = Trainer._one_step

    def logged(self: Any, batch: Any) -> None:
        os.write(log, f"{self.progress.step} ".encode())
        step(self, batch)

    Trainer._one_step = logged  # type: ignore[method-assign]
    seen: list[str] = []

    def tick(what: str) -> None:
        seen.append(what)
        if len(seen) == at:
            FAULTS[fault](run, what)

    COUNTERS[unit](tick)
    code = main(words)
    os.write(log, f"={json.dumps(seen)}".encode())
    return code


# -- comparing ------------------------------------------------------------------------------------


def snapshot(run: Path) -> dict[str, Any]:
    """All that a run leaves, without times."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.name in ("identity.json", "checksums.json", "warnings.jsonl"):
            # The run's name, the bytes of what is compared below, what every process had to say.
            continue
        if file.is_dir():
            found[name] = "directory"
        elif file.name == ".metadata" and file.parent.name == "tensors":
            found[name] = tiny.tensors_of(file.parent)
        elif file.parent.name == "tensors":
            continue  # how tensors lie in their files is not the run's business
        elif file.name == "random.pt":
            found[name] = torch.load(file, weights_only=True)
        elif name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [
                {k: v for k, v in row.items() if not k.startswith("time/")} for row in rows
            ]
        elif name == "config.toml":
            found[name] = file.read_text().replace(str(run), "RUN")
        else:
            found[name] = file.read_bytes()
    return found


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two snapshots differ, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}/{key}: only in one" for key in a.keys() ^ b.keys()]
        for key in a.keys() & b.keys():
            found += differences(a[key], b[key], f"{where}/{key}")
        return found
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [f"{where}: tensors differ"]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b and type(a) is type(b) else [f"{where}: {a!r:.80} != {b!r:.80}"]


def steps_lost(attempts: list[Attempt]) -> int:
    """Most steps that any resumption did again, beyond the one that was in progress."""
    lost, last = 0, 0
    for steps in (attempt.steps for attempt in attempts):
        if steps:
            assert steps == list(range(steps[0], steps[-1] + 1)), steps
            lost, last = max(lost, last - steps[0]), steps[-1]
    return lost


# -- cases ----------------------------------------------------------------------------------------


class Plan:
    """A run that meets no fault, and what must become of the same run when it does."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.place = plan, Path(plan["place"])
        self.unit, self.fault = plan.get("unit", "write"), plan.get("fault", "kill")
        whole = self.attempt("whole", None)
        if whole.status != 0 or whole.ticks is None:
            raise SystemExit(whole.out + whole.err)
        self.names = whole.ticks
        self.ticks = len(self.names)
        self.whole = snapshot(self.place / "whole")

    def attempt(self, name: str, at: int | None) -> Attempt:
        """Start the run, or go on with it if there is something to go on with."""
        run = self.place / name
        words = ["train", "--resume", str(run)]
        if not (run / "config.toml").exists():
            values = {**self.plan["settings"], "output": str(run)}
            words = ["train", *tiny.arguments(values)]
        return Attempt(words, run, self.unit, self.fault, at)

    def cases(self) -> list[list[int]]:
        """Where each case meets its faults."""
        if self.plan["cases"] == "all":
            return [[n] for n in range(1, self.ticks + 1)]
        if self.plan["cases"] in ("kinds", "some"):
            places: dict[str, list[int]] = {}
            for n, name in enumerate(self.names, start=1):
                places.setdefault(re.sub(r"\d+", "N", name), []).append(n)
            # Neither the first time nor the last, where there are others.
            kinds = [[numbers[len(numbers) // 2]] for numbers in places.values()]
            return kinds if self.plan["cases"] == "kinds" else kinds[1::6]
        return [[self.count(at) for at in case] for case in self.plan["cases"]]

    def count(self, at: float | str) -> int:
        """The count at which a fault happens."""
        if isinstance(at, str):
            return max(n for n, name in enumerate(self.names, start=1) if name.startswith(at))
        return max(1, round(at * self.ticks)) if at < 1 else int(at)

    def run(self, number: int, faults: list[int]) -> dict[str, Any]:
        """Fault, resume, fault, ... and finish; report what is wrong."""
        name = f"case{number}"
        run, problems, attempts = self.place / name, [], []
        for at in [*faults, None]:
            attempt = self.attempt(name, at)
            attempts.append(attempt)
            problems += self.ended_wrongly(attempt, at, (run / "done.json").exists())
        problems += differences(self.whole, snapshot(run))
        settings = self.plan["settings"]
        lost, allowed = steps_lost(attempts), settings.get("checkpoint.every", 1) - 1
        allowed += settings["checkpoint.background"]  # it was being written
        if lost > allowed:
            problems.append(f"lost {lost} steps: {[attempt.steps for attempt in attempts]}")
        if not problems:
            shutil.rmtree(run)
        return {"faults": faults, "problems": problems[:8]}

    def ended_wrongly(self, attempt: Attempt, at: int | None, done: bool) -> list[str]:
        """What is wrong with the way a process ended."""
        status, err = attempt.status, attempt.err
        said = f"status {status} at {at}: {err[-2000:]}"
        if "Traceback" in err:
            return [said]
        refusals = [line for line in err.splitlines() if not line.startswith("warning: ")]
        refused = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 2 and len(refusals) == 1
        if done:
            # A fault after the last write that counts is none; going on is refused.
            return [] if status in (0, signal.SIGKILL) or refused else [said]
        if at is None:
            return [said]
        expected = status == signal.SIGKILL if self.fault == "kill" else refused
        if self.fault == "full" and "cannot write" not in err:
            expected = False
        return [] if expected else [said]


def run_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out a plan."""
    began = time.monotonic()
    whole = Plan(plan)
    results = [whole.run(number, faults) for number, faults in enumerate(whole.cases())]
    return {
        "ticks": whole.ticks,
        "cases": len(results),
        "failed": [result for result in results if result["problems"]],
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    print(json.dumps([run_plan(plan) for plan in json.loads(Path(sys.argv[1]).read_text())]))
