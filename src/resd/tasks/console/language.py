"""Dialects of the console's language, and the console that reads them.

A command is a verb, a room and a level: `hum hall 7`. The form stands in the prompt, with an
example about a device that is never asked for; what is hidden is the verb of each device, which
nothing about the device tells.

No message holds a right answer. A verb that the console does not know gets the list of the verbs,
not what they do; the verb of another device gets told which device that is. With six devices a
right command takes luck, or what was found out at other requests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from resd.tasks.lab.dialect import DEVICES, ROOMS
from resd.tasks.lab.interpreter import Request

# Short words, of which common vocabularies know each as one token or two.
VERBS = (
    *("zap", "buzz", "flip", "prod", "yank", "hum", "dig", "tap", "spin", "bend", "fold", "knit"),
    *("push", "kick", "wink", "drum", "peel", "rub", "chew", "hop", "nod", "sew", "dip", "mop"),
)
_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Dialect:
    """What is hidden.

    Attributes:
        verbs: the verb of each device.
    """

    verbs: dict[str, str]

    @classmethod
    def numbered(cls, number: int, devices: int) -> Dialect:
        """Dialect number 0, 1, 2, ... for the first so many devices; the same everywhere."""
        verbs = random.Random(f"console {number}").sample(VERBS, devices)
        return cls(dict(zip(DEVICES, verbs, strict=False)))

    def command(self, request: Request) -> str:
        """The one right command."""
        return f"{self.verbs[request.device]} {request.room} {request.level}"

    def device_of(self, verb: str) -> str | None:
        """The device that a verb moves; None if the console does not know it."""
        return next((device for device, own in self.verbs.items() if own == verb), None)

    def known(self) -> str:
        """The verbs, without what they do."""
        return f"The console knows these verbs: {', '.join(sorted(self.verbs.values()))}."


def check(dialect: Dialect, request: Request, response: str) -> str:
    """What the console says of a response; empty if it does exactly what was requested."""
    lines = [line.split() for line in response.splitlines() if line.split()]
    if len(lines) != 1 or len(lines[0]) != 3:
        return f"A command is one line of three words. {dialect.known()}"
    verb, room, level = lines[0]
    moved = dialect.device_of(verb)
    if moved is None:
        # The verb is not named: the same mistake is to give the same lesson.
        return f"The verb is unknown. {dialect.known()}"
    if room not in ROOMS:
        return f"There is no room {room[:_LONGEST_SHOWN]!r}."
    if not re.fullmatch("[1-9]", level):
        return f"There is no level {level[:_LONGEST_SHOWN]!r}; levels are 1 to 9."
    if moved != request.device:
        said = f"The verb {verb} is for the {moved}, not for the {request.device}."
        return f"{said} {dialect.known()}"
    if room != request.room:
        return f"The {moved} in the {room} moved, not the one in the {request.room}."
    if level != str(request.level):
        return f"The {moved} moved to level {level}, not to {request.level}."
    return ""


# What follows a denial up to the end of the clause says nothing of what is.
_DENIED = re.compile(r"\b(?:not|no|never|cannot|instead of|avoid|don't|isn't|doesn't)\b[^,;:]*")


def score_lessons(contents: Iterable[str], dialect: Dialect) -> dict[str, float]:
    """What free-form lessons say about the verbs, each number between 0 and 1.

    A sentence states a verb where it names, beside what it denies, just one device and just one of
    the dialect's verbs. It is right if the two belong together.

    Returns:
        precision: the share of such sentences that are right; 1 without any.
        recall: the share of devices that a right one is about.
        stated: the share of lessons that have such a sentence; 0 without any.
    """
    lessons = [content.lower() for content in contents]
    stated: list[tuple[str, str]] = []
    speaking = 0
    for lesson in lessons:
        before = len(stated)
        for sentence in re.split(r"[.!?](?:\s|$)", lesson):
            words = set(re.findall(r"[a-z]+", _DENIED.sub("", sentence)))
            devices = words.intersection(dialect.verbs)
            verbs = words.intersection(dialect.verbs.values())
            if len(devices) == len(verbs) == 1:
                stated.append((devices.pop(), verbs.pop()))
        speaking += len(stated) > before
    right = [device for device, verb in stated if dialect.verbs[device] == verb]
    return {
        "precision": len(right) / len(stated) if stated else 1.0,
        "recall": len(set(right)) / len(dialect.verbs),
        "stated": speaking / len(lessons) if lessons else 0.0,
    }
