"""FiNER as an `Environment`: rows from files or the Hub, feedback for every entity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from resd.errors import UserError
from resd.tasks.finer.data import HOW_TO_GET, Row, load_rows
from resd.tasks.finer.grading import Answer, count_passed, matches, quoted, read_answer
from resd.types import Example, Outcome, Split

Reward = Literal["fraction", "all"]
_SHOWN = 6  # questions that feedback names


class FinerEnvironment:
    """XBRL tagging of financial text (paper: section 4, FiNER; data: Loukas et al., 2022).

    The prompt is the file's own: the options, numbered questions, and the order to answer with one
    tag a question, separated by commas. A response passes when the last line after its thinking
    (see `grading.read_answer`) holds exactly the right tags in the right order, upper and lower
    case aside. Each question is one test case; each tag too many takes one case away.

    Args:
        train: a `.jsonl` file, a directory with `train.jsonl` and `test.jsonl`, or the id of a Hub
            dataset with the columns `context` and `target`.
        test: the same, for the test split; by default where `train` is, if that is a directory or
            a Hub id.
        show_gold: let the feedback name the right tag beside each wrong one, as the paper's does
            (its presets set this).
        reward: `fraction`: the share of the questions that count as right, as the paper's; `all`:
            1 if all are right, else 0. `Outcome.passed` always asks for all.

    Raises:
        UserError: data are missing or malformed, or there is no such reward.
    """

    description = "US GAAP tags for the numbers in sentences of SEC filings"

    def __init__(
        self,
        train: str | None = None,
        test: str | None = None,
        show_gold: bool = False,
        reward: Reward = "fraction",
    ) -> None:
        if reward not in get_args(Reward):
            raise UserError(f"reward must be fraction or all, found {reward!r}")
        if train is None:
            raise UserError(
                f"give the data: --task_args.train PATH --task_args.test PATH; {HOW_TO_GET}"
            )
        if test is None and Path(train).expanduser().is_file():
            raise UserError(f"give test data beside {train}: --task_args.test PATH")
        self.reveals_gold = bool(show_gold)
        self.reward: Reward = reward
        self._rows: dict[Split, list[Row]] = {
            "train": load_rows(str(train), "train"),
            "test": load_rows(str(train if test is None else test), "test"),
        }

    @property
    def notes(self) -> Sequence[str]:
        """A warning if test questions stand in the training data."""
        known = {row.context for row in self._rows["train"]}
        test = self._rows["test"]
        shared = sum(row.context in known for row in test)
        if not shared:
            return ()
        return (f"finer: {shared} of {len(test)} test prompts stand in the training data too",)

    def examples(self, split: Split) -> Sequence[Example]:
        """The rows of a split, in the order of the file; the id is the index in it."""
        return [
            Example(
                id=f"{split}-{index:05d}",
                prompt=[{"role": "user", "content": row.context}],
                data={"entities": row.entities, "options": row.options, "tags": row.tags},
            )
            for index, row in enumerate(self._rows[split])
        ]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Grade the last line of a response; one test case a question."""
        tags = example.data["tags"]
        answer = read_answer(response, len(tags))
        passed = 0 if answer is None else count_passed(answer, tags)
        right = passed == len(tags)
        return Outcome(
            reward=float(right) if self.reward == "all" else passed / len(tags),
            passed=right,
            feedback="" if right else self._feedback(example, answer),
            cases_passed=passed,
            cases=len(tags),
        )

    def _feedback(self, example: Example, answer: Answer | None) -> str:
        tags, entities = example.data["tags"], example.data["entities"]
        if answer is None:
            lines = [
                "There is no answer after the thinking, or the thinking was never closed (was it "
                f"cut off?). End with one line of {_tags(len(tags))}, separated by commas."
            ]
            answer = Answer((), 0)
        elif answer.count != len(tags):
            lines = [
                f"The last line holds {_tags(answer.count)}; {len(tags)} are asked for, one a "
                "question, in the order of the questions, on one line, separated by commas. What "
                "is missing or too much counts as wrong."
            ]
        else:
            lines = [f"{count_passed(answer, tags)} of {len(tags)} tags are right."]
        right = matches(answer, tags)
        for i in range(min(len(tags), _SHOWN)):
            said = "right" if right[i] else _complaint(answer, i, example.data["options"])
            if self.reveals_gold and not right[i]:
                said += f"; the right tag is {tags[i]}"
            lines.append(f'{i + 1}. entity "{entities[i]}": {said}')
        if len(tags) > _SHOWN:
            rest = right[_SHOWN:]
            lines.append(f"Of the other {len(rest)} tags {sum(rest)} are right.")
        return "\n".join(lines)

    def gold(self, example: Example) -> str:
        """The row's target."""
        return ",".join(example.data["tags"])

    def secrets(self, example: Example) -> Sequence[str]:
        """The right tags."""
        return tuple(dict.fromkeys(example.data["tags"]))

    def baselines(self) -> Mapping[str, Callable[[Example], str]]:
        """The commonest tag of the training data, and that of the same entity's text there."""
        common: Counter[str] = Counter()
        by_entity: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in self._rows["train"]:
            for entity, tag in zip(row.entities, row.tags, strict=True):
                common[tag] += 1
                by_entity[entity][tag] += 1
        top = _commonest(common)
        known = {entity: _commonest(counts) for entity, counts in by_entity.items()}

        def same_entity(example: Example) -> str:
            return ",".join(known.get(entity, top) for entity in example.data["entities"])

        return {
            "commonest tag": lambda example: ",".join([top] * len(example.data["tags"])),
            "same entity in training": same_entity,
        }


def _complaint(answer: Answer, index: int, options: Sequence[str]) -> str:
    """What is wrong with one tag."""
    if index >= len(answer.tags):
        return "no tag"
    tag = answer.tags[index]
    if not tag:
        return "an empty tag"
    if options and tag.lower() not in options:
        return f"{quoted(tag)} is not in the list of options"
    return f"{quoted(tag)} is wrong"


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda tag: (-counts[tag], tag))


def _tags(count: int) -> str:
    return f"{count} tag{'s' * (count != 1)}"
