"""The skills as an `Environment`: eight groups, drawn by seeds, each answer judged exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from resd.tasks.skills.judges import passes
from resd.tasks.skills.makers import GROUPS, Skill
from resd.types import Example, Outcome, Split

MOST = 100  # of a group: some have not many more different prompts


class SkillsEnvironment:
    """Checkable instructions, arithmetic, formats and a little code, made here from seeds.

    Args:
        number: problems a group, 1 to 100; fewer are the first of more.
    """

    description = "checkable general skills: what a model is to keep (resd retention)"

    def __init__(self, number: int = 100) -> None:
        if not 1 <= number <= MOST:
            raise ValueError(f"skills: number must be 1 to {MOST}, found {number}")
        self._number = number

    def examples(self, split: Split) -> Sequence[Example]:
        """All groups, one after the other."""
        return [example for group in self._groups(split).values() for example in group]

    def retention(self) -> Mapping[str, Sequence[Example]]:
        """The groups of the test split."""
        return self._groups("test")

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Judge a response; the feedback says what was asked for."""
        skill: Skill = example.data
        passed = passes(skill.judge, skill.wanted, response)
        said = "" if passed else f"The answer does not do exactly what was asked ({skill.judge})."
        return Outcome(float(passed), passed, said)

    def gold(self, example: Example) -> str:
        """A right answer."""
        skill: Skill = example.data
        return skill.gold

    def _groups(self, split: Split) -> dict[str, list[Example]]:
        taken: set[str] = set()
        if split == "train":  # no prompt stands in both
            taken = {e.prompt[0]["content"] for g in self._groups("test").values() for e in g}
        return {name: self._group(name, split, taken) for name in GROUPS}

    def _group(self, name: str, split: Split, taken: set[str]) -> list[Example]:
        rng, seen = random.Random(f"skills {name} {split}"), set(taken)
        found: list[Example] = []
        while len(found) < self._number:
            skill = GROUPS[name](rng)
            if skill.prompt not in seen:
                seen.add(skill.prompt)
                found.append(
                    Example(
                        f"{name}-{len(found):05d}",
                        [{"role": "user", "content": skill.prompt}],
                        skill,
                    )
                )
        return found
