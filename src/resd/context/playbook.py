"""The playbook: a persistent list of lessons that all samples share (paper: section 3.3, App. D).

Two admission rules. `immediate` is the paper's: what a curator adds is in. Under `confirmed` an
entry is a candidate until a second, independent reflection supports it; candidates are shown to
reflector and curator but not to the teacher, and entries that contradict compete by support.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from resd.context.similarity import same_lesson
from resd.text import (
    CountTokens,
    approximate_tokens,
    one_line,
    says_something,
    strip_thinking,
)

SECTIONS = {
    "sai": "strategies and insights",
    "calc": "formulas and calculations",
    "code": "code snippets and templates",
    "err": "common mistakes to avoid",
    "heu": "problem-solving heuristics",
    "ctx": "context clues and indicators",
    "misc": "others",
}
Tag = Literal["helpful", "harmful", "neutral"]

_LINE = re.compile(
    rf"\[((?:{'|'.join(SECTIONS)})-([0-9]{{5,18}}))\] "
    r"helpful=([0-9]{1,18}) harmful=([0-9]{1,18}) :: (.*)"
)
_SEEN_BOUND = 64
_WANTED_IDS = {"ADD": (0, 0), "UPDATE": (1, 1), "REMOVE": (1, 1), "MERGE": (2, 1 << 30)}


class PlaybookConfig(BaseModel):
    """Budgets and rules of the playbook."""

    model_config = ConfigDict(extra="forbid")

    max_entries: int = Field(150, ge=1, description="most entries (paper: Mmax, 120 to 200)")
    max_tokens: int = Field(8192, ge=16, description="most tokens of the rendered playbook")
    max_entry_chars: int = Field(1000, ge=16, description="a longer lesson is cut here")
    concise: Literal["staleness", "prioritized", "off"] = Field(
        "staleness", description="how entries are dropped (paper: CONCISE, App. D)"
    )
    concise_every: int = Field(4, ge=1, description="context updates between two cleanings (F)")
    admission: Literal["immediate", "confirmed"] = Field(
        "immediate", description="immediate: the paper's; confirmed: once reflections agree"
    )
    confirmations: int = Field(
        2, ge=1, description="independent reflections that admit an entry (confirmed)"
    )
    candidate_patience: int = Field(
        32, ge=1, description="context updates that a candidate waits for support (confirmed)"
    )
    merge_similarity: float = Field(
        0.95, gt=0, le=1, description="lessons at least this alike are one (1: same words only)"
    )


@dataclass
class Entry:
    """One lesson.

    Attributes:
        id: `slug-00001`; the slug is the section.
        content: one line.
        helpful, harmful: how often reflections tagged it so.
        created: context update that added it.
        tagged: context update that last tagged it helpful or harmful; None if none did.
        support, against: independent reflections for and against it.
        replaces: entries that it was written to replace, by UPDATE or MERGE, while a candidate.
        admitted: whether the teacher sees it.

    Two entries are equal if what they render to is equal; bookkeeping does not count.
    """

    id: str
    content: str
    helpful: int = 0
    harmful: int = 0
    created: int = field(default=0, compare=False)
    tagged: int | None = field(default=None, compare=False)
    support: int = field(default=1, compare=False)
    against: int = field(default=0, compare=False)
    replaces: list[str] = field(default_factory=list, compare=False)
    admitted: bool = field(default=True, compare=False)
    seen: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def section(self) -> str:
        """Slug of the section: sai, calc, code, err, heu, ctx or misc."""
        return self.id.partition("-")[0]

    @property
    def net(self) -> int:
        """Support minus opposition."""
        return self.support - self.against

    def render(self) -> str:
        """One line: `[err-00012] helpful=3 harmful=0 :: content`."""
        return f"[{self.id}] helpful={self.helpful} harmful={self.harmful} :: {self.content}"

    def vote(self, evidence: str, *, pro: bool) -> None:
        """Count one reflection for or against; the same evidence counts once."""
        if evidence in self.seen:
            return
        self.seen = [*self.seen, evidence][-_SEEN_BOUND:]
        self.support += pro
        self.against += not pro


@dataclass(frozen=True)
class Operation:
    """A curator's wish. `ids` holds one id for UPDATE and REMOVE, two or more for MERGE."""

    op: Literal["ADD", "UPDATE", "MERGE", "REMOVE"]
    content: str = ""
    section: str = "misc"
    ids: tuple[str, ...] = ()


