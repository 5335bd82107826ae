"""What the page of a run shows, as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.report.lessons import Lesson, lessons
from resd.report.page.summary import cost, curves, headline, warnings
from resd.report.stories import Record, StepTraces, Story, parsed, read_steps
from resd.runs import read_config
from resd.runs.rows import is_step, read_metrics
from resd.runs.traces import read_traces, trace_files
from resd.text import without_middle

# What is kept of the stories, from everything to little, until a page is small enough: most
# characters of a text, whether prompts of reflections and curations are shown, and stories of a
# step that have no token numbers.
LEVELS: tuple[tuple[int, bool, int | None], ...] = (
    (20_000, True, None),
    (6_000, False, 32),
    (2_500, False, 8),
    (1_000, False, 0),
    (400, False, 0),
)


class Texts:
    """Texts by number: many prompts show the same ones."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str | None) -> int | None:
        """The number of a text, without its middle if it is long."""
        if text is None:
            return None
        kept = without_middle(text, self._most)
        return self._numbers.setdefault(kept, len(self._numbers))

    def all(self) -> list[str]:
        """The texts, in the order of their numbers."""
        return list(self._numbers)


def page_data(run: Path, level: int = 0) -> dict[str, Any]:
    """What the page of a run shows.

    Args:
        run: its directory, whether or not it is complete.
        level: how much of the stories is left out, an index of `LEVELS`.

    Raises:
        UserError: it is no run.
    """
    config = read_config(run)
    rows = read_metrics(run)
    most, prompts, others = LEVELS[level]
    texts = Texts(most)
    steps = list(read_steps(run))
    shown = [s for traces in steps for s in _shown(traces.stories, others)]
    places = {(s.step, s.rollout.get("evidence")): i for i, s in reversed(list(enumerate(shown)))}
    last = max([row["step"] for row in rows], default=0)
    return {
        "name": run.resolve().name,
        "headline": headline(run, config, rows),
        "config": _settings(config),
        "last": last,
        "steps": config.train.steps,
        "complete": (run / "done.json").is_file(),
        "cost": cost(rows),
        "curves": curves(rows),
        "warnings": warnings(run),
        "answers": answers(run, texts),
        "playbook": _playbook(steps, places),
        "stories": [_story(story, texts, prompts) for story in shown],
        "left_out": sum(len(traces.stories) for traces in steps) - len(shown),
        "level": level,
        "texts": texts.all(),
        "has_steps": any(map(is_step, rows)),
    }


def _shown(stories: Sequence[Story], others: int | None) -> list[Story]:
    """Those with token numbers, and some of the others."""
    if others is None:
        return list(stories)
    plain = [story for story in stories if story.tokens is None][:others]
    return [story for story in stories if story.tokens is not None or story in plain]


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    from resd.runs.identity import settings

    return [(key, json.dumps(value)) for key, value in sorted(settings(config).items())]


def answers(run: Path, texts: Callable[[str | None], int | None]) -> dict[str, Any]:
    """The answers of every evaluation to the same test problems."""
    rows: dict[str, dict[str, Any]] = {}
    steps = []
    for step, file in trace_files(run, "evaluation"):
        steps.append(step)
        for record in read_traces(file):
            if record["kind"] != "answer":
                continue
            row = rows.setdefault(
                str(record["example"]),
                {"example": record["example"], "prompt": texts(_prompt(record)), "at": {}},
            )
            row["at"][str(step)] = [
                texts(record["response"]),
                record["passed"],
                texts(record.get("feedback")),
            ]
    return {"steps": steps, "rows": list(rows.values())}


def _prompt(record: Record) -> str:
    """A prompt as one text; roles are named where there are several messages."""
    messages = record.get("prompt") or []
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in messages)


def _playbook(steps: Sequence[StepTraces], places: Mapping[Any, int]) -> dict[str, Any]:
    return {
        "steps": [traces.step for traces in steps if traces.playbook is not None],
        "lessons": [_lesson(lesson, places) for lesson in lessons(steps)],
    }


def _lesson(lesson: Lesson, places: Mapping[Any, int]) -> dict[str, Any]:
    moments = [
        [m.step, m.what, m.detail, places.get((m.step, m.evidence)), m.evidence.rpartition("/")[0]]
        for m in lesson.moments
    ]
    return {
        "id": lesson.id,
        "content": lesson.content,
        "born": lesson.born,
        "died": lesson.died,
        "reason": lesson.reason,
        "example": lesson.example,
        "story": places.get((lesson.born, lesson.evidence)),
        "moments": moments,
        "states": lesson.states,
    }


def _story(story: Story, texts: Texts, prompts: bool) -> dict[str, Any]:
    rollout = story.rollout
    return {
        "step": story.step,
        "example": rollout.get("example"),
        "passed": bool(rollout.get("passed")),
        "reward": rollout.get("reward"),
        "cases": [rollout.get("cases_passed"), rollout.get("cases")],
        "tokens": rollout.get("tokens"),
        "prompt_tokens": rollout.get("prompt_tokens"),
        "finish": rollout.get("finish"),
        "seed": str(rollout.get("seed", "")),
        "prompt": texts(_prompt(rollout)),
        "response": texts(rollout.get("response")),
        "feedback": texts(rollout.get("feedback")),
        "rejected": list(story.rejected),
        "loss": story.loss,
        "written": [
            _written(kind, record, texts, prompts) for kind, record in story.written.items()
        ],
        "teacher": _teacher(story.teacher, texts),
        "numbers": _numbers(story.tokens),
    }


def _written(kind: str, record: Record, texts: Texts, prompts: bool) -> dict[str, Any]:
    result = parsed(record)
    read: list[tuple[str, str]] = []
    if kind.startswith("curation"):
        read = [
            (" ".join((op.op, *op.ids)), f"{op.section}: {op.content}" if op.content else "")
            for op in result.operations
        ]
    else:
        read = [("what went wrong", result.what_went_wrong), ("what to do", result.what_to_do)]
        read += [(f"tag {id_}", tag) for id_, tag in result.tags]
    return {
        "kind": kind,
        "read": [(name, texts(text)) for name, text in read if text],
        "output": texts(record.get("output")),
        "prompt": texts(_prompt(record)) if prompts else None,
        "finish": record.get("finish"),
        "tokens": record.get("tokens"),
    }


def _teacher(record: Record | None, texts: Texts) -> list[tuple[str, int | None]] | None:
    """The teacher's prompt in pieces, each with the name of its section; empty between them."""
    if record is None or not record.get("prompt"):
        return None
    *before, last = record["prompt"]
    pieces = [(message["role"], message["content"]) for message in before]
    text, at = str(last["content"]), 0
    for name, start, end in record.get("spans") or []:
        pieces += [("", text[at:start]), (name, text[start:end])]
        at = end
    pieces.append(("", text[at:]))
    return [(name, texts(piece)) for name, piece in pieces if piece]


def _numbers(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    names = ("texts", "student", "teacher", "loss", "student_top", "teacher_top")
    return {name: record[name] for name in names}
