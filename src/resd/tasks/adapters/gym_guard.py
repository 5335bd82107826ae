"""What scoring an answer may do: compute, within limits. And what full marks it may give.

Several scorers of reasoning-gym call `eval` or sympy's `parse_expr` on the answer, so that
`__import__("os").system(...)` would run, `entry["answer"]` would be right wherever it is, and
`Integral(...)` would solve every integral. Python tells an audit hook of all code before it is run.
"""

from __future__ import annotations

import os
import re
import string
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import CodeType
from typing import Any

from resd.tasks.adapters import library_server

CPU_SECONDS = 2

# What an evaluated answer may name: arithmetic, and the elementary functions that integrals hold.
_FUNCTIONS = """
Integer Float Rational Symbol Add Mul Pow Abs sqrt exp log ln sin cos tan sec csc cot asin acos atan
sinh cosh tanh asinh acosh atanh pi
"""
# Variables of integrands; sympy has functions of these four names.
_LETTERS = set(string.ascii_letters) - set("SNOQ")
_ALLOWED_NAMES = frozenset(_FUNCTIONS.split()) | _LETTERS
_STAR_IMPORT = ("sympy",)  # `from sympy import *`: parse_expr executes that
_CODE_WRITER = os.path.join("sympy", "polys", "monomials.py")
_FORBIDDEN_EVENTS = ("os", "subprocess", "socket", "shutil", "ctypes", "pickle", "signal")
_HARMLESS_EVENTS = ("os.listdir", "os.scandir")  # the import system's


class Guard(library_server.Guard):
    """Audit hook: an answer that is evaluated computes; it calls and reaches nothing."""

    def check(self, event: str, args: tuple[Any, ...]) -> None:
        """Refuse code that is no formula, and calls of the system."""
        if event == "exec":
            self._check_code(args[0])
        elif event.partition(".")[0] in _FORBIDDEN_EVENTS and event not in _HARMLESS_EVENTS:
            self.refuse(f"it calls {event}")

    def _check_code(self, code: Any) -> None:
        # A module that is imported late is the package's own code, or sympy's.
        if code.co_filename.startswith("<frozen ") or os.path.isfile(code.co_filename):
            return
        # This one writes functions for polynomials in so many variables, and nothing of the answer.
        if sys._getframe(3).f_code.co_filename.endswith(_CODE_WRITER):
            return
        strange = [name for name in code.co_names if name not in _ALLOWED_NAMES]
        if strange and code.co_names != _STAR_IMPORT:
            self.refuse(f"it names {strange[0]!r:.60}")
        if any(isinstance(constant, CodeType) for constant in code.co_consts):
            self.refuse("it defines a function")


def confine() -> None:
    """Limit this process: it dies when it has used its time; more memory is refused."""
    library_server.limit_process(CPU_SECONDS)


def _same_words(answer: str, entry: Mapping[str, Any]) -> bool:
    """game_of_life_halting compares the truth values of two strings, so any text is right."""
    return answer.strip().casefold() == str(entry["answer"]).casefold()


def _same_fraction(answer: str, entry: Mapping[str, Any]) -> bool:
    """coin_flip gives full marks for any prefix of the right number, and "0" for a small one."""
    right = Fraction(entry["answer"])
    return abs(Fraction(answer.replace(",", "")) - right) <= min(Fraction(1, 10**4), right / 100)


def _uses_its_numbers(answer: str, entry: Mapping[str, Any]) -> bool:
    """puzzle24 takes any four numbers, so "6*4*1*1" solves all, and rounds 24.9 down."""
    from sympy import parse_expr

    used = sorted(int(number) for number in re.findall(r"\d+", answer))
    return used == sorted(entry["metadata"]["numbers"]) and bool(parse_expr(answer) == 24)


CONDITIONS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "game_of_life_halting": _same_words,
    "coin_flip": _same_fraction,
    "puzzle24": _uses_its_numbers,
}
