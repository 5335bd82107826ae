"""What is compared: methods, variants of them, and seeds, from the words of the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from resd.config import METHODS, find_method
from resd.errors import UserError

_MOST_SEEDS = 1000
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Variant:
    """One curve.

    Attributes:
        label: what table and picture call it.
        settings: dotted settings beside those that all runs share; the first names the method.
    """

    label: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def slug(self) -> str:
        """The label as a part of a directory's name."""
        return re.sub(r"[^\w.]+", "-", self.label.lower()).strip("-._")


def parse_seeds(text: str) -> list[int]:
    """Seeds, as numbers and ranges.

    >>> parse_seeds("0,1,4-6")
    [0, 1, 4, 5, 6]

    Raises:
        UserError: a part is neither a number nor a range, or a seed stands twice.
    """
    seeds: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([0-9]{1,15})(?:\s*-\s*([0-9]{1,15}))?", part)
        if match is None:
            raise UserError(f"seeds: {part!r} is neither a number nor a range such as 0-4")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise UserError(f"seeds: the range {part} ends before it begins")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise UserError(f"seeds: {part} makes more than {_MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    check_seeds(seeds)
    return seeds


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seed at all, and one that stands twice.

    Raises:
        UserError: as said.
    """
    if not seeds:
        raise UserError("seeds: there is none; write for example --seeds 0-4")
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"seeds: {twice} stands twice")


def parse_variants(
    methods: str, variants: Sequence[str], assignment: Callable[[str], tuple[str, Any]]
) -> list[Variant]:
    """Variants from `resd,sdpo` and from `LABEL: KEY=VALUE ...`.

    Args:
        methods: comma-separated; each is a variant under its own name.
        variants: a label and settings each; they start from resd unless `method.name` is set.
        assignment: makes a key and a value of `KEY=VALUE`.

    Raises:
        UserError: a method is unknown, a label stands twice or makes no name, a setting is
            malformed, or there is nothing to compare.
    """
    names = [name for name in (name.strip() for name in methods.split(",")) if name]
    for name in names:
        if name not in METHODS:
            find_method(name)
    found = [Variant(name, (("method.name", name),)) for name in names]
    found += [_variant(text, assignment) for text in variants]
    check_variants(found)
    return found


def check_variants(variants: Sequence[Variant]) -> None:
    """Refuse no variant at all, and labels that cannot name a directory of their own.

    Raises:
        UserError: as said.
    """
    if not variants:
        raise UserError("there is nothing to compare: name --methods, or a --variant")
    seen: dict[str, str] = {}
    for variant in variants:
        slug = variant.slug
        if not slug:
            raise UserError(f"variant {variant.label!r}: the label needs a letter or a digit")
        if len(slug.encode()) > _LONGEST_NAME:
            raise UserError(f"variant {variant.label[:30]!r}...: the label is too long")
        if slug in seen and seen[slug] == variant.label:
            raise UserError(f"variant {variant.label!r} stands twice; give it another label")
        if slug in seen:
            raise UserError(
                f"variants {seen[slug]!r} and {variant.label!r} would share a directory; "
                "give one another label"
            )
        seen[slug] = variant.label


def _variant(text: str, assignment: Callable[[str], tuple[str, Any]]) -> Variant:
    label, colon, rest = text.partition(":")
    label = " ".join(label.split())
    if not colon or not label:
        raise UserError(f"variant {text!r}: expected 'LABEL: KEY=VALUE ...'")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(f"variant {label!r}: {str(error).lower()} in {rest.strip()!r}") from None
    try:
        settings = [assignment(word) for word in words]
    except UserError as error:
        raise UserError(f"variant {label!r}: {error}") from None
    if all(key != "method.name" for key, _ in settings):
        settings.insert(0, ("method.name", "resd"))
    return Variant(label, tuple(settings))
