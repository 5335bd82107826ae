"""The tasksets of the verifiers package as environments: `--task verifiers:TASKSET`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from resd.errors import UserError
from resd.tasks.adapters.library_process import LibraryProcess
from resd.tasks.answers import final_text
from resd.text import holds_phrase
from resd.types import ChatMessage, Example, Outcome, Split

_REMEMBERED = 1024  # verdicts
_SHORT_SECRET = 4  # characters; a text that is shorter stands in any feedback
_ALMOST = 1e-9  # sums of weights are rounded
_KEPT = ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")


@dataclass(frozen=True)
class _Verdict:
    """What the rewards and metrics of a task say of one response.

    Attributes:
        rewards: score and weight by name.
        metrics: by name.
        reasons: texts that the task left in `trace.info`, by key.
        limits: why the scoring was cut off, if it was.
        failed: what the scoring itself failed with, if it did.
    """

    rewards: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    failed: str = ""


class VerifiersEnvironment:
    """A taskset of the verifiers package (0.4), one prompt and one response, scored by itself.

    The reward is the taskset's weighted sum of rewards, as a part of what is needed to pass, and
    at most 1. Tasks are drawn without repeats of a prompt, in an order that the seed decides: the
    first `test_size` are for testing, the next for training. The taskset lives in a process of its
    own, and each response is scored in a fork of it, without network, within limits.

    Args:
        taskset: its id: an installed package that exports a Taskset.
        train_size: tasks to train on.
        test_size: tasks to test on; they are the same whatever `train_size` is.
        seed: of the order.
        config: the taskset's own options, such as `{"split": "train"}`.
        test_config: options that differ for the tasks to test on, such as `{"split": "test"}`.
        pass_at: the weighted sum of rewards from which on a response passes. By default every
            reward with a positive weight must give 1.
        gold: template of a right response, which the task's data fill: `"Answer: {answer}"`.
        reasons: keys of `trace.info` in which the taskset says why, for the feedback.

    Raises:
        UserError: the package is missing, there is no such taskset or option, it has too few
            tasks, or it needs more than one prompt and one response (tools, turns, containers,
            judges).
    """

    description = "a single-turn taskset of verifiers (any installed taskset package)"

    def __init__(
        self,
        taskset: str,
        train_size: int = 500,
        test_size: int = 100,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        test_config: Mapping[str, Any] | None = None,
        pass_at: float | None = None,
        gold: str | None = None,
        reasons: Sequence[str] = ("feedback",),
    ) -> None:
        sizes = {"train_size": (train_size, 1), "test_size": (test_size, 1), "seed": (seed, 0)}
        for name, (value, least) in sizes.items():
            if not isinstance(value, int) or not least <= value < 2**31:
                raise UserError(f"{name} must be a whole number >= {least}, found {value!r:.40}")
        for name, table in (("config", config), ("test_config", test_config)):
            if not isinstance(table, Mapping | None):
                raise UserError(
                    f"{name} must be a table of the taskset's options, found {table!r:.40}"
                )
        if pass_at is not None and not (isinstance(pass_at, int | float) and 0 < pass_at < 1e9):
            raise UserError(f"pass_at must be a number above 0, found {pass_at!r:.40}")
        if isinstance(reasons, str) or not all(isinstance(key, str) for key in reasons):
            raise UserError(f"reasons must be a list of keys of trace.info, found {reasons!r:.40}")
        if importlib.util.find_spec("verifiers") is None:
            raise UserError("the package verifiers is missing: pip install 'resd[verifiers]'")
        self.taskset = taskset
        self.pass_at = pass_at
        setup = {
            "taskset": taskset,
            "config": config or {},
            "test_config": test_config,
            "seed": seed,
            "train": train_size,
            "test": test_size,
            "gold": gold,
            "reasons": list(reasons),
        }
        process = LibraryProcess("resd.tasks.adapters.verifiers_server", setup, "verifiers", _KEPT)
        self._says: dict[str, str] = process.started["says"]
        self._examples: dict[Split, list[Example]] = {
            "train": _examples("train", process.started["train"]),
            "test": _examples("test", process.started["test"]),
        }
        self._score = lru_cache(_REMEMBERED)(lambda i, text: _Verdict(**process.ask([i, text])))

    def examples(self, split: Split) -> Sequence[Example]:
        """The tasks of a split, in a fixed order."""
        return self._examples[split]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """Score what a response says after its thinking.

        Raises:
            RuntimeError: a reward function failed, or did what scoring may not do.
        """
        verdict: _Verdict = self._score(example.data["index"], final_text(response))
        if verdict.failed:
            raise RuntimeError(f"the rewards of {self.taskset} failed: {verdict.failed}")
        if verdict.limits:
            return Outcome(0.0, False, f"The response could not be scored: {verdict.limits}.")
        total = sum(score * weight for score, weight in verdict.rewards.values())
        needed = self._needed(verdict)
        passed = total >= needed - _ALMOST
        numbers = {f"reward/{name}": score for name, (score, _) in verdict.rewards.items()}
        return Outcome(
            reward=1.0 if passed else total / needed,
            passed=passed,
            feedback="" if passed else self._told(verdict, example, response, total, needed),
            metrics={**verdict.metrics, **numbers},
        )

    def _needed(self, verdict: _Verdict) -> float:
        if self.pass_at is not None:
            return self.pass_at
        full = sum(max(0.0, weight) for _, weight in verdict.rewards.values())
        if full <= 0:
            raise UserError(f"no reward of {self.taskset} has a positive weight: set pass_at")
        return full

    def _told(
        self, verdict: _Verdict, example: Example, response: str, total: float, needed: float
    ) -> str:
        """Which reward gave what, and why, where the taskset says so."""
        lines = [f"The response does not pass: its reward is {total:.4g} of {needed:.4g}."]
        for name, (score, weight) in verdict.rewards.items():
            meant = self._says.get(name, "")
            times = "" if weight == 1 else f" times {weight:.4g}"
            lines.append(f"- {name}: {score:.4g}{times}{f' ({meant})' if meant else ''}")
        lines += [f"- {name}: {value:.4g}, not rewarded" for name, value in verdict.metrics.items()]
        hidden = [secret for secret in self.secrets(example) if not holds_phrase(response, secret)]
        lines += [
            f"- {name}: {text}"
            for name, text in verdict.reasons.items()
            if not any(holds_phrase(text, secret) for secret in hidden)
        ]
        return "\n".join(lines)

    def gold(self, example: Example) -> str | None:
        """A right response by the template; None without one."""
        return example.data["gold"]  # type: ignore[no-any-return]

    def secrets(self, example: Example) -> Sequence[str]:
        """What fills the template of a right response, unless it is too short to be a secret."""
        return [text for text in example.data["secrets"] if len(text) >= _SHORT_SECRET]


def _examples(split: Split, items: Sequence[Sequence[Any]]) -> list[Example]:
    return [
        Example(
            id=f"{split}-{number:05d}",
            prompt=[ChatMessage(role=m["role"], content=m["content"]) for m in messages],
            data={"index": index, "gold": gold, "secrets": secrets},
        )
        for number, (index, messages, gold, secrets) in enumerate(items)
    ]
