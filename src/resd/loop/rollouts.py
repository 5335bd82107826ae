"""The one door to responses: sampled by the plain student, scored by the environment.

Training and evaluation go through the same `Sampler`; so do reflections and curations.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from resd.backend import Backend, Local, woven
from resd.engines import Engine, OnDone, Request, Sampling
from resd.loop.clock import Clock
from resd.runs.seeds import derive
from resd.tasks.scoring import Scorer, Scores
from resd.types import ChatMessage, Completion, Example, Outcome, Rollout

Encode = Callable[[Sequence[ChatMessage]], list[int]]
Progress = Callable[[str, int, int], None]

UNFINISHED = (
    "The response reached its end inside the thinking: it holds no answer. Think more briefly, "
    "close the thinking, then answer."
)


@dataclass(frozen=True)
class Batch:
    """Scored responses, those of one example side by side.

    Attributes:
        skipped: examples whose prompt does not fit.
        counts: what the environment did wrong, by reason.
        failures: responses on which the environment failed, in words, in order.
        warnings: what the environment does that looks like a mistake, said once a run.
    """

    rollouts: list[Rollout]
    skipped: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def first_failure(self) -> str:
        """The environment's first failure in one line; empty if there was none."""
        return next(filter(None, self.failures), "")

    @property
    def all_failed(self) -> bool:
        """Whether the environment failed on every response."""
        return bool(self.rollouts) and all(r.outcome is None for r in self.rollouts)


