"""reasoning_gym:NAME: no answer runs, hangs or finds a hole, and the process is well kept."""

from __future__ import annotations

import functools
import gc
import itertools
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from resd.tasks.adapters import ReasoningGymEnvironment
from resd.tasks.adapters.gym_guard import Guard
from resd.tasks.adapters.gym_process import GymProcess, Verdict
from resd.tasks.adapters.library_server import Forbidden

pytest.importorskip("reasoning_gym")

# Scorers that evaluate the answer, with eval or sympy.
EVALUATING = ("countdown", "n_queens", "simple_integration", "string_insertion")
EVALUATING_TOO = (
    "binary_matrix",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "spiral_matrix",
)


@functools.cache
def shared(dataset: str) -> ReasoningGymEnvironment:
    """A process takes a second to start."""
    return ReasoningGymEnvironment(dataset, 6, 3)


def tagged(answer: str) -> str:
    return f"<answer>{answer}</answer>"


# -- answers that would do harm ------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [*EVALUATING, *(pytest.param(name, marks=pytest.mark.slow) for name in EVALUATING_TOO)],
)
def test_no_answer_runs(dataset: str, tmp_path: Path) -> None:
    """Code in an answer is refused before it runs, or is no code to the scorer."""
    marker = tmp_path / "ran"
    world = shared(dataset)
    example = world.examples("train")[0]
    attacks = [
        f"__import__('os').system('touch {marker}')",
        f"__import__('pathlib').Path({str(marker)!r}).touch()",
        f"open({str(marker)!r}, 'w')",
        f"exp('open({str(marker)!r}, chr(119))')",
        f"sympify('open({str(marker)!r}, chr(119))')",
        f"[open(name, 'w') for name in [{str(marker)!r}]]",
        f"(lambda: open({str(marker)!r}, 'w'))()",
        f"().__class__.__base__.__subclasses__()[0]({str(marker)!r})",
        "__import__('os').kill(__import__('os').getppid(), 9)",
        "entry['answer']",
        "oracle_answer",
        "[entry['metadata']['valid_answers'][0]]",
        "[list(line) for line in entry['metadata']['valid_answers'][0]]",
        "Integral(x, x)",
        "exit()",
        "(" * 5000,
        "[" * 5000 + "]" * 5000,
        "[0] * 10**10",
        "\x00\ud800",
    ]
    for attack in attacks:
        outcome = world.evaluate(example, tagged(attack))
        assert outcome.reward <= 0.05, attack
        assert outcome.feedback
    assert not marker.exists()
    assert world.gold(example) is not None  # it still scores


def test_no_answer_hangs() -> None:
    world = shared("countdown")
    example = world.examples("train")[0]
    outcome = world.evaluate(example, tagged("9**9**9**9"))
    assert outcome.reward == 0.0
    assert "took too long, or too much memory" in outcome.feedback
    assert world.evaluate(example, str(world.gold(example))).passed


HOLES = {  # full marks that the package itself gives to these wrong answers
    "puzzle24": ("6*4*1*1", "24", "8*3*1"),
    "game_of_life_halting": ("nonsense", "not True"),
    "coin_flip": ("0", "0.", "1"),
    "simple_integration": ("Integral(x, x)",),
}


@pytest.mark.parametrize("dataset", HOLES)
def test_holes_of_the_scorers_are_closed(dataset: str) -> None:
    world = shared(dataset)
    for example in world.examples("train"):
        assert world.gold(example) is not None
        integrand = re.search(r"∫ (.*) d([xX])", example.prompt[0]["content"])
        answers = [*HOLES[dataset]]
        answers += [f"Integral({integrand[1]}, {integrand[2]})"] if integrand else []
        for answer in answers:
            if answer != example.data["answer"]:
                assert world.evaluate(example, tagged(answer)).reward < 0.5


def test_puzzle24_is_not_rounded() -> None:
    """The package takes the whole part of a value: 24.5 would do."""
    world = shared("puzzle24")
    for example in world.examples("train"):
        found = re.findall(r"\d+", example.prompt[0]["content"].partition("using")[2])[:4]
        for a, b, c, d in itertools.permutations(found):
            if 24 < int(a) * int(b) + int(c) / int(d) < 25:
                near = f"{a}*{b} + {c}/{d}"
                assert world.evaluate(example, tagged(near)).reward == 0.0
                return
    pytest.fail("no puzzle of these can be rounded to 24")


# -- the process ---------------------------------------------------------------------------------


def test_threads_share_a_process() -> None:
    process = GymProcess("chain_sum", {}, 0, 40, 1)
    results: dict[int, list[Verdict]] = {}

    def work(number: int) -> None:
        items = process.train[number::4]
        results[number] = [process.score(i.index, f"{i.answer}{'0' * (number % 2)}") for i in items]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [sum(v.score == 1.0 for v in results[n]) for n in range(4)] == [10, 0, 10, 0]


def test_the_process_ends_with_the_environment() -> None:
    process = GymProcess("chain_sum", {}, 0, 1, 1)
    child, place = process._process, Path(process._place)
    assert place.exists()
    del process
    gc.collect()
    assert child.poll() == 0
    assert not place.exists()


def test_what_the_package_writes_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """codeio runs programs to make its questions, and some of them write files."""
    monkeypatch.chdir(tmp_path)
    ReasoningGymEnvironment("codeio", 300, 3)
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_killed_is_no_silent_zero() -> None:
    process = GymProcess("chain_sum", {}, 0, 1, 1)
    process._process.kill()
    process._process.wait()
    with pytest.raises(RuntimeError, match="reasoning-gym process ended with exit code -9"):
        process.score(process.train[0].index, "1")


@pytest.mark.parametrize("file", ["sympy/polys/monomials.py", "sympy/core/other.py"])
def test_the_library_s_own_writer_of_functions_may_write_them(file: str) -> None:
    """sympy makes functions for polynomials in so many variables; nobody else may."""
    guard = Guard()
    written = compile("def f(a):\n    return tuple(a)", "<string>", "exec")
    caller = compile("guard('exec', (written,))", f"/somewhere/{file}", "eval")
    with pytest.raises(Forbidden) if "other" in file else nullcontext():
        eval(caller, {"guard": guard, "written": written})
    assert bool(guard.refused) is ("other" in file)
