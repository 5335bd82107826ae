"""Validation: mean@n and best@n, per task and per test case, computed exactly (method.md 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resd.config import EvalConfig
from resd.context import Entry, PromptBuilder, Sections
from resd.engines import Sampling
from resd.errors import UserError
from resd.loop.retention import Kept, measure_retention
from resd.loop.rollouts import Sampler, as_record
from resd.tasks.base import Environment
from resd.tasks.registry import describe_error
from resd.tasks.scoring import Scorer
from resd.types import ChatMessage, Example, Outcome, Rollout

Prompt = Callable[[Example], Sequence[ChatMessage] | None]


@dataclass(frozen=True)
class Baseline:
    """A trivial strategy on the same problems: fraction solved, mean fraction of cases passed."""

    mean: float
    case_mean: float


@dataclass(frozen=True)
class Evaluation:
    """Validation metrics, each between 0 and 1.

    Attributes:
        mean: mean over problems and samples of "all cases pass" (mean@n, per task).
        best: fraction of problems that at least one of the n samples solves (best@n, per task).
        case_mean, case_best: the same for the fraction of test cases passed.
        samples: n.
        problems: test examples, without those whose prompt does not fit.
        truncated: fraction of responses that the length limit cut off.
        skipped: test examples whose prompt does not fit.
        failed: responses on which the environment failed; they count as not passed.
        first_failure: what it said on the first of them.
        baselines: the environment's trivial strategies, by name.
        retention: fraction passed of each group of what is to be kept.
        tasks: mean@n of each task of a stream.
        tokens: generated for the answers.
        first_answers: by task, the first sample of each problem, in their order.
        answers: all samples, those of one problem side by side.
        prompts: what the student was shown in place of an example's prompt, by the example's id.
    """

    mean: float
    best: float
    case_mean: float
    case_best: float
    samples: int
    problems: int
    truncated: float
    skipped: int
    failed: int
    first_failure: str = ""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    retention: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    first_answers: Mapping[str, Sequence[Rollout]] = field(default_factory=dict, repr=False)
    answers: Sequence[Rollout] = field(default=(), repr=False)
    prompts: Mapping[str, Sequence[ChatMessage]] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row an answer: example, sample (from 0 on), prompt, response, passed, feedback, ..."""
        return [
            {
                **as_record(rollout),
                "sample": number % self.samples,
                "prompt": list(self.prompts.get(rollout.example.id, rollout.example.prompt)),
            }
            for number, rollout in enumerate(self.answers)
        ]

    def row(self) -> dict[str, float]:
        """Metrics by name, for metrics.jsonl."""
        n = self.samples
        return {
            f"eval/mean@{n}": self.mean,
            f"eval/best@{n}": self.best,
            f"eval/case_mean@{n}": self.case_mean,
            f"eval/case_best@{n}": self.case_best,
            "eval/truncated": self.truncated,
            "eval/problems": self.problems,
            "eval/skipped": self.skipped,
            "eval/env_failed": self.failed,
            "tokens/evaluation": self.tokens,
            **{f"eval/retention/{name}": value for name, value in self.retention.items()},
            **{f"eval/tasks/{name}/mean@{n}": value for name, value in self.tasks.items()},
            **{f"baseline/{name}": b.mean for name, b in self.baselines.items()},
            **{f"baseline_cases/{name}": b.case_mean for name, b in self.baselines.items()},
        }

    def ranked(self) -> dict[str, float]:
        """The four metrics of the rank rule."""
        return {
            "mean": self.mean,
            "best": self.best,
            "case_mean": self.case_mean,
            "case_best": self.case_best,
        }


