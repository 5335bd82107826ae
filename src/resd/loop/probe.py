"""The probe: does what the teacher sees make a right answer likelier? Without training.

Self-distillation can only teach what the teacher knows better than the student (paper: Eq. 1). So
the log-probability of the right answer is compared: under the question alone, and under the
question with each section of the teacher's prompt. The control shows what belongs to another
example, for a section that helps whatever it says teaches the form of answers, not this task
(2608.09228).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from resd.config import ResdConfig
from resd.context import Entry, Sections, parse_reflection
from resd.engines import Request, Sampling
from resd.errors import UserError
from resd.loop.rollouts import Sampler
from resd.loop.setup import Setup
from resd.loop.update import token_log_probs
from resd.models.head import head_of, response_states
from resd.runs.seeds import derive
from resd.tasks.base import Environment
from resd.tasks.registry import asked
from resd.types import ChatMessage, Example, Rollout

_ROWS = 8
_PAD = 0  # any token: it is masked
_SURE = 2.0  # standard errors
Score = tuple[float, bool]


@dataclass(frozen=True)
class Gain:
    """What sections do for the right answer; numbers in nats an answer.

    Attributes:
        mean: log p(right answer | question + sections) - log p(right answer | question).
        error: standard error of that mean over the examples.
        right: share of examples on which each token of the right answer is the likeliest.
        shuffled: the same mean with the sections of another example.
        above: the mean of the differences between the two, example by example.
        above_error: its standard error.
        examples: how many.
    """

    mean: float
    error: float
    right: float
    shuffled: float
    above: float
    above_error: float
    examples: int


@dataclass(frozen=True)
class Probed:
    """What the probe found.

    Attributes:
        bare: mean log p(right answer | question).
        bare_right: share on which the question alone gives the right answer.
        passed: share of the sampled trials that passed.
        gains: by what was shown.
        notes: what could not be shown, and why.
    """

    bare: float
    bare_right: float
    passed: float
    gains: Mapping[str, Gain]
    notes: tuple[str, ...]

    def verdict(self) -> str:
        """Whether the method can work here, in plain words."""
        told = next((n for n in ("together", "feedback", "playbook") if n in self.gains), None)
        if self.bare_right > 0.9:
            return "Nothing to teach: the question alone gives the right answer."
        if told is None:
            return "Cannot tell: there was no failed trial with feedback, and no lessons."
        gain = self.gains[told]
        times = f"{math.exp(min(gain.mean, 30.0)):,.2g} times"
        if gain.mean - _SURE * gain.error <= 0.0:
            return (
                f"No: what the teacher sees ({told}) does not make the right answer likelier "
                f"({gain.mean:+.2f} nats). Mend the templates, the feedback, or take another model."
            )
        if gain.above - _SURE * gain.above_error <= 0.0:
            return (
                f"Hardly: what the teacher sees ({told}) makes the right answer {times} as likely, "
                "but what belongs to another example does too: it teaches the form of an answer."
            )
        memory = self._memory()
        return (
            f"Yes: what the teacher sees ({told}) makes the right answer {times} as likely, "
            f"{gain.above:+.2f} nats above what belongs to another example.{memory}"
        )

    def _memory(self) -> str:
        both = [self.gains.get(name) for name in ("together", "feedback")]
        if both[0] is None or both[1] is None:
            return ""
        more = both[0].mean - both[1].mean
        if more > 0.0:
            return f" Memory and reflection add {more:.2f} nats to the feedback alone."
        return (
            f" But the feedback alone does better by {-more:.2f} nats: on one failure memory and "
            "reflection do not pay (compare with --methods resd,sdpo)."
        )


def gold_answers(environment: Environment, task: str, number: int) -> list[tuple[Example, str]]:
    """The first training examples whose right answer the task knows, spread over the split.

    Raises:
        UserError: the task knows none.
    """
    gold = getattr(environment, "gold", None)
    if gold is None:
        raise UserError(
            f"task {task} has no gold(example): the probe needs the right answers; give it one"
        )
    examples = list(environment.examples("train"))
    random.Random(0).shuffle(examples)
    found: list[tuple[Example, str]] = []
    for example in examples:
        answer = asked(f"task {task}: gold()", lambda e=example: gold(e))  # type: ignore[misc]
        if isinstance(answer, str) and answer.strip():
            found.append((example, answer))
        if len(found) == number:
            break
    if len(found) < 2:
        raise UserError(f"task {task}: gold() knows the answer of {len(found)} examples; 2 needed")
    return found


def probe(
    setup: Setup,
    model: torch.nn.Module,
    sampler: Sampler,
    pairs: Sequence[tuple[Example, str]],
) -> Probed:
    """Sample a trial for each example, let the model reflect on it, and measure every section.

    Args:
        setup: of a run of `resd`.
        model: the student, untrained.
        sampler: of the same model.
        pairs: examples and their right answers.
    """
    config, notes = setup.config, []
    method = config.method
    assert isinstance(method, ResdConfig)
    sampling = Sampling(
        config.rollout.temperature, config.rollout.top_p, config.rollout.max_new_tokens
    )
    batch = sampler.respond([example for example, _ in pairs], 1, sampling, "probe")
    if batch.first_failure:
        notes.append(f"the environment failed: {batch.first_failure}")
    trials = {rollout.example.id: rollout for rollout in batch.rollouts if rollout.outcome}
    kept = [(example, answer) for example, answer in pairs if example.id in trials]
    rollouts = [trials[example.id] for example, _ in kept]
    lessons = _lessons(setup.environment, config.task)
    if not lessons:
        notes.append(f"playbook: task {config.task} has no lessons()")
    reflected = _reflected(setup, sampler, rollouts, method)
    written = sum(map(bool, (sections.reflection for sections in reflected)))
    notes.append(f"reflections that could be read: {written} of {len(reflected)}")
    own = [
        replace(sections, playbook=lessons, solution=answer)
        for sections, (_, answer) in zip(reflected, kept, strict=True)
    ]
    others = _shuffled(own)
    score = _Scorer(setup, model)
    answers = [answer for _, answer in kept]
    examples = [example for example, _ in kept]
    bare = score([list(e.prompt) for e in examples], answers)
    gains = {}
    for name, names in _shown(method.use_trial).items():
        chosen = [_only(sections, names) for sections in own]
        there = [i for i, sections in enumerate(chosen) if sections is not None]
        if len(there) < 2:
            continue
        mine, theirs = (
            score(
                [
                    setup.builder.teacher(examples[i], _only(every[i], names) or Sections())
                    for i in there
                ],
                [answers[i] for i in there],
            )
            for every in (own, others)
        )
        gain = _gain([bare[i] for i in there], mine, theirs)
        if gain is not None:
            gains[name] = gain
        else:
            notes.append(f"{name}: the prompts do not fit into method.max_teacher_tokens")
    return Probed(
        bare=statistics.fmean(found[0] for found in bare if found),
        bare_right=statistics.fmean(found[1] for found in bare if found),
        passed=statistics.fmean(rollout.passed for rollout in rollouts),
        gains=gains,
        notes=tuple(notes),
    )


def _shown(use_trial: bool) -> dict[str, tuple[str, ...]]:
    """Sections by the name of what is shown; `together` is what RESD shows of a failure."""
    together = ("playbook", *(("trial",) if use_trial else ()), "feedback", "reflection")
    return {
        "playbook": ("playbook",),
        "feedback": ("feedback",),
        "feedback and trial": ("trial", "feedback"),
        "reflection": ("reflection",),
        "together": together,
        "solution": ("solution",),
    }


def _only(sections: Sections, names: Sequence[str]) -> Sections | None:
    """These sections alone; None if one of them is empty, a lack of lessons excepted."""
    if any(not getattr(sections, name) for name in names if len(names) == 1 or name != "playbook"):
        return None
    return Sections(**{name: getattr(sections, name) for name in names})


def _lessons(environment: Environment, task: str) -> list[Entry]:
    lessons = getattr(environment, "lessons", None)
    if lessons is None:
        return []
    found = asked(f"task {task}: lessons()", lambda: [str(lesson) for lesson in lessons()])
    return [Entry(f"misc-{i:05d}", lesson) for i, lesson in enumerate(found, start=1)]


def _reflected(
    setup: Setup, sampler: Sampler, rollouts: Sequence[Rollout], method: ResdConfig
) -> list[Sections]:
    """Trial, feedback and the model's reflection of every failure; nothing of a success."""
    failed = {
        i: Sections(trial=rollout.answer, feedback=rollout.outcome.feedback)
        for i, rollout in enumerate(rollouts)
        if rollout.outcome is not None and not rollout.passed and rollout.outcome.feedback
    }
    prompts = {i: setup.builder.reflect(rollouts[i].example, s) for i, s in failed.items()}
    sampling = Sampling(method.reflection_temperature, 1.0, method.reflection_tokens)
    asked_for = {
        i: Request(
            tuple(setup.chat.encode(prompt)),
            sampling,
            derive(rollouts[i].seed, "reflection"),
        )
        for i, prompt in prompts.items()
        if prompt is not None
    }
    outputs = dict(zip(asked_for, sampler.generate(list(asked_for.values())), strict=True))
    found = []
    for i in range(len(rollouts)):
        sections = failed.get(i, Sections())
        if i in outputs:
            sections = replace(sections, reflection=parse_reflection(outputs[i].answer or ""))
        found.append(sections)
    return found


