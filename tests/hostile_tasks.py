"""An environment that does what the response says: `Hostile().evaluate(example, "hang")` hangs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from resd import Example, Outcome

DEEDS: dict[str, Any] = {}
_KEPT: list[Any] = []


def deed(function: Any) -> Any:
    DEEDS[function.__name__] = function
    return function


class Hostile:
    """`state` in a response answers with what the deeds before it left behind.

    Args:
        where: a directory to leave marks in.
        only_in: pid of the one process that can make it.
        load: what to do on loading, by name of a deed.
    """

    def __init__(self, where: str = "", only_in: int = 0, load: str = "") -> None:
        self.where, self.calls = where, 0
        if only_in and os.getpid() != only_in:
            raise RuntimeError("the licence server knows the first process alone")
        if load and os.getpid() != int(os.environ.get("RESD_TEST_PID", "0")):
            DEEDS[load](Example("load", []))

    def examples(self, split: str) -> list[Example]:
        prompt = [{"role": "user", "content": "misbehave"}]
        return [Example(f"{split}-{i}", prompt, {"i": i}) for i in range(4)]

    def evaluate(self, example: Example, response: str) -> Any:
        self.calls += 1
        name, _, rest = response.partition(" ")
        if name == "state":
            return Outcome(0.0, False, state(example))
        if name == "draw":
            return Outcome(0.0, False, f"{random.random()} {np.random.rand()}")
        if name == "calls":
            return Outcome(0.0, False, f"call {self.calls}")
        if name == "pid":
            return Outcome(0.0, False, f"{os.getpid()}")
        if name == "mark":
            (Path(self.where) / rest).write_text(str(os.getpid()))
            time.sleep(600)
        if name in DEEDS:
            found = DEEDS[name](example)
            return found if found is not None else Outcome(0.5, False, f"did {name}")
        return Outcome(1.0, True, f"fine {rest}")


def state(example: Example) -> str:
    umask = os.umask(0o22)
    os.umask(umask)
    print("out", end="")
    sys.stderr.write("err")
    torch = sys.modules.get("torch")
    tensors = torch and (torch.get_default_dtype(), torch.is_grad_enabled(), float(torch.rand(1)))
    facts = " ".join(
        map(
            str,
            (
                os.getcwd(),
                umask,
                signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                signal.getitimer(signal.ITIMER_REAL)[0],
                sys.getrecursionlimit(),
                os.environ.get("HOME"),
                os.environ.get("RESD_HOSTILE"),
                random.random(),
                np.random.rand(),
                example.data,
                example.prompt,
            ),
        )
    )
    return f"{facts}|{tensors}"


# -- what leaves something behind ----------------------------------------------------------------


@deed
def chdir(example: Example) -> None:
    os.chdir(tempfile.gettempdir())


@deed
def chdir_gone(example: Example) -> None:
    gone = tempfile.mkdtemp()
    os.chdir(gone)
    os.rmdir(gone)


@deed
def close_streams(example: Example) -> None:
    sys.stdout.close()
    sys.stderr.close()
    sys.stdin.close()


@deed
def close_handles(example: Example) -> None:
    for number in range(3):
        os.close(number)


@deed
def replace_streams(example: Example) -> None:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


@deed
def noise(example: Example) -> None:
    print("noise " * 50_000)
    sys.stderr.write("noise\n" * 10_000)
    os.write(1, b'\x00\x00\x00\x00\x00\x00\x00\x02[]{"ready": 1}')


@deed
def reseed(example: Example) -> None:
    random.seed(0)
    np.random.seed(0)


@deed
def torch_state(example: Example) -> None:
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)


@deed
def umask(example: Example) -> None:
    os.umask(0o777)


@deed
def variables(example: Example) -> None:
    os.environ["RESD_HOSTILE"] = "1"
    del os.environ["HOME"]


@deed
def ignore_signals(example: Example) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 30)


@deed
def recursion(example: Example) -> None:
    sys.setrecursionlimit(200)


@deed
def mutate(example: Example) -> None:
    example.data["i"] = "mutated"
    example.prompt.append({"role": "user", "content": "mutated"})  # type: ignore[attr-defined]
    example.prompt[0]["content"] = "mutated"


@deed
def threads(example: Example) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


@deed
def many_threads(example: Example) -> None:
    for _ in range(30):
        threading.Thread(target=time.sleep, args=(600,)).start()


@deed
def fork_returns(example: Example) -> None:
    os.fork()


@deed
def fork_raises(example: Example) -> None:
    if os.fork() == 0:
        raise ValueError("in the child")


@deed
def fork_stays(example: Example) -> Outcome:
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
    return Outcome(0.0, False, str(child))


# -- what raises ---------------------------------------------------------------------------------


def _raiser(name: str, error: BaseException) -> None:
    def act(example: Example) -> None:
        raise error

    DEEDS[name] = act


class Own(BaseException):
    def __str__(self) -> str:
        raise ValueError("no words")


_raiser("raise", ValueError("bad\nluck \x1b[2J\ud800 " + "x" * 10_000))
_raiser("exit", SystemExit(0))
_raiser("interrupt", KeyboardInterrupt())
_raiser("generator_exit", GeneratorExit())
_raiser("base", Own())


# -- what ends or holds the process --------------------------------------------------------------


@deed
def exit_at_once(example: Example) -> None:
    os._exit(0)


@deed
def crash(example: Example) -> None:
    ctypes.string_at(0)


@deed
def kill_itself(example: Example) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@deed
def hang(example: Example) -> None:
    time.sleep(600)


@deed
def hang_deaf(example: Example) -> None:
    ignore_signals(example)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


@deed
def hang_busy(example: Example) -> None:
    while True:
        pass


@deed
def hang_in_c(example: Example) -> None:
    re.match("(a+)+$", "a" * 60 + "b")


def _handles() -> list[int]:
    """All but the standard ones: how high a worker's own lie depends on its trainer's."""
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


@deed
def forge(example: Example) -> None:
    """Write a passing verdict to whatever is open, under every number."""
    for number in range(100):
        data = f'[{number}, {{"reward": 1.0, "passed": true}}, "", "", [], false]'.encode()
        for handle in _handles():
            with contextlib.suppress(OSError):
                os.write(handle, len(data).to_bytes(8, "big") + data)
    os._exit(0)


@deed
def scribble(example: Example) -> None:
    for handle in _handles():
        with contextlib.suppress(OSError):
            os.write(handle, b"\xff" * 100)


@deed
def remember(example: Example) -> None:
    _KEPT.append(np.ones(1_150_000_000, np.uint8))
