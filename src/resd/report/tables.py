"""What a run kept, as rows of plain values: for data frames, and for `resd traces export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resd.errors import UserError
from resd.report.lessons import lessons
from resd.report.stories import Story, parsed, read_steps
from resd.runs import read_config
from resd.runs.rows import read_metrics
from resd.runs.traces import read_traces, trace_files

Row = dict[str, Any]


def rollout_rows(run: Path) -> Iterator[Row]:
    """A row a kept rollout: what was asked, answered and found, and what was made of it."""
    for traces in read_steps(run):
        for story in traces.stories:
            yield _rollout(story)


def _rollout(story: Story) -> Row:
    rollout, tokens = story.rollout, story.tokens or {}
    names = ("example", "seed", "prompt", "response", "passed", "reward", "cases_passed", "cases")
    more = ("feedback", "finish", "tokens", "prompt_tokens", "evidence")
    written = story.written
    reflection = written.get("reflection_again") or written.get("reflection")
    curation = written.get("curation_again") or written.get("curation")
    read = parsed(reflection) if reflection else None
    operations = parsed(curation).operations if curation else ()
    return {
        "step": story.step,
        **{name: rollout.get(name) for name in (*names, *more)},
        "reflection": reflection["output"] if reflection else None,
        "what_went_wrong": read.what_went_wrong if read else None,
        "what_to_do": read.what_to_do if read else None,
        "curation": curation["output"] if curation else None,
        "operations": [" ".join(filter(None, (op.op, *op.ids, op.content))) for op in operations],
        "rejected": story.rejected,
        "teacher_prompt": story.teacher["prompt"] if story.teacher else None,
        "token_ids": tokens.get("ids"),
        "token_texts": tokens.get("texts"),
        "token_student": tokens.get("student"),
        "token_teacher": tokens.get("teacher"),
        "token_loss": tokens.get("loss"),
    }


def lesson_rows(run: Path) -> Iterator[Row]:
    """A row a lesson that the playbook ever held, with its last counts."""
    for lesson in lessons(read_steps(run)):
        yield {
            "id": lesson.id,
            "content": lesson.content,
            "born": lesson.born,
            "example": lesson.example,
            "evidence": lesson.evidence,
            "died": lesson.died,
            "reason": lesson.reason,
            **lesson.at_end(),
        }


def answer_rows(run: Path) -> Iterator[Row]:
    """A row an answer that an evaluation kept."""
    names = ("example", "prompt", "response", "passed", "reward", "feedback", "finish", "tokens")
    for step, file in trace_files(run, "evaluation"):
        for record in read_traces(file):
            if record["kind"] == "answer":
                yield {"step": step, **{name: record.get(name) for name in names}}


def metric_rows(run: Path) -> Iterator[Row]:
    """The rows of metrics.jsonl."""
    yield from read_metrics(run)


TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "metrics": metric_rows,
    "rollouts": rollout_rows,
    "lessons": lesson_rows,
    "answers": answer_rows,
}


def export(run: Path, to: str, output: Path) -> list[Path]:
    """Write the tables of a run into a directory; returns what was written.

    Args:
        run: its directory.
        to: `jsonl`, `parquet`, or `datasets` (each table a data set that `load_from_disk` reads).
        output: a directory; files of the same names are replaced.

    Raises:
        UserError: it is no run, keeps no traces, or a library is missing.
    """
    read_config(run)
    if not trace_files(run):
        raise UserError(f"{run} has no traces to export (yet); traces.keep must be on")
    written = []
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in TABLES.items():
        table = list(rows(run))
        if not table:
            continue
        if to == "jsonl":
            place = output / f"{name}.jsonl"
            place.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        elif to == "parquet":
            place = output / f"{name}.parquet"
            frame(table).to_parquet(place, index=False)
        else:
            place = output / name
            library("datasets").Dataset.from_list(_even(table)).save_to_disk(place)
        written.append(place)
    return written


def frame(rows: list[Row]) -> Any:
    """Rows as a pandas data frame."""
    return library("pandas").DataFrame(rows)


def library(name: str) -> Any:
    """A library that only these tables need.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install 'resd[data]'") from None


def _even(rows: list[Row]) -> list[Row]:
    """The same keys in every row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]
