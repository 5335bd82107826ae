"""What a run writes of itself: rows of metrics, traces, and what its method wants looked at."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resd.config import TracesConfig
from resd.loop.clock import Clock
from resd.loop.evaluate import Evaluation
from resd.loop.hints import share_naming_hints
from resd.loop.rollouts import as_record
from resd.methods.base import StepReport, TokenNumbers, Top, Written
from resd.runs import RunDirectory
from resd.runs.atomic import StorageError
from resd.text import without_middle
from resd.types import ChatMessage, Completion, Rollout, TrainingSample


class Recorder:
    """Writes rows and traces of a run.

    Args:
        run: the directory, open for writing.
        config: what the traces keep.
        decode: token ids to text.
        main: whether this process writes traces.
        warn: told, once, that traces cannot be written: they never end a run.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: TracesConfig,
        decode: Callable[[Sequence[int]], str],
        *,
        main: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.run = run
        self._config = config
        self._keeps_traces = config.keep and main
        self._decode = decode
        self._texts: dict[int, str] = {}
        self._warn = warn
        self._traces: list[dict[str, Any]] = []
        self._written: Counter[str] = Counter()

    def trace(self, kind: str, example: str = "", **record: Any) -> None:
        """Keep a record for the traces of the step; `seed` says which rollout it is about."""
        if self._keeps_traces:
            named = {"example": example} if example else {}
            self._traces.append({"kind": kind, **named, **record})

    def written(self, what: str, wanted: Sequence[Written], outputs: Sequence[Completion]) -> None:
        """Keep what the model wrote about rollouts, and count its tokens."""
        for item, output in zip(wanted, outputs, strict=True):
            self._written[what.removesuffix("_again")] += len(output.token_ids)
            self.trace(
                what,
                item.about.example.id,
                seed=item.about.seed,
                prompt=list(item.prompt),
                output=output.text,
                finish=output.finish_reason,
                tokens=len(output.token_ids),
            )

    def tokens_written(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Tokens generated since the last step, by purpose."""
        counts, self._written = self._written, Counter()
        counts["rollout"] = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        return {f"tokens/{what}": count for what, count in sorted(counts.items())}

    def watched(
        self, rollouts: Sequence[Rollout], samples: Sequence[TrainingSample | None]
    ) -> list[int]:
        """Places of the responses of a step whose tokens are kept, drawn from those that teach.

        Every process draws the same, whether or not it can write.
        """
        config = self._config
        places = [i for i, s in enumerate(samples[: config.rollouts]) if s is not None]
        if not places or not config.keep:
            return []
        draw = random.Random(f"watched/{rollouts[places[0]].seed}")
        return sorted(draw.sample(places, min(config.responses, len(places))))

    def step(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        row: Mapping[str, Any],
        artifacts: Mapping[str, str],
        tokens: Mapping[int, TokenNumbers] | None = None,
    ) -> None:
        """Write a step's row, traces and artifacts."""
        self.run.log(row)
        records, self._traces = self._traces, []
        if self._keeps_traces:
            kept = rollouts[: self._config.rollouts]
            seeds = {rollout.seed for rollout in kept}
            records = [r for r in records if "seed" not in r or r["seed"] in seeds]
            records += [{"kind": "rollout", **as_record(rollout)} for rollout in kept]
            for place, numbers in sorted((tokens or {}).items()):
                about = rollouts[place]
                named = {"kind": "tokens", "example": about.example.id, "seed": about.seed}
                records.append({**named, **self._numbers(numbers)})
            self._write("step", step, records)
        self.run.save_artifacts(artifacts)

    def evaluated(self, step: int, result: Evaluation) -> None:
        """Write answers of an evaluation."""
        most = self._config.answers
        answers = [a for task in result.first_answers.values() for a in task[:most]]
        if self._keeps_traces and answers:
            self._write("evaluation", step, [{"kind": "answer", **as_record(a)} for a in answers])

    def _write(self, what: str, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        try:
            self.run.trace(what, step, [self._bounded(record) for record in records])
        except (StorageError, ValueError, TypeError) as error:
            self._keeps_traces = False
            self._warn(f"no more traces from step {step} on: {error}")

    def _numbers(self, numbers: TokenNumbers) -> dict[str, Any]:
        def tops(rows: list[Top] | None) -> list[Any] | None:
            if rows is None:
                return None
            return [[(self._text(i), round(p, 3)) for i, p in row] for row in rows]

        teacher = numbers.teacher
        return {
            "ids": numbers.ids,
            "texts": [self._text(i) for i in numbers.ids],
            "student": [round(value, 3) for value in numbers.student],
            "teacher": None if teacher is None else [round(value, 3) for value in teacher],
            "loss": [round(value, 4) for value in numbers.loss],
            "student_top": tops(numbers.student_top),
            "teacher_top": tops(numbers.teacher_top),
        }

    def _text(self, token: int) -> str:
        """The text of one token; decoding takes a while, and tokens come again."""
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return self._texts[token]

    def _bounded(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record without the middle of its longest texts."""
        most, spans = self._config.characters, record.get("spans")
        bounded = dict(record)
        for key in ("response", "output", "feedback"):
            if len(record.get(key) or "") > most:
                bounded[key] = without_middle(record[key], most)
        prompt: Sequence[ChatMessage] = record.get("prompt") or []
        if any(len(message["content"]) > most for message in prompt):
            texts = [without_middle(message["content"], most) for message in prompt]
            pairs = zip(prompt, texts, strict=True)
            bounded["prompt"] = [{**message, "content": text} for message, text in pairs]
            if spans:
                had, has = len(prompt[-1]["content"]), len(texts[-1])
                head = (most * 2 + 2) // 3

                def moved(at: int) -> int:
                    return at if at <= head else max(head, at - had + has)

                bounded["spans"] = [(name, moved(start), moved(end)) for name, start, end in spans]
        return bounded


def step_row(
    step: int,
    total_rollouts: int,
    rollouts: Sequence[Rollout],
    report: StepReport,
    clock: Clock,
) -> dict[str, Any]:
    """The metrics of a step, for metrics.jsonl."""
    outcomes = [r.outcome for r in rollouts if r.outcome is not None]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    cut = sum(rollout.completion.finish_reason == "length" for rollout in rollouts)
    unanswered = sum(rollout.completion.answer is None for rollout in rollouts)
    n, responses = max(1, len(outcomes)), max(1, len(rollouts))
    seconds = clock.take()
    return {
        "step": step,
        "rollouts": total_rollouts,
        "rollout/reward": sum(o.reward for o in outcomes) / n,
        "rollout/passed": sum(o.passed for o in outcomes) / n,
        "rollout/cases": sum(o.case_fraction for o in outcomes) / n,
        "rollout/length": sum(lengths) / responses,
        "rollout/truncated": cut / responses,
        "rollout/unfinished_thinking": unanswered / responses,
        "rollout/names_hints": share_naming_hints(rollouts),
        **_mean_metrics([o.metrics for o in outcomes]),
        **report.metrics,
        **{f"count/{key}": value for key, value in sorted(report.counts.items()) if value},
        "time/step_s": round(sum(seconds.values()), 4),
        **{f"time/{name}_s": round(value, 4) for name, value in seconds.items()},
    }


def _mean_metrics(rows: Sequence[Any]) -> dict[str, float]:
    """The environment's own metrics, averaged over the outcomes that have them."""
    names = sorted({name for row in rows for name in row})
    return {
        f"env/{name}": sum(float(row[name]) for row in rows if name in row)
        / sum(name in row for row in rows)
        for name in names
    }