def _shuffled(own: Sequence[Sections]) -> list[Sections]:
    """Everyone gets what is another's; of the lessons, their last words change places."""
    found = []
    for i, sections in enumerate(own):
        there = [j for j in range(len(own)) if own[j].feedback and j != i] or [i]
        other = own[next((j for j in there if j > i), there[0])]
        solution = own[(i + 1) % len(own)].solution
        found.append(replace(other, playbook=_exchanged(sections.playbook), solution=solution))
    return found


def _exchanged(lessons: Sequence[Entry]) -> list[Entry]:
    parts = [entry.content.rpartition(" ") for entry in lessons]
    ends = [end for _, _, end in parts]
    return [
        replace(entry, content=f"{start}{space}{end}")
        for entry, (start, space, _), end in zip(
            lessons, parts, [*ends[1:], *ends[:1]], strict=True
        )
    ]


class _Scorer:
    """Log-probabilities of answers, a few rows at a time; None for a prompt that does not fit."""

    def __init__(self, setup: Setup, model: torch.nn.Module) -> None:
        self._setup = setup
        self._head, _ = head_of(model)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[list[ChatMessage] | None], answers: Sequence[str]
    ) -> list[Score | None]:
        tokenizer, encode = self._setup.tokenizer, self._setup.chat.encode
        rows = [
            (i, encode(prompt), tokenizer(answer, add_special_tokens=False)["input_ids"])
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            if prompt is not None
        ]
        rows.sort(key=lambda row: len(row[1]))
        found: list[Score | None] = [None] * len(prompts)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            ids = [row[2] for row in part]
            hidden = response_states(self._head, [row[1] for row in part], ids, _PAD)
            logits = self._head(hidden)
            flat = torch.tensor([token for row in ids for token in row], device=logits.device)
            sizes = [len(row) for row in ids]
            sums = token_log_probs(logits, flat).split(sizes)
            likeliest = (logits.argmax(-1) == flat).split(sizes)
            for (i, _, _), values, hits in zip(part, sums, likeliest, strict=True):
                found[i] = (float(values.sum()), bool(hits.all()))
        return found


def _gain(
    bare: Sequence[Score | None],
    own: Sequence[Score | None],
    other: Sequence[Score | None],
) -> Gain | None:
    """Means over the examples that could be scored in every way."""
    gains, controls, right = [], [], []
    for base, mine, theirs in zip(bare, own, other, strict=True):
        if base and mine and theirs:
            gains.append(mine[0] - base[0])
            controls.append(theirs[0] - base[0])
            right.append(mine[1])
    if len(gains) < 2:
        return None
    above = [gain - control for gain, control in zip(gains, controls, strict=True)]
    return Gain(
        mean=statistics.fmean(gains),
        error=_error(gains),
        right=statistics.fmean(right),
        shuffled=statistics.fmean(controls),
        above=statistics.fmean(above),
        above_error=_error(above),
        examples=len(gains),
    )


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
