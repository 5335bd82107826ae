"""What the page of a run shows, as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resd.config import RunConfig
from resd.report.lessons import Lesson, Lives
from resd.report.page.summary import cost, curves, headline, warnings
from resd.report.stories import Record, Story, parsed, read_steps
from resd.runs import read_config
from resd.runs.rows import read_metrics
from resd.runs.traces import read_traces, trace_files
from resd.text import without_middle


class Level(NamedTuple):
    """How much of the stories a page shows.

    Attributes:
        characters: most of a text.
        prompts: whether prompts of reflections and curations are shown.
        numbered: most stories of a step with numbers of tokens; None for all.
        plain: most of the others.
        tokens: most with numbers of a response.
        alternatives: most beside a token.
        every: of so many steps one has stories.
    """

    characters: int
    prompts: bool
    numbered: int | None
    plain: int | None
    tokens: int
    alternatives: int
    every: int = 1


# From everything to little, until a page is small enough.
LEVELS = (
    Level(20_000, True, None, None, 100_000, 100),
    Level(6_000, False, 8, 32, 256, 4),
    Level(3_000, False, 4, 8, 256, 3),
    Level(2_000, False, 2, 4, 192, 2),
    Level(1_000, False, 1, 2, 128, 2),
    *(Level(500, False, 1, 1, 96, 1, every) for every in (1, 2, 4, 8, 16, 64)),
)
# Bytes of all traces from which on a page begins with less: it would not be small enough, and to
# see that takes a while.
_TOO_MUCH = (12e6, 40e6, 120e6, 1e9)


def first_level(run: Path) -> int:
    """The level that a page may be small enough with."""
    size = sum(file.stat().st_size for _, file in trace_files(run))
    return sum(size > most for most in _TOO_MUCH)


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
    chosen = LEVELS[level]
    texts = Texts(chosen.characters)
    lives, stories, left_out = Lives(), list[dict[str, Any]](), 0
    places: dict[Any, int] = {}
    playbooks: list[int] = []
    for number, traces in enumerate(read_steps(run)):
        lives.step(traces)
        playbooks += [traces.step] if traces.playbook is not None else []
        shown = _shown(traces.stories, chosen) if number % chosen.every == 0 else []
        left_out += len(traces.stories) - len(shown)
        for story in shown:
            places.setdefault((traces.step, story.rollout.get("evidence")), len(stories))
            stories.append(_story(story, texts, chosen))
    return {
        "name": run.resolve().name,
        "headline": headline(run, config, rows),
        "config": _settings(config),
        "last": max([row["step"] for row in rows], default=0),
        "steps": config.train.steps,
        "complete": (run / "done.json").is_file(),
        "cost": cost(rows),
        "curves": curves(rows),
        "warnings": warnings(run),
        "answers": answers(run, texts),
        "playbook": {
            "steps": playbooks,
            "lessons": [_lesson(lesson, places) for lesson in lives.lessons],
        },
        "stories": stories,
        "left_out": left_out,
        "level": level,
        "texts": texts.all(),
    }


def _shown(stories: Sequence[Story], level: Level) -> list[Story]:
    """Some with token numbers, and some of the others, in their order."""
    numbered = [i for i, story in enumerate(stories) if story.tokens is not None]
    plain = [i for i, story in enumerate(stories) if story.tokens is None]
    return [stories[i] for i in sorted(numbered[: level.numbered] + plain[: level.plain])]


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


def _story(story: Story, texts: Texts, level: Level) -> dict[str, Any]:
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
        "rejected": story.rejected,
        "loss": story.loss,
        "written": [
            _written(kind, record, texts, level.prompts) for kind, record in story.written.items()
        ],
        "teacher": _teacher(story.teacher, texts),
        "numbers": _numbers(story.tokens, level),
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


def _numbers(record: Record | None, level: Level) -> dict[str, Any] | None:
    if record is None:
        return None
    names = ("texts", "student", "teacher", "loss")
    numbers = {name: record[name] and record[name][: level.tokens] for name in names}
    for name in ("student_top", "teacher_top"):
        rows = record[name]
        numbers[name] = rows and [row[: level.alternatives] for row in rows[: level.tokens]]
    return numbers
