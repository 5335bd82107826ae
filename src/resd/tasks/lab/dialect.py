"""Dialects: the hidden conventions of a private command language.

A dialect fixes six conventions. Every convention is a *fact*, written in one line with its key
and its value side by side (`verb: lamp zap`), and a playbook can be scored against the facts.

A command has an opener, then a room, a verb and a level in the dialect's order, then a closer:
`hey @hall zap iv end`. The chance that a guess is right is 1 in 6 * 6 * 6 * 6 * 8 * 8 = 82,944.

Two things may come to it. A *shift*: levels are written so much higher than they are meant, which
no message says. A *house*: facts carry its name (`birch verb: lamp zap`), so that what is known of
several dialects can stand side by side.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

DEVICES = ("lamp", "fan", "door", "heater", "blind", "horn", "pump", "valve")
ROOMS = ("hall", "attic", "cellar", "kitchen", "garage", "porch")
VERBS = ("zap", "buzz", "flip", "nudge", "twirl", "prod", "whisk", "yank")
OPENERS = ("hey", "please", "do", "yo", "now", "ahoy")
CLOSERS = ("end", "over", "stop", "done", "amen", "fin")
MARKS = ("@", "#", "%", "&", "~", "+")
ORDERS = tuple(itertools.permutations(("room", "verb", "level")))
LEVELS = range(1, 10)
SHIFTS = range(1, 9)
SHIFTED = "levels are shifted"
HOUSES = (
    *("birch", "oak", "elm", "ash", "maple", "cedar", "pine", "willow"),
    *("rowan", "hazel", "alder", "larch", "beech", "aspen", "holly", "yew"),
)
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")
# How each notation writes the levels 1 to 9; no two notations share a spelling.
NOTATIONS = {
    "digits": tuple("123456789"),
    "words": _WORDS,
    "roman": _ROMAN,
    "capitals": tuple("ABCDEFGHI"),
    "doubled": tuple(f"{n}{n}" for n in LEVELS),
    "led": tuple(f"L{n}" for n in LEVELS),
    "times": tuple(f"{n}x" for n in LEVELS),
    "brackets": tuple(f"({n})" for n in LEVELS),
}
SPELLINGS = {
    spelling: (notation, level)
    for notation, spellings in NOTATIONS.items()
    for level, spelling in zip(LEVELS, spellings, strict=True)
}


@dataclass(frozen=True)
class Dialect:
    """The hidden conventions.

    Attributes:
        order: a permutation of ("room", "verb", "level").
        notation: how levels are written, a key of `NOTATIONS`.
        verbs: the verb of each device, in the order of `DEVICES`; a permutation of `VERBS`.
        shift: how much higher a level is written than it is meant, 9 being followed by 1; 0 to 8.
        house: the house whose dialect it is, one of `HOUSES`; "" for none.
    """

    opener: str
    closer: str
    mark: str
    order: tuple[str, ...]
    notation: str
    verbs: tuple[str, ...]
    shift: int = 0
    house: str = ""

    @classmethod
    def sample(cls, rng: random.Random) -> Dialect:
        """A dialect without shift and house, uniform over all of them."""
        return cls(
            opener=rng.choice(OPENERS),
            closer=rng.choice(CLOSERS),
            mark=rng.choice(MARKS),
            order=rng.choice(ORDERS),
            notation=rng.choice(tuple(NOTATIONS)),
            verbs=tuple(rng.sample(VERBS, len(VERBS))),
        )

    @classmethod
    def numbered(cls, number: int, *, shifted: bool = False, house: str = "") -> Dialect:
        """Dialect number 0, 1, 2, ...: the same one on every machine."""
        shift = random.Random(f"shift {number}").choice(SHIFTS) if shifted else 0
        return replace(cls.sample(random.Random(f"dialect {number}")), shift=shift, house=house)

    def verb_of(self, device: str) -> str:
        """The verb that drives a device."""
        return self.verbs[DEVICES.index(device)]

    def device_of(self, verb: str) -> str:
        """The device that a verb drives."""
        return DEVICES[self.verbs.index(verb)]

    def facts(self) -> list[str]:
        """The whole dialect, one fact a line; the complete playbook."""
        facts = [
            f"open: {self.opener}",
            f"close: {self.closer}",
            f"room: {self.mark}",
            f"order: {' '.join(self.order)}",
            f"level: {self.notation}",
            *([f"shift: {self.shift}"] if self.shift else []),
            *(f"verb: {device} {verb}" for device, verb in zip(DEVICES, self.verbs, strict=True)),
        ]
        return [self.own(fact) for fact in facts]

    def own(self, fact: str) -> str:
        """A fact with the name of the house that it holds in."""
        return f"{self.house} {fact}" if self.house else fact

    def heading(self, known: int = 0) -> list[str]:
        """What a question says before its requests: the house, and the first facts, 0 to 5.

        That levels are shifted is said, and not by how much: a reader who could not tell such
        dialects from the others would look for a shift behind every wrong level (LOG.md).
        """
        house = [f"in {self.house} house"] if self.house else []
        return house + ([SHIFTED] if self.shift else []) + self.facts()[:known]

    def write(self, level: int) -> str:
        """A level in the dialect's notation."""
        return NOTATIONS[self.notation][level - 1]

    def shifted(self, level: int) -> int:
        """The level that is to be written for one that is meant."""
        return (level - 1 + self.shift) % 9 + 1

    def meant(self, level: int) -> int:
        """What a level that is written brings about."""
        return (level - 1 - self.shift) % 9 + 1

    def command(self, device: str, room: str, level: int) -> str:
        """The one right command for a request."""
        parts = {
            "room": f"{self.mark}{room}",
            "verb": self.verb_of(device),
            "level": self.write(self.shifted(level)),
        }
        return " ".join([self.opener, *(parts[slot] for slot in self.order), self.closer])


def fact_key(fact: str) -> str:
    """What a fact is about: two facts with the same key and different values contradict.

    >>> fact_key("verb: lamp zap"), fact_key("birch close: end")
    ('verb: lamp', 'birch close:')
    """
    house, words = _read(fact)
    return " ".join([*house, *(words[:2] if words[:1] == ["verb:"] else words[:1])])


def _read(fact: str) -> tuple[list[str], list[str]]:
    """The name of the house, if there is one, and the other words."""
    words = fact.split()
    return (words[:1], words[1:]) if words[:1] and words[0] in HOUSES else ([], words)


def contradicts(fact: str, other: str) -> bool:
    """Whether two facts cannot both be true (a verb drives one device, a device has one verb)."""
    if fact == other:
        return False
    if fact_key(fact) == fact_key(other):
        return True
    (house, a), (its_house, b) = _read(fact), _read(other)
    return house == its_house and a[:1] == b[:1] == ["verb:"] and a[-1] == b[-1]


def normalise_fact(text: str) -> str:
    """Case, spacing and a full stop do not change a fact."""
    return " ".join(text.lower().strip().rstrip(".").split())


def score_facts(contents: Iterable[str], dialect: Dialect) -> dict[str, float]:
    """Precision and recall of a playbook against the dialect's facts, each between 0 and 1.

    Precision is over entries (a wrong or meaningless entry counts against it), recall over facts.
    An empty playbook has precision 1. What is said of another house is not judged.
    """
    stated = [normalise_fact(content) for content in contents]
    stated = [fact for fact in stated if _read(fact)[0] in ([], [dialect.house])]
    truth = set(dialect.facts())
    right = sum(fact in truth for fact in stated)
    return {
        "precision": right / len(stated) if stated else 1.0,
        "recall": len(truth.intersection(stated)) / len(truth),
    }
