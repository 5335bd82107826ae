"""mean@n and best@n by hand, per problem and per case; what fails, is cut off, or does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from resd.config import EvalConfig
from resd.engines import Completion, Request
from resd.errors import UserError
from resd.loop.evaluate import Baseline, Evaluation, evaluate, evaluate_baselines
from resd.loop.rollouts import Sampler
from resd.tasks.scoring import Scorer
from resd.types import Example, Outcome

PASS, HALF, FAIL, BROKEN, CUT, UNFINISHED = "PHFBCU"
MOST = 4  # tokens of a prompt


class Script:
    """The n-th response to a problem is the n-th letter of its table's row."""

    shares_weights = True

    def __init__(self, table: Sequence[str]) -> None:
        self.table, self.requests = table, list[Request]()
        self._next = [0] * len(table)

    def sync(self, model: torch.nn.Module, version: str) -> None:
        raise AssertionError("there is nothing to sync")

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        done = []
        for request in requests:
            row = request.prompt_ids[0]
            letter = self.table[row][self._next[row]]
            self._next[row] += 1
            reason: Any = "length" if letter in (CUT, UNFINISHED) else "stop"
            answer = None if letter == UNFINISHED else letter
            done.append(Completion((1,), letter, reason, answer=answer))
        return done


class World:
    """Four cases a problem."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def evaluate(self, example: Example, response: str) -> Outcome:
        self.seen.append(response)
        if response == BROKEN:
            raise RuntimeError("no such luck")
        passed = response in (PASS, UNFINISHED)
        cases = {PASS: 4, UNFINISHED: 4, HALF: 2, CUT: 1}.get(response, 0)
        return Outcome(float(passed), passed, "" if passed else "no", cases, 4)


def examples(number: int) -> list[Example]:
    return [Example(f"e{i}", [{"role": "user", "content": str(i)}]) for i in range(number)]


def judged(
    table: Sequence[str], config: dict[str, Any] | None = None, long: int = -1
) -> Evaluation:
    return judged_by(Script(table), config, long)


def judged_by(script: Script, config: dict[str, Any] | None = None, long: int = -1) -> Evaluation:
    def encode(messages: Any) -> list[int]:
        number = int(messages[0]["content"])
        return [number] * (MOST + (number == long))

    sampler = Sampler(script, None, encode, Scorer(World()), MOST, 0)  # type: ignore[arg-type]
    samples = max(map(len, script.table), default=1)
    settings = EvalConfig(**{"samples": samples, **(config or {})})
    return evaluate(sampler, {"": examples(len(script.table))}, settings, 7, 3)


def four(result: Evaluation) -> tuple[float, float, float, float]:
    return result.mean, result.best, result.case_mean, result.case_best


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        # Problems solved always, once, never: best is of problems, not of samples.
        (["PPPP", "FPFF", "FFFF"], (5 / 12, 2 / 3, 5 / 12, 2 / 3)),
        # Cases: [4 2 0 0], [2 2 2 2], [0 0 0 0], of 4.
        (["PHFF", "HHHH", "FFFF"], (1 / 12, 1 / 3, 14 / 48, 1.5 / 3)),
        # The best of cases is within a problem.
        (["HF", "FC", "CH"], (0.0, 0.0, (2 + 1 + 3) / 24, (0.5 + 0.25 + 0.5) / 3)),
        # What the environment fails on has failed, and stays in the denominator.
        (["PB", "BB"], (0.25, 0.5, 0.25, 0.5)),
        # One that ended inside its thinking has no answer, whatever it says.
        (["UU", "PU"], (0.25, 0.5, 0.25, 0.5)),
        (["P", "F", "H"], (1 / 3, 1 / 3, 0.5, 0.5)),
    ],
)
def test_mean_and_best_by_hand(table: list[str], wanted: tuple[float, ...]) -> None:
    assert four(judged(table)) == pytest.approx(wanted)


def test_what_went_wrong_is_counted() -> None:
    result = judged(["PB", "CB", "UF"])
    assert result.failed == 2
    assert "no such luck" in result.first_failure
    assert result.truncated == pytest.approx(2 / 6)
    assert (result.problems, result.samples, result.skipped) == (3, 2, 0)
    assert judged(["PF"]).first_failure == ""


def test_what_is_shown_in_place_of_the_plain_prompt() -> None:
    """It is sampled from and kept; the environment judges the example as it is."""
    script, world = Script(["PF", "PP", "FH"]), World()

    def encode(messages: Any) -> list[int]:
        assert messages[0]["content"].startswith("shown ")
        return [int(messages[0]["content"][6:])] * (3 * MOST)  # whoever made it saw that it fits

    def shown(example: Example) -> Any:
        if example.id == "e1":
            return None
        return [{"role": "user", "content": f"shown {example.prompt[0]['content']}"}]

    sampler = Sampler(script, None, encode, Scorer(world), MOST, 0)  # type: ignore[arg-type]
    config = EvalConfig(samples=2)
    result = evaluate(sampler, {"": examples(3)}, config, 7, 3, shown=shown)
    assert (result.problems, result.skipped) == (2, 1)
    assert four(result) == pytest.approx((0.25, 0.5, 0.375, 0.75))
    rows = result.rows
    assert [(r["example"], r["sample"], r["response"]) for r in rows] == [
        *(("e0", 0, "P"), ("e0", 1, "F"), ("e2", 0, "F"), ("e2", 1, "H"))
    ]
    assert [row["prompt"][0]["content"] for row in rows[::2]] == ["shown 0", "shown 2"]
    assert [row["passed"] for row in rows] == [True, False, False, False]
    assert result.answers[0].example.prompt[0]["content"] == "0"


def test_a_prompt_that_does_not_fit_is_left_out_and_counted() -> None:
    result = judged(["PP", "FF", "PF"], long=1)
    assert (result.problems, result.skipped) == (2, 1)
    assert four(result) == pytest.approx((0.75, 1.0, 0.75, 1.0))
    nothing = judged(["PP"], long=0)
    assert (nothing.problems, nothing.skipped, nothing.truncated) == (0, 1, 0.0)
    assert four(nothing) == (0.0, 0.0, 0.0, 0.0)


def test_the_first_answer_to_each_problem_can_be_kept_and_tokens_are_counted() -> None:
    result = judged(["PF", "FP", "HP"])
    kept = result.first_answers[""]
    assert [(r.example.id, r.passed) for r in kept] == [("e0", True), ("e1", False), ("e2", False)]
    assert result.tokens == sum(2 * len(r.completion.token_ids) for r in kept) > 0


def test_only_the_first_examples_are_used() -> None:
    result = judged(["P", "F", "P", "P"], {"max_examples": 2})
    assert (result.problems, result.mean) == (2, 0.5)


def test_the_sampling_is_that_of_the_config_and_every_seed_is_new() -> None:
    script = Script(["PPP", "FFF"])
    judged_by(script, {"temperature": 0.3, "top_p": 0.8})
    sampling = {request.sampling for request in script.requests}
    assert [(s.temperature, s.top_p, s.max_new_tokens) for s in sampling] == [(0.3, 0.8, 7)]
    assert len({request.seed for request in script.requests}) == 6


def test_the_row() -> None:
    result = Evaluation(
        0.1, 0.2, 0.3, 0.4, 5, 6, 0.7, 8, 9, baselines={"x": Baseline(0.5, 0.6)}, tokens=70
    )
    assert result.row() == {
        "eval/mean@5": 0.1,
        "eval/best@5": 0.2,
        "eval/case_mean@5": 0.3,
        "eval/case_best@5": 0.4,
        "eval/truncated": 0.7,
        "eval/problems": 6,
        "eval/skipped": 8,
        "eval/env_failed": 9,
        "tokens/evaluation": 70,
        "baseline/x": 0.5,
        "baseline_cases/x": 0.6,
    }
    assert result.ranked() == {"mean": 0.1, "best": 0.2, "case_mean": 0.3, "case_best": 0.4}


# -- trivial strategies ---------------------------------------------------------------------------


class Known(World):
    def baselines(self) -> dict[str, Any]:
        return {"half": lambda e: HALF, "first": lambda e: PASS if e.id == "e0" else BROKEN}


def baselines(environment: Any, most: int | None = None) -> dict[str, Baseline]:
    config = EvalConfig(max_examples=most)
    return evaluate_baselines(environment, examples(4), config, Scorer(environment))


def test_baselines_are_scored_on_the_same_problems() -> None:
    found = baselines(Known(), 2)
    assert found == {"half": Baseline(0.0, 0.5), "first": Baseline(0.5, 0.5)}
    assert baselines(Known())["first"] == Baseline(0.25, 0.25)
    assert baselines(World()) == {}


def test_a_baseline_that_raises_is_the_tasks_mistake() -> None:
    class Wrong(World):
        def baselines(self) -> dict[str, Any]:
            return {"bad": lambda e: e.data["nothing"]}

    with pytest.raises(UserError, match="baseline 'bad' failed: TypeError"):
        baselines(Wrong())


def test_baselines_stand_beside_the_result() -> None:
    known = {"half": Baseline(0.0, 0.5)}
    sampler = Sampler(Script(["P"]), None, lambda m: [0], Scorer(World()), MOST, 0)  # type: ignore
    result = evaluate(sampler, {"": examples(1)}, EvalConfig(samples=1), 7, 3, known)
    assert result.baselines == known
    assert judged(["P"]).baselines == {}