class Playbook:
    """Entries in, text out, operations applied.

    Args:
        config: budgets and rules.
        count_tokens: tokens of a text, for the token budget.
        seed: for `prioritized` eviction.
    """

    def __init__(
        self,
        config: PlaybookConfig | None = None,
        count_tokens: CountTokens = approximate_tokens,
        seed: int = 0,
    ) -> None:
        self.config = config or PlaybookConfig()
        self.entries: dict[str, Entry] = {}
        self.updates = 0
        self._serial = 0
        self._seed = seed
        self._count_tokens = count_tokens

    # -- reading ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Playbook) and list(self.entries.values()) == list(
            other.entries.values()
        )

    __hash__ = None  # type: ignore[assignment]

    def shown(self) -> list[Entry]:
        """What the teacher sees: admitted entries."""
        return [entry for entry in self.entries.values() if entry.admitted]

    def all(self) -> list[Entry]:
        """What reflector and curator see: candidates too."""
        return list(self.entries.values())

    def tokens(self) -> int:
        """Tokens of the rendered playbook, summed over its lines."""
        return sum(self._line_tokens(entry) for entry in self.entries.values())

    def render(self) -> str:
        """One line an entry; `parse` reads it back."""
        return "\n".join(entry.render() for entry in self.entries.values())

    @classmethod
    def parse(cls, text: str, config: PlaybookConfig | None = None, **kwargs: Any) -> Playbook:
        """Read a rendered playbook; `Playbook.parse(p.render()) == p`.

        Raises:
            ValueError: a line that is not an entry, or an id that stands twice.
        """
        book = cls(config, **kwargs)
        for number, line in enumerate(text.split("\n") if text else [], start=1):
            line = line.removesuffix("\r")
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(
                    f"playbook line {number}: expected '[slug-00001] helpful=0 harmful=0 :: text', "
                    f"found {line[:80]!r}"
                )
            id_, serial, helpful, harmful, content = match.groups()
            if id_ in book.entries:
                raise ValueError(f"playbook line {number}: id {id_} stands twice")
            # Whoever hands over a playbook vouches for it.
            book.entries[id_] = Entry(
                id_, content, int(helpful), int(harmful), support=book.config.confirmations
            )
            book._serial = max(book._serial, int(serial))
        return book

    def state_dict(self) -> dict[str, Any]:
        """The whole state as plain JSON."""
        return {
            "version": 1,
            "updates": self.updates,
            "serial": self._serial,
            "entries": [asdict(entry) for entry in self.entries.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: the state is of another version.
        """
        if state["version"] != 1:
            raise ValueError(f"playbook state of version {state['version']!r}, expected 1")
        entries = [Entry(**item) for item in json.loads(json.dumps(state["entries"]))]
        self.entries = {entry.id: entry for entry in entries}
        self.updates, self._serial = int(state["updates"]), int(state["serial"])

    # -- writing ---------------------------------------------------------------------------

    def begin_update(self) -> Counter[str]:
        """Start a context update (paper: Algorithm 1).

        Runs CONCISE every `concise_every` updates, and whenever the budget is exceeded.
        """
        self.updates += 1
        counts: Counter[str] = Counter()
        if self.config.concise != "off" and self.updates % self.config.concise_every == 0:
            counts += self._drop_by_class()
        return counts + self._hold_budget()

    def tag(self, tags: Iterable[tuple[str, Tag]], evidence: str) -> Counter[str]:
        """Apply one reflection's tags.

        Args:
            tags: pairs of entry id and tag; unknown ids are counted and ignored.
            evidence: names the trial that the reflection is about.
        """
        counts: Counter[str] = Counter()
        for id_, verdict in tags:
            entry = self.entries.get(id_)
            if entry is None:
                counts["tag_unknown_id"] += 1
                continue
            counts[f"tag_{verdict}"] += 1
            if verdict != "neutral":
                self._count_tag(entry, evidence, pro=verdict == "helpful")
        return counts

    def apply(self, batch: Iterable[tuple[str, Sequence[Operation]]]) -> Counter[str]:
        """Apply the operations of a batch, in sample order; then settle and hold the budget.

        Args:
            batch: for each curation, the evidence it stands on and its operations.
        """
        counts: Counter[str] = Counter()
        for evidence, operations in batch:
            for operation in operations:
                counts[self._apply_one(operation, evidence)] += 1
        counts += self._settle()
        counts += self._hold_budget()
        return +counts

    def _apply_one(self, operation: Operation, evidence: str) -> str:
        fewest, most = _WANTED_IDS.get(operation.op, (1, 0))
        if not fewest <= len(set(operation.ids)) <= most:
            return "op_malformed"
        content = one_line(strip_thinking(operation.content))
        content = content[: self.config.max_entry_chars].strip()
        if operation.op != "REMOVE":
            if not says_something(content):
                return "op_empty"
            # It could never fit, and would drive everything else out before it leaves itself.
            if self._line_tokens(Entry("misc-00000", content)) > self.config.max_tokens:
                return "op_too_long"
        if any(id_ not in self.entries for id_ in operation.ids):
            # The curators of a batch read the same snapshot: an earlier one may have been first.
            # What an UPDATE says is worth keeping all the same.
            if operation.op != "UPDATE":
                return "op_unknown_id"
            operation = Operation("ADD", content, operation.ids[0].partition("-")[0])
        targets = [self.entries[id_] for id_ in dict.fromkeys(operation.ids)]
        if operation.op == "REMOVE":
            return self._remove(targets[0], evidence)
        twin = self._twin(content, besides=operation.ids)
        if twin is not None:
            return self._agree(twin, targets, operation, evidence)
        if operation.op == "ADD":
            self._insert(operation.section, content, evidence)
            return "op_add"
        return self._rewrite(targets, operation, content, evidence)

    def _remove(self, entry: Entry, evidence: str) -> str:
        if self._confirmed:
            entry.vote(evidence, pro=False)
            return "op_remove_vote"
        del self.entries[entry.id]
        return "op_remove"

    def _agree(
        self, twin: Entry, targets: Sequence[Entry], operation: Operation, evidence: str
    ) -> str:
        """The playbook has this lesson already: a second voice for it."""
        if self._confirmed and evidence not in twin.seen:
            self._count_tag(twin, evidence, pro=True)
        if not self._confirmed:
            self._absorb(twin, targets, counts=operation.op == "MERGE")
        elif operation.op == "UPDATE":
            targets[0].vote(evidence, pro=False)
        return "op_duplicate"

    def _rewrite(
        self, targets: Sequence[Entry], operation: Operation, content: str, evidence: str
    ) -> str:
        """UPDATE and MERGE: at once, or as a candidate that must earn its place."""
        name = f"op_{operation.op.lower()}"
        if operation.op == "UPDATE" and self._same(targets[0].content, content):
            # Other words for the same: nothing to vote on, and the counts stay.
            return "op_duplicate"
        if self._confirmed:
            if operation.op == "UPDATE":
                targets[0].vote(evidence, pro=False)
            entry = self._insert(targets[0].section, content, evidence)
            entry.replaces = [target.id for target in targets]
        elif operation.op == "UPDATE":
            # The counts were earned by the old words.
            targets[0].content, targets[0].helpful, targets[0].harmful = content, 0, 0
            targets[0].created, targets[0].tagged = self.updates, None
        else:
            entry = self._insert(targets[0].section, content, evidence)
            self._absorb(entry, targets, counts=True)
        return name

    def _absorb(self, entry: Entry, targets: Sequence[Entry], *, counts: bool) -> None:
        """Drop the targets; their counts go to the entry that holds their lesson now."""
        for target in targets:
            del self.entries[target.id]
            if counts:
                entry.helpful += target.helpful
                entry.harmful += target.harmful
                tagged = [t for t in (entry.tagged, target.tagged) if t is not None]
                entry.tagged = max(tagged, default=None)

    def _insert(self, section: str, content: str, evidence: str) -> Entry:
        slug = section if section in SECTIONS else "misc"
        self._serial += 1
        entry = Entry(
            id=f"{slug}-{self._serial:05d}",
            content=content,
            created=self.updates,
            admitted=not self._confirmed or self.config.confirmations == 1,
            seen=[evidence],
        )
        self.entries[entry.id] = entry
        return entry

    def _count_tag(self, entry: Entry, evidence: str, *, pro: bool) -> None:
        entry.helpful += pro
        entry.harmful += not pro
        entry.tagged = self.updates
        entry.vote(evidence, pro=pro)

    def _twin(self, content: str, besides: Sequence[str]) -> Entry | None:
        """The first entry that says the same, `besides` those that are to be rewritten."""
        for entry in self.entries.values():
            if entry.id not in besides and self._same(entry.content, content):
                return entry
        return None

    def _same(self, a: str, b: str) -> bool:
        return same_lesson(a, b, self.config.merge_similarity)

    @property
    def _confirmed(self) -> bool:
        return self.config.admission == "confirmed"

    def _settle(self) -> Counter[str]:
        """Confirmed admission: admit what is supported, drop what is outvoted."""
        counts: Counter[str] = Counter()
        for entry in self.all():
            if not self._confirmed:
                entry.admitted = True
            elif entry.against > entry.support:
                del self.entries[entry.id]
                counts["dropped_outvoted"] += 1
        # The best supported first: of several that want one place, it gets it.
        for entry in sorted(self.all(), key=lambda e: -e.net) if self._confirmed else ():
            if entry.id not in self.entries:
                continue
            rivals = [self.entries[i] for i in entry.replaces if i in self.entries]
            ready = entry.support >= self.config.confirmations and entry.support > entry.against
            beaten = any(rival.admitted and rival.net >= entry.net for rival in rivals)
            entry.admitted = ready and not beaten
            if entry.admitted:
                counts["dropped_replaced"] += self._replace(rivals, entry)
        return counts

    def _replace(self, rivals: Sequence[Entry], entry: Entry) -> int:
        """Drop what an admitted entry replaces; who else wanted that place must beat it."""
        entry.replaces = []
        gone = {rival.id for rival in rivals}
        for id_ in gone:
            del self.entries[id_]
        for other in self.entries.values():
            if gone.intersection(other.replaces):
                kept = [id_ for id_ in other.replaces if id_ not in gone]
                other.replaces = [*kept, entry.id]
        return len(gone)

    def _drop_by_class(self) -> Counter[str]:
        """CONCISE without a budget: harmful entries go, and unused ones after their grace."""
        counts: Counter[str] = Counter()
        for entry in list(self.entries.values()):
            reason = self._class_to_drop(entry)
            if reason:
                del self.entries[entry.id]
                counts[reason] += 1
        return counts

    def _class_to_drop(self, entry: Entry) -> str | None:
        age = self.updates - entry.created
        if self._confirmed and not entry.admitted:
            last = entry.created if entry.tagged is None else entry.tagged
            waited = self.updates - last
            return "dropped_unconfirmed" if waited > self.config.candidate_patience else None
        if entry.harmful >= entry.helpful and entry.harmful > 0:
            return "dropped_harmful"
        # One update of grace: last step's entries have not been seen by any reflector yet.
        if entry.helpful + entry.harmful == 0 and age > 1:
            return "dropped_unused"
        return None

    def _hold_budget(self) -> Counter[str]:
        """CONCISE with a budget: classes first, then entries one by one until the rest fits."""
        counts: Counter[str] = Counter()
        if not self._over_budget(self.tokens()):
            return counts
        if self.config.concise != "off":
            counts += self._drop_by_class()
        # What can never fit goes first: it would drive everything else out.
        lines = {entry.id: self._line_tokens(entry) for entry in self.all()}
        order = sorted(
            self._eviction_order(), key=lambda entry: lines[entry.id] <= self.config.max_tokens
        )
        tokens = sum(lines.values())
        for entry in order:
            if not self._over_budget(tokens):
                break
            tokens -= lines[entry.id]
            del self.entries[entry.id]
            counts["dropped_budget"] += 1
        return counts

    def _over_budget(self, tokens: int) -> bool:
        """By entries, by tokens summed over the lines, or by tokens of the whole text."""
        config = self.config
        if len(self) > config.max_entries or tokens > config.max_tokens:
            return True
        return len(self) > 0 and self._count_tokens(self.render()) > config.max_tokens

    def _line_tokens(self, entry: Entry) -> int:
        return self._count_tokens(entry.render() + "\n")

    def _eviction_order(self) -> list[Entry]:
        """Candidates first; then the longest untagged, or (prioritized) seeded at random.

        What no reflector has tagged yet, and is here by its grace, leaves last.
        """
        entries = self.all()
        if self.config.concise == "prioritized":
            random.Random(f"{self._seed}/{self.updates}").shuffle(entries)
            return sorted(entries, key=lambda e: (e.admitted, e.helpful + e.harmful == 0))
        return sorted(
            entries,
            key=lambda e: (e.admitted, e.created if e.tagged is None else e.tagged, e.created),
        )
