"""The words around what the lab's model reads: its own templates, and the general ones."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from resd.context.templates import BUILT_IN, Templates
from resd.tasks.lab.dialect import (
    CLOSERS,
    DEVICES,
    HOUSES,
    MARKS,
    NOTATIONS,
    OPENERS,
    ROOMS,
    SPELLINGS,
    VERBS,
)
from resd.tasks.lab.environment import LabEnvironment


def lab_templates() -> Templates:
    """The lab's own templates."""
    return Templates([LabEnvironment.templates])


def reworded(rng: random.Random, number: int = 24) -> list[Templates]:
    """The general templates, and some that lack words of theirs: no skill is to hang on one."""
    found = [Templates()]
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(number - 1):
            place = Path(scratch) / str(i)
            place.mkdir()
            for source in BUILT_IN.glob("*.jinja"):
                lines = source.read_text(encoding="utf-8").split("\n")
                changed = [_thinned(line, rng) for line in lines]
                (place / source.name).write_text("\n".join(changed), encoding="utf-8")
            found.append(Templates([place]))
    return found


def _thinned(line: str, rng: random.Random) -> str:
    """A line of fixed words without some of them; lines with JSON or variables stay."""
    if "{" in line or rng.random() < 0.5:
        return line
    kept = rng.uniform(0.5, 1.0)
    return " ".join(word for word in line.split(" ") if rng.random() < kept)


def vocabulary() -> list[str]:
    """Words that every tokenizer of the lab should know whole."""
    marks = [f"{mark}{room}" for mark in MARKS for room in ROOMS]
    words = [*DEVICES, *ROOMS, *VERBS, *OPENERS, *CLOSERS, *HOUSES]
    return [*words, *marks, *NOTATIONS, *SPELLINGS]
