"""The process that holds a reasoning-gym dataset: `python -m resd.tasks.adapters.gym_server`.

It makes the questions, so that the package's global random numbers and hash seed are its own, and
scores each answer in a fork, within limits (see `gym_guard`), so that nothing an answer does
outlasts it.

Protocol (see `library_server`): it offers `{"train": [item], "test": [item]}`, an item being
`[index, question, answer]`. To each `[index, answer]` the reply is `{"score": number}`, with a
`problem` where there was one.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import math
import random
import sys
from collections.abc import Mapping
from typing import Any

from resd.tasks.adapters.gym_guard import CONDITIONS, Guard, confine
from resd.tasks.adapters.library_server import Forbidden, Refused, described, in_fork, serve

_DRAWS_PER_QUESTION = 4  # at most so many are drawn for each that is asked for, ...
_MORE_DRAWS = 100  # ... and so many more
_RESERVED = ("seed", "size")
_LIMITS = "it took too long, or too much memory, to score"


class _Server:
    """A dataset and the questions that were drawn from it.

    Args:
        name: of the dataset.
        config: its options.
        seed: of the first question; question i has the seed `seed + i`.
        train: different questions to train on.
        test: different questions to test on, drawn first.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], seed: int, train: int, test: int
    ) -> None:
        try:
            import numpy
            from reasoning_gym.factory import DATASETS
        except Exception as error:
            raise Refused(f"reasoning-gym cannot be imported: {described(error)}") from None
        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, 3) or list(DATASETS)[:3]
            raise Refused(
                f"reasoning-gym has no dataset {name!r}; near to it: {', '.join(near)} "
                f"({len(DATASETS)} in all)"
            )
        # Some datasets draw from the global generators.
        random.seed(seed)
        numpy.random.seed(seed)
        size = _DRAWS_PER_QUESTION * (train + test) + _MORE_DRAWS
        self.name = name
        cls, config_cls = DATASETS[name]
        self.dataset = _make(name, cls, config_cls, {**config, "seed": seed, "size": size})
        self.entries = self._draw(train + test, size)
        if len(self.entries) < train + test:
            raise Refused(
                f"{name} has only {len(self.entries)} different questions in {size} draws, and "
                f"train_size + test_size = {train} + {test} are asked for: lower "
                "--task_args.train_size and --task_args.test_size, or widen --task_args.config"
            )
        items = [[i, e["question"], _text(e["answer"])] for i, e in self.entries.items()]
        self.offer = {"test": items[:test], "train": items[test:]}

    def _draw(self, wanted: int, size: int) -> dict[int, dict[str, Any]]:
        """At most `wanted` entries with different questions, by index."""
        seen: set[str] = set()
        entries: dict[int, dict[str, Any]] = {}
        for index in range(size):
            if len(entries) == wanted:
                break
            try:
                entry = self.dataset[index]
            except IndexError:  # word_ladder: it has no more
                break
            except Exception as error:
                said = f"{self.name} fails to make question {index}: {described(error)}"
                raise Refused(said) from None
            if entry["question"] not in seen:
                seen.add(entry["question"])
                entries[index] = entry
        return entries

    def answer(self, question: tuple[int, str]) -> dict[str, Any]:
        """The verdict on one answer, given by a fork that ends with it."""
        index, answer = question
        verdict = in_fork(lambda: self._confined_score(self.entries[index], answer))
        return verdict or {"score": 0.0, "problem": _LIMITS}

    def _confined_score(self, entry: dict[str, Any], answer: str) -> dict[str, Any]:
        condition = CONDITIONS.get(entry["metadata"].get("source_dataset", self.name))
        guard = Guard()
        confine()
        sys.addaudithook(guard)
        try:
            score = float(self.dataset.score_answer(answer, entry))
            if score >= 1.0 and condition is not None and not condition(answer, entry):
                score = 0.0
        except MemoryError:
            return _no_score(answer, _LIMITS)
        except (Exception, Forbidden) as error:
            failure = f"the scorer fails with {type(error).__name__}"
            return _no_score(answer, guard.refused or failure)
        if guard.refused:
            return _no_score(answer, guard.refused)
        return {"score": min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0}


def _make(name: str, cls: Any, config_cls: Any, config: dict[str, Any]) -> Any:
    """The dataset.

    Raises:
        Refused: its options are wrong.
    """
    known = [f.name for f in dataclasses.fields(config_cls) if f.name not in _RESERVED]
    for key in config:
        if key not in known and key not in _RESERVED:
            near = difflib.get_close_matches(key, known, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            options = ", ".join(known) or "none"
            raise Refused(f"{name} has no option {key!r}{meant}; its options are: {options}")
    try:
        if hasattr(config_cls, "from_yaml_stream"):  # composite; JSON is YAML
            made = config_cls.from_yaml_stream(io.StringIO(json.dumps(config)))
        else:
            made = config_cls(**config)
        return cls(config=made)
    except Exception as error:
        raise Refused(f"{name} does not take this config: {described(error)}") from None


def _text(answer: Any) -> str | None:
    """The package's answer; some datasets have none."""
    return answer if isinstance(answer, str) else None


def _no_score(answer: str, problem: str) -> dict[str, Any]:
    """A verdict of 0; that a plain word was not evaluated is no problem worth telling."""
    return {"score": 0.0, "problem": "" if answer.isidentifier() else problem}


if __name__ == "__main__":
    serve(_Server)
