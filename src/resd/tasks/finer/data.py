"""Reading the batched form of FiNER: rows `{"context": ..., "target": "Tag1,Tag2,Tag3,Tag4"}`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resd.errors import UserError
from resd.types import Split

HOW_TO_GET = (
    'a row is {"context": the prompt, "target": "Tag1,Tag2,Tag3,Tag4"}; the ACE project (arXiv '
    "2510.04618) published FiNER in this form, made from nlpaueb/finer-139 on the Hugging Face Hub"
)

_NUMBERED = re.compile(r"^[ \t]*(\d{1,4})\.[ \t]+(\S.*)$", re.MULTILINE)
_ENTITY = re.compile(r'\bentity "([^"\n]*)" in sentence')
_OPTIONS_START, _OPTIONS_END = "options:", ". Answer"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ENTITY_LENGTH = 60


@dataclass(frozen=True)
class Row:
    """One problem.

    Attributes:
        context: the prompt, as the file has it.
        entities: what is to be tagged, one a question, as a question quotes it.
        options: the allowed tags in lower case; empty if the prompt does not list them.
        tags: the right tag of each question.
    """

    context: str
    entities: tuple[str, ...]
    options: tuple[str, ...]
    tags: tuple[str, ...]


def load_rows(place: str, split: Split) -> list[Row]:
    """The rows of a split.

    Args:
        place: a `.jsonl` file, a directory with `train.jsonl` and `test.jsonl`, or the id of a
            dataset on the Hugging Face Hub (`owner/name`) that has the split.
        split: which file of the directory, or which split on the Hub.

    Raises:
        UserError: there is no such place, it is empty, or a row is malformed.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if path.is_file():
        rows = [parse_row(raw, where) for raw, where in _read_file(path)]
        where = str(path)
    elif _HUB_ID.fullmatch(place) and not place.endswith((".json", ".jsonl")):
        where = f"{place} ({split}) on the Hub"
        found = enumerate(_read_hub(place, split), 1)
        rows = [parse_row(raw, f"{where}, row {number}") for number, raw in found]
    else:
        raise UserError(f"{split} data: {path} does not exist; {HOW_TO_GET}")
    if not rows:
        raise UserError(f"{split} data: {where} holds no rows; {HOW_TO_GET}")
    return _share_options(rows)


def _read_file(path: Path) -> Iterable[tuple[Any, str]]:
    """Each line's JSON value, with its place."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield _json(line, where), where
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); {HOW_TO_GET}") from None


def _read_hub(name: str, split: Split) -> Iterable[Any]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{split} data: {name} is no file or directory here; to read it from the Hugging Face "
            "Hub: pip install 'resd[hub]'"
        ) from None
    try:
        rows: Iterable[Any] = load_dataset(name, split=split)
    except Exception as error:  # offline, unknown, gated, no such split: the library's own words
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{split} data: {name} is no file or directory here, and the Hugging Face Hub does not "
            f"give it ({said}); download it where there is a network, and give the file; "
            f"{HOW_TO_GET}"
        ) from None
    return rows


def parse_row(raw: Any, where: str) -> Row:
    """A row from its JSON value.

    Raises:
        UserError: it is malformed; `where` stands in the message.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: expected an object, found {raw!r:.60}; {HOW_TO_GET}")
    context, target = raw.get("context"), raw.get("target")
    if not isinstance(context, str) or not isinstance(target, str):
        found = ", ".join(f"{key}: {type(value).__name__}" for key, value in raw.items())[:200]
        raise UserError(
            f"{where}: expected the texts context and target, found {found or 'nothing'}; "
            f"{HOW_TO_GET}"
        )
    entities, options = _entities(context), _options(context)
    tags = tuple(tag.strip() for tag in target.split(","))
    if not entities:
        raise UserError(
            f'{where}: the context holds no numbered question (1. What is best tag for entity "..."'
            f" in sentence: ...); {HOW_TO_GET}"
        )
    if len(tags) != len(entities) or not all(tags):
        raise UserError(
            f"{where}: {len(entities)} questions need as many tags, separated by commas; the "
            f"target is {target!r:.200}"
        )
    unlisted = [tag for tag in tags if options and tag.lower() not in options]
    if unlisted:
        raise UserError(f"{where}: the target's {unlisted[0]!r:.160} is not among the options")
    return Row(context, entities, options, tags)


def _entities(context: str) -> tuple[str, ...]:
    """What each numbered question asks about; the numbers run 1, 2, 3 and so on."""
    entities: list[str] = []
    for number, question in _NUMBERED.findall(context):
        if int(number) == len(entities) + 1:
            entity = _ENTITY.search(question)
            entities.append((entity.group(1) if entity else question)[:_ENTITY_LENGTH])
    return tuple(entities)


def _options(context: str) -> tuple[str, ...]:
    start, end = context.find(_OPTIONS_START), context.find(_OPTIONS_END)
    if start < 0 or end < start:
        return ()
    listed = context[start + len(_OPTIONS_START) : end].split(",")
    return tuple(option.strip().lower() for option in listed if option.strip())


def _share_options(rows: list[Row]) -> list[Row]:
    """The same rows; those with the same options hold the same tuple."""
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    return [
        Row(r.context, r.entities, shared.setdefault(r.options, r.options), r.tags) for r in rows
    ]