class Sampler:
    """Samples and scores.

    The engine takes over weights only when they have changed and something is generated.

    Args:
        engine: generates.
        student: the model in training, or None where the engine holds the only model.
        encode: chat messages to token ids, with the assistant header.
        scorer: the environment.
        max_prompt: most tokens of a prompt of the student.
        seed: of the run.
        clock: counts the time.
        progress: called while something is generated, with what it is, the number done and the
            number of all.
        backend: the processes that share the work.
    """

    def __init__(
        self,
        engine: Engine,
        student: torch.nn.Module | None,
        encode: Encode,
        scorer: Scorer,
        max_prompt: int,
        seed: int,
        clock: Clock | None = None,
        progress: Progress | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.engine = engine
        self.encode = encode
        self.scorer = scorer
        self.max_prompt = max_prompt
        self._student = student
        self._seed = seed
        self._clock = clock or Clock()
        self._progress = progress
        self._backend = backend or Local()
        self._warned: set[str] = set()
        self._updates = 0
        self._held = ""

    def student_changed(self) -> None:
        """The student's weights are others now: after an update, after a restore."""
        self._updates += 1

    def respond(
        self,
        examples: Sequence[Example],
        samples: int,
        sampling: Sampling,
        *purpose: object,
        max_prompt: int | None = None,
        scorer: Scorer | None = None,
        prompts: Mapping[str, Sequence[ChatMessage]] | None = None,
    ) -> Batch:
        """Sample responses for each example with the plain student, and score them.

        Args:
            examples: the student sees their plain prompts: no playbook, no feedback.
            samples: responses an example.
            sampling: how.
            purpose: what for (training or evaluation, and the step); with the example's id and the
                sample's number it makes the seed of a response.
            max_prompt: most tokens of a prompt; the run's by default.
            scorer: of examples that are not the environment's.
            prompts: what is shown in place of the plain prompts, by the example's id; whoever made
                them has seen to their length.
        """
        shown = prompts or {}
        encoded = [(e, tuple(self.encode(shown.get(e.id, e.prompt)))) for e in examples]
        most = self.max_prompt if max_prompt is None else max_prompt
        most = sys.maxsize if shown else most
        fitting = [(e, ids) for e, ids in encoded if len(ids) <= most]
        asked = [
            (e, Request(ids, sampling, derive(self._seed, *purpose, e.id, number)))
            for e, ids in fitting
            for number in range(samples)
        ]
        what = str(purpose[0]) if purpose else "response"
        completions, scores = self._answered(what, asked, scorer or self.scorer)
        rollouts = [
            Rollout(example, request.prompt_ids, completion, settled(completion, o), request.seed)
            for (example, request), completion, o in zip(
                asked, completions, scores.outcomes, strict=True
            )
        ]
        return Batch(
            rollouts,
            len(encoded) - len(fitting),
            scores.counts,
            scores.failures,
            scores.warnings,
        )

    def _answered(
        self, what: str, asked: Sequence[tuple[Example, Request]], scorer: Scorer
    ) -> tuple[list[Completion], Scores]:
        """Completions and what they are worth, each process for its part of the requests."""
        if not asked:
            return [], Scores()
        with self._clock.phase("generate"):
            self._hand_over_student()
        with self._lent(None):
            parts = self._backend.spread(asked, partial(self._answered_here, what, scorer))
        total = Scores(
            woven([scores.outcomes for _, scores in parts]),
            failures=woven([scores.failures for _, scores in parts]),
        )
        for _, scores in parts:
            total.counts += scores.counts
            total.warnings += [w for w in scores.warnings if w not in self._warned]
            self._warned.update(scores.warnings)
        return woven([completions for completions, _ in parts]), total

    def _answered_here(
        self, what: str, scorer: Scorer, asked: Sequence[tuple[Example, Request]]
    ) -> tuple[list[Completion], Scores]:
        """Graded as they come, where others can do that."""
        with scorer.stream() as stream:
            graded: set[int] = set()

            def grade(number: int, completion: Completion) -> None:
                if number not in graded:
                    graded.add(number)
                    stream.add(number, (asked[number][0], _graded(completion)))

            with self._clock.phase("generate"):
                early = grade if stream.early else None
                completions = self._generated(what, [request for _, request in asked], early)
            with self._clock.phase("environment"):
                for number, completion in enumerate(completions):
                    grade(number, completion)  # what the engine has not told of
                return completions, stream.finish()

    def generate(
        self,
        requests: Sequence[Request],
        teacher: torch.nn.Module | None = None,
        what: str = "texts",
    ) -> list[Completion]:
        """Completions by the student's weights, or by those of a teacher; `what` is for people."""
        if not requests:
            return []
        with self._lent(teacher):
            return woven(self._backend.spread(requests, partial(self._generated, what)))

    @contextmanager
    def _lent(self, teacher: torch.nn.Module | None) -> Iterator[None]:
        """Let the engine hold the weights of the student, or of a teacher."""
        model = self._student if teacher is None else teacher
        if model is None:
            yield
            return
        if teacher is None:
            self._hand_over_student()
        else:
            self._hand_over(teacher, "teacher")
        with self._backend.whole(model) if self.engine.shares_weights else nullcontext():
            yield

    def _generated(
        self, what: str, requests: Sequence[Request], on_done: OnDone | None = None
    ) -> list[Completion]:
        if not requests:
            return []
        if self._progress is not None:
            self._progress(what, 0, len(requests))
            on_done = _counted(what, len(requests), self._progress, on_done)
        return self.engine.generate(requests, *([on_done] if on_done else []))

    def rest(self) -> None:
        """Nothing is generated for a while: the engine may give memory back."""
        if self.engine.rest():
            self._held = ""

    def _hand_over_student(self) -> None:
        if self._student is not None:
            self._hand_over(self._student, "student")

    def _hand_over(self, model: torch.nn.Module, whose: str) -> None:
        # Copying may take an engine minutes: the same weights are handed over once.
        version = f"{whose} after {self._updates}"
        if version != self._held:
            self.engine.sync(model, version)
            self._held = version


def as_record(rollout: Rollout) -> dict[str, Any]:
    """A rollout as plain JSON, for people and tables."""
    outcome, completion = rollout.outcome, rollout.completion
    return {
        "example": rollout.example.id,
        "seed": rollout.seed,
        "prompt": list(rollout.example.prompt),
        "response": completion.text,
        "answered": completion.answer is not None,
        "finish": completion.finish_reason,
        "tokens": len(completion.token_ids),
        "prompt_tokens": len(rollout.prompt_ids),
        "evidence": rollout.evidence,
        "passed": rollout.passed,
        "reward": outcome.reward if outcome else None,
        "cases_passed": round(outcome.case_fraction * outcome.cases) if outcome else None,
        "cases": outcome.cases if outcome else None,
        "feedback": outcome.feedback if outcome else None,
    }


def _counted(what: str, total: int, progress: Progress, on_done: OnDone | None) -> OnDone:
    """Tells how far the generation is, beside what else is done with a completion."""
    done = 0

    def both(number: int, completion: Completion) -> None:
        nonlocal done
        done += 1
        if on_done is not None:
            on_done(number, completion)
        progress(what, done, total)

    return both


def _graded(completion: Completion) -> str:
    """What the environment judges: the answer, or of an unfinished thought the whole text."""
    return completion.text if completion.answer is None else completion.answer


def settled(completion: Completion, outcome: Outcome | None) -> Outcome | None:
    """A response that ended inside its thinking has not passed, whatever was found in it."""
    if completion.answer is not None or outcome is None:
        return outcome
    return replace(
        outcome, reward=min(0.0, outcome.reward), passed=False, cases_passed=0, feedback=UNFINISHED
    )
