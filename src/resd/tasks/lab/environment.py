"""The lab as an `Environment`: one dialect, requests of 1 to 3 commands, train and test split."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from resd.tasks.lab import kept
from resd.tasks.lab.dialect import DEVICES, LEVELS, ROOMS, Dialect, score_facts
from resd.tasks.lab.interpreter import Request, interpret
from resd.types import ChatMessage, Example, Outcome, Split


class LabEnvironment:
    """A private command language, known only through its interpreter's errors.

    The 432 single requests (8 devices, 6 rooms, 9 levels) are split by the dialect's number into
    336 for training and 96 for testing; longer requests are drawn from the same two pools, so no
    test request ever shares a command with training.

    Args:
        dialect: number of the dialect, 0 or more.
        commands: commands a request, 1 to 3; every command is one test case.
        train_size: training examples (the single requests repeat, reshuffled, beyond 336).
        test_size: test examples.
    """

    description = "a private command language, learnt from its interpreter's errors"
    templates = Path(__file__).parent / "templates"

    def __init__(
        self, dialect: int = 0, commands: int = 1, train_size: int = 336, test_size: int = 96
    ) -> None:
        if dialect < 0 or not 1 <= commands <= 3 or train_size < 1 or test_size < 1:
            raise ValueError(
                "lab: dialect must be >= 0, commands 1 to 3, train_size and test_size >= 1; got "
                f"dialect={dialect}, commands={commands}, train_size={train_size}, "
                f"test_size={test_size}"
            )
        self.dialect = Dialect.numbered(dialect)
        self.number = dialect
        self.commands = commands
        self._sizes: dict[Split, int] = {"train": train_size, "test": test_size}

    def examples(self, split: Split) -> Sequence[Example]:
        """The examples of a split; the same for the same dialect number, on every machine."""
        rng = random.Random(f"requests {self.number}")
        every = [Request(*combo) for combo in itertools.product(DEVICES, ROOMS, LEVELS)]
        rng.shuffle(every)
        pool = every[96:] if split == "train" else every[:96]
        rng = random.Random(f"{split} {self.number} {self.commands}")
        picked: list[Request] = []
        need = self._sizes[split] * self.commands
        while len(picked) < need:
            picked += rng.sample(pool, len(pool))
        groups = [picked[i : i + self.commands] for i in range(0, need, self.commands)]
        return [self._example(split, i, group) for i, group in enumerate(groups)]

    def _example(self, split: str, index: int, requests: Sequence[Request]) -> Example:
        text = "\n".join(request.text() for request in requests)
        return Example(
            id=f"{split}-{index:05d}",
            prompt=[{"role": "user", "content": text}],
            data={"requests": tuple(requests)},
        )

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Interpret the response; one test case a command. Of what is kept, ask its gate."""
        if "gate" in example.data:
            passed = kept.judge(example, response)
            return Outcome(float(passed), passed)
        requests = example.data["requests"]
        report = interpret(self.dialect, requests, response)
        return Outcome(
            reward=float(report.passed),
            passed=report.passed,
            feedback="" if report.finding is None else report.finding.feedback,
            cases_passed=report.cases_passed,
            cases=len(requests),
        )

    def gold(self, example: Example) -> str:
        """The right response, for tests of the environment."""
        requests = example.data["requests"]
        return "\n".join(self.dialect.command(r.device, r.room, r.level) for r in requests)

    def anchors(self) -> Sequence[Sequence[ChatMessage]]:
        """Prompts of the skills that the base model was pretrained on, for other dialects."""
        return kept.anchors(self.dialect)

    def retention(self) -> Mapping[str, Sequence[Example]]:
        """The gates of the base model (`resd lab gates`), for other dialects."""
        return kept.retention(self.dialect)

    def score_playbook(self, contents: Iterable[str]) -> dict[str, float]:
        """Precision and recall of a playbook against the dialect."""
        return score_facts(contents, self.dialect)