def evaluate(
    sampler: Sampler,
    tests: Mapping[str, Sequence[Example]],
    config: EvalConfig,
    max_new_tokens: int,
    purpose: object,
    baselines: Mapping[str, Baseline] | None = None,
    retention: Kept | None = None,
    shown: Prompt | None = None,
) -> Evaluation:
    """Sample n responses for each test example and score them.

    The student sees the plain prompt: no playbook, no feedback. A response on which the
    environment fails counts as failed.

    Args:
        sampler: samples with the student's weights.
        tests: test examples by task, of which the first `config.max_examples` are used; the one
            task of a run without a stream is named "".
        config: n and the sampling.
        max_new_tokens: the response limit.
        purpose: distinguishes this evaluation's seeds from another's: the step, or a name.
        baselines: as `evaluate_baselines` found them, to stand beside the result.
        retention: what is to be kept, as `load_retention` gives it.
        shown: makes what the student sees in place of the plain prompt, short enough for its
            context; None for an example that is left out.

    Raises:
        UserError: the environment fails on every answer of such a group.
    """
    chosen = [e for examples in tests.values() for e in list(examples)[: config.max_examples]]
    n = config.samples
    sampling = Sampling(config.temperature, config.top_p, max_new_tokens)
    prompts = {}
    if shown is not None:
        made = {example.id: shown(example) for example in chosen}
        prompts = {id_: prompt for id_, prompt in made.items() if prompt is not None}
    fitting = [e for e in chosen if shown is None or e.id in prompts]
    batch = sampler.respond(fitting, n, sampling, "evaluation", purpose, prompts=prompts)
    outcomes = [rollout.outcome for rollout in batch.rollouts]
    groups = [outcomes[i : i + n] for i in range(0, len(outcomes), n)]
    cut = sum(rollout.completion.finish_reason == "length" for rollout in batch.rollouts)
    tasks = [[float(o is not None and o.passed) for o in group] for group in groups]
    cases = [[_cases(o) for o in group] for group in groups]
    belongs = {example.id: name for name, examples in tests.items() for example in examples}
    of_task: dict[str, list[float]] = {name: [] for name in tests if name}
    first_answers: dict[str, list[Rollout]] = {name: [] for name in tests}
    for rollout, group in zip(batch.rollouts[::n], tasks, strict=True):
        name = belongs[rollout.example.id]
        first_answers[name].append(rollout)
        if name:
            of_task[name].append(_mean(group))
    return Evaluation(
        mean=_mean([_mean(group) for group in tasks]),
        best=_mean([max(group) for group in tasks]),
        case_mean=_mean([_mean(group) for group in cases]),
        case_best=_mean([max(group) for group in cases]),
        samples=n,
        problems=len(groups),
        truncated=cut / max(1, len(outcomes)),
        skipped=batch.skipped + len(chosen) - len(fitting),
        failed=sum(outcome is None for outcome in outcomes),
        first_failure=batch.first_failure,
        baselines=baselines or {},
        retention=measure_retention(sampler, retention or Kept(), config.retention_tokens),
        tasks={name: _mean(means) for name, means in of_task.items()},
        tokens=sum(len(rollout.completion.token_ids) for rollout in batch.rollouts),
        first_answers=first_answers,
        answers=batch.rollouts,
        prompts=prompts,
    )


def with_lessons(builder: PromptBuilder, lessons: Sequence[Entry]) -> Prompt:
    """The teacher's prompt with a playbook, and with nothing else: no trial, no feedback."""
    return lambda example: builder.teacher(example, Sections(lessons))


def evaluate_baselines(
    environment: Environment, examples: Sequence[Example], config: EvalConfig, scorer: Scorer
) -> dict[str, Baseline]:
    """Score the environment's trivial strategies by its own rules, on the problems evaluated.

    Args:
        environment: the task; without `baselines` there are none.
        examples: of the test split; the first `config.max_examples` are used.
        config: how many.
        scorer: evaluates them.

    Raises:
        UserError: a strategy fails.
    """
    strategies = getattr(environment, "baselines", None)
    if strategies is None:
        return {}
    chosen = list(examples)[: config.max_examples]
    found = {}
    for name, answer in _called(strategies, "baselines()").items():
        pairs = [(example, _called(answer, f"baseline {name!r}", example)) for example in chosen]
        outcomes = scorer.score(pairs).outcomes
        found[str(name)] = Baseline(
            mean=_mean([float(o is not None and o.passed) for o in outcomes]),
            case_mean=_mean([_cases(o) for o in outcomes]),
        )
    return found


def _called(function: Any, what: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise UserError(f"the task's {what} failed: {describe_error(error)}") from None


def _cases(outcome: Outcome | None) -> float:
    return 0.0 if outcome is None else outcome.case_fraction


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
