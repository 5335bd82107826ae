"""The datasets of the reasoning-gym package as environments: `--task reasoning_gym:NAME`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from resd.errors import UserError
from resd.tasks.adapters.gym_feedback import describe, quoted, without_secret
from resd.tasks.adapters.gym_process import GymProcess, Item
from resd.tasks.answers import final_text
from resd.types import Example, Outcome, Split

INSTRUCTION = (
    "Solve the problem below. Think it through, then give the final answer, and nothing else, "
    "between <answer> and </answer>."
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_LONGEST_ANSWER = 20_000  # characters; the longest of the package's own has some 6,000
_REMEMBERED = 1024  # verdicts
_SHORT_SECRET = 4  # characters; a text that is shorter stands in any feedback
_SHOWN_ANSWER = 600


class ReasoningGymEnvironment:
    """A procedural dataset of the reasoning-gym package, scored by its own `score_answer`.

    The reward is the score, between 0 and 1; a response passes at 1. Questions are made from one
    stream of seeds, without repeats: the first `test_size` are for testing, the next for training.
    The dataset lives in a process of its own, and each answer is scored in a fork of it, within
    limits: some scorers evaluate the answer as an expression.

    Args:
        dataset: its name in the package.
        train_size: questions to train on.
        test_size: questions to test on; they are the same whatever `train_size` is.
        seed: of the first question.
        config: the dataset's own options, such as `{"min_digits": 3}`.
        show_answer: let the feedback show the package's answer.

    Raises:
        UserError: the package is missing, or there is no such dataset or option, or the dataset has
            too few different questions.
    """

    description = "a procedural dataset of reasoning-gym (chain_sum, countdown, sudoku, ...)"

    def __init__(
        self,
        dataset: str,
        train_size: int = 500,
        test_size: int = 100,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        show_answer: bool = False,
    ) -> None:
        sizes = {"train_size": (train_size, 1), "test_size": (test_size, 1), "seed": (seed, 0)}
        for name, (value, least) in sizes.items():
            if not isinstance(value, int) or not least <= value < 2**31:
                raise UserError(f"{name} must be a whole number >= {least}, found {value!r:.40}")
        if not isinstance(config, Mapping | None):
            raise UserError(
                f"config must be a table of the dataset's options, found {config!r:.40}"
            )
        for name in ("seed", "size"):
            if name in (config or {}):
                own = "seed" if name == "seed" else "train_size and test_size"
                raise UserError(f"config must not hold {name!r}: set {own} instead")
        self.dataset = dataset
        self.reveals_gold = bool(show_answer)
        process = GymProcess(dataset, dict(config or {}), seed, train_size, test_size)
        self._examples: dict[Split, list[Example]] = {
            "train": _examples("train", process.train),
            "test": _examples("test", process.test),
        }
        self._score = lru_cache(_REMEMBERED)(process.score)

    def examples(self, split: Split) -> Sequence[Example]:
        """The questions of a split, in a fixed order."""
        return self._examples[split]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Score the last answer in a response."""
        answer = extract_answer(response)
        problem = _form_problem(response, answer)
        if answer is None or problem:
            return Outcome(0.0, False, self._told(example, response, problem))
        verdict = self._score(example.data["index"], answer)
        if verdict.score >= 1.0:
            return Outcome(1.0, True)
        if not answer:
            said = "The answer between <answer> and </answer> is empty."
        elif verdict.problem:
            said = f"The answer {quoted(answer)} could not be scored: {verdict.problem}."
        else:
            said = describe(answer, example.data["answer"], verdict.score)
        return Outcome(verdict.score, False, self._told(example, response, said))

    def _told(self, example: Example, response: str, said: str) -> str:
        reference = example.data["answer"]
        if reference is None:
            return said
        if self.reveals_gold:
            return f"{said} A right answer: {reference[:_SHOWN_ANSWER]}"
        if len(reference) < _SHORT_SECRET:
            return said
        return without_secret(said, reference, response)

    def gold(self, example: Example) -> str | None:
        """The package's answer, between tags; None if it has none that scores 1."""
        answer = example.data["answer"]
        if answer is None:
            return None
        response = f"<answer>{answer}</answer>"
        return response if self.evaluate(example, response).passed else None

    def secrets(self, example: Example) -> Sequence[str]:
        """The package's answer, unless it is so short that it stands in any text."""
        answer = example.data["answer"]
        return () if answer is None or len(answer) < _SHORT_SECRET else (answer,)

    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The commonest answer of the training questions, if any stands there twice."""
        answers = Counter(e.data["answer"] for e in self.examples("train"))
        answers.pop(None, None)
        top = min(answers, key=lambda answer: (-answers[answer], answer), default="")
        if answers[top] < 2:
            return {}
        return {"commonest answer": lambda example: f"<answer>{top}</answer>"}


def extract_answer(response: str) -> str | None:
    """What stands between the last `<answer>` that is closed and its `</answer>`, stripped.

    Only what follows the thinking counts. Returns None if there is no closed pair.
    """
    text = final_text(response)
    found, start = None, None
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            start = tag.end()
        elif start is not None:
            found, start = text[start : tag.start()], None
    return None if found is None else found.strip()


def _form_problem(response: str, answer: str | None) -> str:
    """Why there is nothing to score; empty if there is."""
    if answer is None:
        text = final_text(response)
        if not text:
            missing = "nothing stands after the thinking, or the thinking was never closed"
        elif "<answer>" in text.lower():
            missing = "<answer> is never closed by </answer>; was the response cut off?"
        else:
            missing = "no <answer> stands after the thinking"
        return (
            f"There is no answer: {missing}. Put the final answer between <answer> and </answer>."
        )
    if len(answer) > _LONGEST_ANSWER:
        return (
            f"The answer has {len(answer)} characters, more than {_LONGEST_ANSWER}: give the final "
            "answer alone."
        )
    return ""


def _examples(split: Split, items: Sequence[Item]) -> list[Example]:
    return [
        Example(
            id=f"{split}-{number:05d}",
            prompt=[{"role": "user", "content": f"{INSTRUCTION}\n\n{item.question}"}],
            data={"index": item.index, "answer": item.answer},
        )
        for number, item in enumerate(items)
    ]
