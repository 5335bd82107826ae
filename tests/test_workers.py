"""Whatever a response makes an environment do costs that response, not the run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_tasks import DEEDS, Hostile

from resd import Example
from resd.errors import UserError
from resd.tasks.registry import TaskSpec
from resd.tasks.scoring import Mode, Scorer, Scores

FILE = Path(__file__).with_name("hostile_tasks.py")
LEAVES = [*DEEDS][: [*DEEDS].index("fork_stays")]
RAISES = ["raise", "exit", "interrupt", "generator_exit", "base"]
DIES = ["exit_at_once", "crash", "kill_itself", "forge", "scribble"]
HANGS = ["hang", "hang_deaf", "hang_busy", "hang_in_c"]
EXAMPLES = Hostile().examples("train")


def scorer(mode: Mode = "process", number: int = 1, seconds: float = 20.0, **args: Any) -> Scorer:
    return Scorer(
        Hostile(), TaskSpec(f"{FILE}:Hostile", args), workers=number, mode=mode, seconds=seconds
    )


def said(scores: Scores) -> list[str | None]:
    return [None if o is None else o.feedback for o in scores.outcomes]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def one() -> Iterator[Scorer]:
    with scorer() as found:
        yield found


@pytest.mark.parametrize("mode", ["process", "fresh"])
def test_nothing_that_a_response_leaves_behind_reaches_the_next(mode: Mode) -> None:
    responses = ["state"]
    for name in LEAVES + RAISES:
        if mode == "fresh" and name == "torch_state":
            continue  # seconds, for what cannot differ
        responses += [name, "state"]
    with scorer(mode) as found:
        before = found.score([(EXAMPLES[1], "draw")])
        scores = found.score([(EXAMPLES[1], response) for response in responses])
        after = found.score([(EXAMPLES[1], "draw")])
    states = [text.split("|") for text in said(scores)[::2] if text]
    assert len({facts for facts, _ in states}) == 1, states
    assert None not in said(scores)[::2]
    failed = [r for r, o in zip(responses, scores.outcomes, strict=True) if o is None]
    assert failed == RAISES, scores.first_failure
    assert scores.counts["env_raised"] == len(RAISES)
    assert scores.first_failure.startswith("env_raised: ValueError: bad luck")
    assert scores.first_failure.isprintable()
    assert said(before) == said(after)
    tensors = {found for _, found in states if found != "None"}
    assert len(tensors) == (mode == "process"), tensors
    assert all("float32, True" in found for found in tensors)


def test_a_worker_that_dies_or_hangs_costs_one_response_each() -> None:
    doing = DIES + HANGS
    responses = [word for name in doing for word in (name, f"after {name}")]
    seen = []
    with scorer(number=2, seconds=0.4) as found:
        scores = found.score([(EXAMPLES[0], r) for r in responses], lambda *at: seen.append(at))
    assert said(scores) == [word for n in doing for word in (None, f"fine {n}")]
    assert dict(scores.counts) == {"env_died": len(DIES), "env_timeout": len(HANGS)}
    assert seen == [(i + 1, len(responses)) for i in range(len(responses))]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", "SIGSEGV"),
        ("kill_itself", "ended by SIGKILL; it last printed 'last words'"),
        ("exit_at_once", "exit code 0"),
        ("hang", "no outcome within 0.3 s"),
    ],
)
def test_a_failure_says_how(name: str, words: str) -> None:
    with scorer(seconds=0.3) as found:
        assert words in found.score([(EXAMPLES[0], name)]).first_failure


def test_a_fork_that_dies_says_how_and_its_worker_goes_on() -> None:
    with scorer("fresh") as found:
        pairs = [(EXAMPLES[0], r) for r in ("pid", "crash", "pid", "exit_at_once", "calls")]
        scores = found.score(pairs)
    assert scores.counts["env_died"] == 2
    assert "SIGSEGV" in scores.first_failure
    assert said(scores)[4] == "call 1"
    assert said(scores)[0] != said(scores)[2]


def test_a_worn_worker_is_replaced_and_nothing_is_lost() -> None:
    deeds = ["many_threads", "remember"]
    # Quick ones first: only then do several wait at a worker.
    responses = ["pid"] * 80 + [word for name in deeds for word in (name, *["pid"] * 3)]
    with scorer() as found:
        scores = found.score([(EXAMPLES[0], r) for r in responses])
    assert not scores.counts["env_died"]
    assert None not in scores.outcomes
    assert len({text for text in said(scores) if text and text.isdigit()}) == 3


def test_a_worker_that_only_fails_any_more_is_replaced() -> None:
    with scorer() as found:
        words = ["pid", "raise", "raise", "pid", "raise", "raise", "raise", "pid"]
        pids = said(found.score([(EXAMPLES[0], word) for word in words]))
    with scorer() as found:  # one that never worked is not replaced
        calls = said(found.score([(EXAMPLES[0], word) for word in ["raise"] * 4 + ["calls"]]))
    assert pids[0] == pids[3] != pids[7]
    assert calls[-1] == "call 5"


def test_outcomes_stand_in_order_and_do_not_depend_on_the_workers() -> None:
    rng = random.Random(0)
    words = [f"{rng.choice(['draw', 'calm', 'mutate', 'raise'])} {i}" for i in range(60)]
    pairs = [(EXAMPLES[i // 15], word) for i, word in enumerate(words)]
    found = []
    for mode, number in (("process", 1), ("process", 3), ("fresh", 1)):
        with scorer(mode, number) as each:  # type: ignore[arg-type]
            found += [each.score(pairs), each.score(pairs)]
    assert all(scores.outcomes == found[0].outcomes for scores in found)
    draws = [text for text in said(found[0]) if text and text.startswith("0.")]
    assert len(set(draws)) == len(draws) > 10
    assert Hostile().examples("train") == EXAMPLES


def test_large_requests_and_answers_pass(one: Scorer) -> None:
    text = "é\ud800" * 150_000
    scores = one.score([(EXAMPLES[0], f"x {text}")] * 10)
    feedback = said(scores)[0]
    assert feedback is not None and 60_000 < len(feedback) <= 65_536
    assert feedback.count("characters left out") == 1
    assert said(scores) == [feedback] * 10
    assert scores.counts["feedback_cut"] == 10


def test_an_exception_in_the_trainer_leaves_no_answer_for_the_next_call(one: Scorer) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    many = [(EXAMPLES[0], f"x {i}") for i in range(80)]
    one.score(many)  # so that several wait at the worker
    with pytest.raises(KeyboardInterrupt):
        one.score(many, stop)
    assert said(one.score([(EXAMPLES[0], "y 1")])) == ["fine 1"]


def test_what_cannot_be_loaded_or_sent_is_said_in_one_line(tmp_path: Path) -> None:
    with scorer(only_in=os.getpid()) as found, pytest.raises(UserError, match="licence server"):
        found.score([(EXAMPLES[0], "x")])
    for name, words in (("exit_at_once", "exit code 0"), ("exit", "SystemExit")):
        with scorer(load=name) as found, pytest.raises(UserError, match=words):
            found.score([(EXAMPLES[0], "x")])
    example = Example("odd", EXAMPLES[0].prompt, lambda: 0)
    with scorer() as found, pytest.raises(UserError, match="example odd cannot be sent"):
        found.score([(example, "x")])
    with pytest.raises(UserError, match="task_args"):
        scorer(where=lambda: 0)
    with pytest.raises(UserError, match="env_mode must be one of process, fresh, thread"):
        scorer("proces")  # type: ignore[arg-type]


def test_a_worker_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resd.tasks.worker.START_S", 0.5)
    monkeypatch.setattr("resd.tasks.workers.START_S", 0.5)
    with scorer(load="hang") as found, pytest.raises(UserError, match=r"not loaded within 0\.5 s"):
        found.score([(EXAMPLES[0], "x")])


def test_a_worker_that_died_while_idle_costs_nothing(one: Scorer) -> None:
    (pid,) = said(one.score([(EXAMPLES[0], "pid")]))
    assert pid is not None
    os.kill(int(pid), signal.SIGKILL)
    assert gone(int(pid))
    time.sleep(0.1)
    assert said(one.score([(EXAMPLES[0], "x 1")])) == ["fine 1"]


# -- the end -------------------------------------------------------------------------------------

TRAINER = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import *
with scorer({mode!r}, where={where!r}) as found:
    pid, = said(found.score([(EXAMPLES[0], "fork_stays")]))
    print(pid, flush=True)
    found.score([(EXAMPLES[0], {response!r})])
"""


