"""The lab as an `Environment`: one dialect, requests of 1 to 3 commands, train and test split."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from resd.tasks.lab import kept
from resd.tasks.lab.dialect import DEVICES, HOUSES, LEVELS, ROOMS, SHIFTS, Dialect, score_facts
from resd.tasks.lab.interpreter import Finding, Request, interpret
from resd.types import ChatMessage, Example, Outcome, Split

# How many values each of the first five facts may have, in the order of `Dialect.facts`.
_OPTIONS = (6, 6, 6, 6, 8)
MOST_KNOWN = len(_OPTIONS)


class LabEnvironment:
    """A private command language, known only through its interpreter's errors.

    The 432 single requests (8 devices, 6 rooms, 9 levels) are split by the dialect's number into
    336 for training and 96 for testing; longer requests are drawn from the same two pools, so no
    test request ever shares a command with training.

    Args:
        dialect: number of the dialect, 0 or more.
        commands: commands a request, 1 to 3; every command is one test case.
        known: how many of the dialect's facts every request states, 0 to 5: how hard the world is.
        noise: fraction of the messages that are wrong, 0 to 1: what the interpreter of some other
            dialect would say. Rewards are always right.
        house: the house that every request names; "" for none. Dialects of several houses can be
            held at once.
        inference: levels are shifted, every request says so, and by how much no message says: it
            has to be inferred.
        train_size: training examples (the single requests repeat, reshuffled, beyond 336).
        test_size: test examples.
    """

    description = "a private command language, learnt from its interpreter's errors"
    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        dialect: int = 0,
        commands: int = 1,
        known: int = 0,
        noise: float = 0.0,
        house: str = "",
        inference: bool = False,
        train_size: int = 336,
        test_size: int = 96,
    ) -> None:
        if dialect < 0 or not 1 <= commands <= 3 or train_size < 1 or test_size < 1:
            raise ValueError(
                "lab: dialect must be >= 0, commands 1 to 3, train_size and test_size >= 1; got "
                f"dialect={dialect}, commands={commands}, train_size={train_size}, "
                f"test_size={test_size}"
            )
        if not 0 <= known <= MOST_KNOWN or not 0.0 <= noise <= 1.0:
            raise ValueError(
                f"lab: known must be 0 to {MOST_KNOWN}, noise 0 to 1; got known={known}, "
                f"noise={noise}"
            )
        if house and house not in HOUSES:
            raise ValueError(f"lab: no house {house!r}; there are {', '.join(HOUSES)}")
        self.dialect = Dialect.numbered(dialect, shifted=inference, house=house)
        self.number = dialect
        self.commands = commands
        self.known = known
        self.noise = noise
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
        lines = [*self.dialect.heading(self.known), *(request.text() for request in requests)]
        return Example(
            id=f"{split}-{index:05d}",
            prompt=[{"role": "user", "content": "\n".join(lines)}],
            data={"requests": tuple(requests)},
        )

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Interpret the response; one test case a command. Of what is kept, ask its gate."""
        if "gate" in example.data:
            passed = kept.judge(example, response)
            return Outcome(float(passed), passed)
        requests = example.data["requests"]
        report = interpret(self.dialect, requests, response)
        finding = report.finding
        if finding is not None and self.noise:
            finding = self._message(example, response, finding)
        return Outcome(
            reward=float(report.passed),
            passed=report.passed,
            feedback="" if finding is None else finding.feedback,
            cases_passed=report.cases_passed,
            cases=len(requests),
        )

    def _message(self, example: Example, response: str, finding: Finding) -> Finding:
        """What is wrong, or now and then something else; the same for the same response."""
        rng = random.Random(f"noise {self.number} {example.id} {response}")
        if rng.random() >= self.noise:
            return finding
        return wrong_message(self.dialect, example.data["requests"], response, rng) or finding

    def gold(self, example: Example) -> str:
        """The right response, for tests of the environment."""
        requests = example.data["requests"]
        return "\n".join(self.dialect.command(r.device, r.room, r.level) for r in requests)

    def uniform_guess(self) -> float:
        """Chance that a dialect drawn from all, but for what is known, answers a test request."""
        shared = math.prod(_OPTIONS[self.known :]) * (len(SHIFTS) if self.dialect.shift else 1)
        chances = []
        for example in self.examples("test"):
            devices = len({request.device for request in example.data["requests"]})
            chances.append(1 / (shared * math.perm(len(DEVICES), devices)))
        return sum(chances) / len(chances)

    def anchors(self) -> Sequence[Sequence[ChatMessage]]:
        """Prompts of the skills that the base model was pretrained on, for other dialects."""
        return kept.anchors(self.dialect)

    def retention(self) -> Mapping[str, Sequence[Example]]:
        """The gates of the base model (`resd lab gates`), for other dialects."""
        return kept.retention(self.dialect)

    def lessons(self) -> list[str]:
        """The complete playbook."""
        return self.dialect.facts()

    def score_playbook(self, contents: Iterable[str]) -> dict[str, float]:
        """Precision and recall of a playbook against the dialect."""
        return score_facts(contents, self.dialect)


def wrong_message(
    dialect: Dialect, requests: Sequence[Request], response: str, rng: random.Random
) -> Finding | None:
    """What the interpreter of another dialect says, where that is false of this one.

    None if the response leaves nothing to be wrong about: no fact follows from any message.
    """
    truth = set(dialect.facts())
    for _ in range(32):
        other = replace(Dialect.sample(rng), house=dialect.house, shift=dialect.shift)
        finding = interpret(other, requests, response).finding
        if finding is not None and finding.fact is not None and finding.fact not in truth:
            return finding
    return None
