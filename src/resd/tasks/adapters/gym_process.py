"""The trainer's end of the process that holds a reasoning-gym dataset (see `gym_server`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import Any

from resd.errors import UserError

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "XDG_CACHE_HOME")


@dataclass(frozen=True)
class Item:
    """A question, its number in the dataset, and the package's answer, if it has one."""

    index: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Verdict:
    """A score between 0 and 1, and what went wrong in scoring, in words."""

    score: float
    problem: str = ""


class GymProcess:
    """One dataset in a process of its own, which ends with this object. Safe for threads.

    Args:
        dataset: its name.
        config: its options, plain JSON.
        seed: of the first question.
        train: number of questions to train on.
        test: number of questions to test on.

    Attributes:
        train: questions to train on, in a fixed order.
        test: questions to test on; no question stands twice in the two.

    Raises:
        UserError: the package is missing, or refuses the dataset or its options, or the dataset has
            too few questions.
    """

    def __init__(
        self, dataset: str, config: dict[str, Any], seed: int, train: int, test: int
    ) -> None:
        if not hasattr(os, "fork"):
            raise UserError("reasoning_gym tasks need fork(): Linux or macOS")
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("the package reasoning-gym is missing: pip install 'resd[gym]'")
        setup = {"name": dataset, "config": config, "seed": seed, "train": train, "test": test}
        try:
            argument = json.dumps(setup)
        except (TypeError, ValueError) as error:
            said = f"config must be plain numbers, texts, lists and tables: {error}"
            raise UserError(said) from None
        self._lock = threading.Lock()
        self._place = tempfile.mkdtemp(prefix="resd-gym-")  # some datasets write files
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "resd.tasks.adapters.gym_server", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            cwd=self._place,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the trainer's to handle
        )
        self._close = weakref.finalize(self, _close, self._process, self._place)
        splits = self._reply()
        self.train = [Item(*item) for item in splits["train"]]
        self.test = [Item(*item) for item in splits["test"]]

    def score(self, index: int, answer: str) -> Verdict:
        """The package's verdict on an answer to the question with this index."""
        assert self._process.stdin is not None
        with self._lock:
            with contextlib.suppress(OSError):  # it has ended, which the reply shows
                self._process.stdin.write(json.dumps([index, answer]) + "\n")
                self._process.stdin.flush()
            return Verdict(**self._reply())

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"the reasoning-gym process ended with exit code {code}")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply


def _environment() -> dict[str, str]:
    """What the process sees: no secrets, one thread, a hash seed that is always the same."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**kept, **threads, "PYTHONHASHSEED": "0", "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _close(process: subprocess.Popen[str], place: str) -> None:
    """End the process, which stops when its stdin does, and remove its directory."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(place, ignore_errors=True)