@pytest.mark.parametrize("mode", ["process", "fresh"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_trainer(mode: str, number: int, tmp_path: Path) -> None:
    response = "mark pid"
    program = TRAINER.format(
        tests=str(FILE.parent), mode=mode, where=str(tmp_path), response=response
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A suite in the background of a shell ignores it, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert trainer.stdout is not None
    stays = int(trainer.stdout.readline())
    mark = tmp_path / "pid"
    while not mark.exists() or not mark.read_text():
        time.sleep(0.02)
    worker = int(mark.read_text())
    assert alive(worker) and alive(stays)
    began = time.monotonic()
    trainer.send_signal(number)
    trainer.wait()
    assert time.monotonic() - began < 3
    assert gone(worker) and gone(stays)
    trainer.stdout.close()


def test_closing_ends_what_hangs_within_three_seconds_and_leaves_no_handle() -> None:
    before = len(os.listdir("/proc/self/fd"))
    found = scorer(number=2, seconds=0.3)
    found.score([(EXAMPLES[0], "ignore_signals"), (EXAMPLES[0], "threads")] * 4)
    (stays,) = said(found.score([(EXAMPLES[0], "fork_stays")]))
    found.score([(EXAMPLES[0], "hang_deaf")])
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 3
    assert stays is not None and gone(int(stays), 0.5)
    assert len(os.listdir("/proc/self/fd")) == before


# -- threads -------------------------------------------------------------------------------------


def test_threads_have_a_time_limit_and_survive_everything_that_raises() -> None:
    names = [*RAISES, "hang", "mutate", "calm"]
    found = Scorer(Hostile(), workers=2, mode="thread", seconds=0.3)
    scores = found.score([(EXAMPLES[0], name) for name in names] * 2)
    assert dict(scores.counts) == {"env_raised": 10, "env_timeout": 2}
    assert said(scores)[6:8] == ["did mutate", "fine "]
    assert Hostile().examples("train") == EXAMPLES


def test_one_thread_without_a_limit_is_the_callers_own() -> None:
    found = Scorer(Hostile(), mode="thread")
    seen = []
    pairs = [(EXAMPLES[0], name) for name in ("mutate", "exit", "base", "generator_exit")]
    scores = found.score(pairs, lambda *at: seen.append(at))
    assert scores.counts["env_raised"] == 3
    assert seen[-1] == (4, 4)
    with pytest.raises(KeyboardInterrupt):
        found.score([(EXAMPLES[0], "interrupt")])
    assert Hostile().examples("train") == EXAMPLES
    bad = Example("odd", EXAMPLES[0].prompt, lambda: 0)
    assert said(found.score([(bad, "x 1")])) == ["fine 1"]
