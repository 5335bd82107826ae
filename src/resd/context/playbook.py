"""The playbook: a persistent list of lessons that all samples share (paper: section 3.3, App. D).

Two admission rules. `immediate` is the paper's: what a curator adds is in. Under `confirmed` an
entry is a candidate until a second, independent reflection supports it; candidates are shown to
reflector and curator but not to the teacher, and entries that contradict compete by support.
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from resd.context.text import CountTokens, approximate_tokens, one_line

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

_LINE = re.compile(r"\[((?:sai|calc|code|err|heu|ctx|misc)-\d{5,})\] helpful=(\d+) harmful=(\d+) :: (.*)")
_SILENT = frozenset("a an the is are be to of that this please always should must will".split())
_SIGNIFICANT = re.compile(r"[^a-z]|^(?:no|not|never|none|without|only|except)$")
_SEEN_BOUND = 64


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


def significant_words(content: str) -> list[str]:
    """The words and symbols of a lesson that carry its meaning, in order."""
    words = re.findall(r"\w+|[^\w\s]", content.strip().rstrip("."))
    if words:
        words[0] = words[0][:1].lower() + words[0][1:]
    return [w for w in words if w not in _SILENT and w not in "\"'`,"]


def same_lesson(a: str, b: str, similarity: float) -> bool:
    """Whether two lessons say the same.

    They do if their significant words are the same, or if the sequences are at least `similarity`
    alike and what differs holds no number, symbol, capital or negation: a single such token
    ("close with `;`" against "close with `!`") can turn a lesson into its opposite.
    """
    x, y = significant_words(a), significant_words(b)
    if x == y:
        return True
    if min(len(x), len(y)) < (2 * similarity - 1) * max(len(x), len(y)):
        return False
    matcher = difflib.SequenceMatcher(None, x, y, autojunk=False)
    if matcher.real_quick_ratio() < similarity or matcher.ratio() < similarity:
        return False
    changed = [op for op in matcher.get_opcodes() if op[0] != "equal"]
    words = [w for _, i, j, k, m in changed for w in (*x[i:j], *y[k:m])]
    return not any(_SIGNIFICANT.search(word) for word in words)


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
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(
                    f"playbook line {number}: expected '[slug-00001] helpful=0 harmful=0 :: text', "
                    f"found {line[:80]!r}"
                )
            id_, helpful, harmful, content = match.groups()
            if id_ in book.entries:
                raise ValueError(f"playbook line {number}: id {id_} stands twice")
            book.entries[id_] = Entry(id_, content, int(helpful), int(harmful))
            book._serial = max(book._serial, int(id_.rpartition("-")[2]))
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
        """Restore `state_dict()`."""
        entries = [Entry(**item) for item in json.loads(json.dumps(state["entries"]))]
        self.entries = {entry.id: entry for entry in entries}
        self.updates, self._serial = int(state["updates"]), int(state["serial"])

    # -- writing ---------------------------------------------------------------------------

    def begin_update(self) -> Counter[str]:
        """Start a context update (paper: Algorithm 1); runs CONCISE every `concise_every`."""
        self.updates += 1
        counts: Counter[str] = Counter()
        if self.config.concise != "off" and self.updates % self.config.concise_every == 0:
            counts += self._drop_by_class()
        return counts

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
        content = one_line(operation.content)[: self.config.max_entry_chars].strip()
        if operation.op != "REMOVE" and not content:
            return "op_empty"
        if any(id_ not in self.entries for id_ in operation.ids):
            # The curators of a batch read the same snapshot: an earlier one may have been first.
            # What an UPDATE says is worth keeping all the same.
            if operation.op != "UPDATE":
                return "op_unknown_id"
            operation = Operation("ADD", content, operation.ids[0].partition("-")[0])
        targets = [self.entries[id_] for id_ in dict.fromkeys(operation.ids)]
        if operation.op == "REMOVE":
            return self._remove(targets[0], evidence)
        twin = self._twin(content)
        if twin is not None and twin not in targets:
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
        if self._confirmed:
            self._count_tag(twin, evidence, pro=True)
        for target in targets:
            if not self._confirmed:
                del self.entries[target.id]
            elif operation.op == "UPDATE":
                target.vote(evidence, pro=False)
        return "op_duplicate"

    def _rewrite(
        self, targets: Sequence[Entry], operation: Operation, content: str, evidence: str
    ) -> str:
        """UPDATE and MERGE: at once, or as a candidate that must earn its place."""
        name = f"op_{operation.op.lower()}"
        if self._confirmed:
            if any(content == target.content for target in targets) and operation.op == "UPDATE":
                return "op_duplicate"
            if operation.op == "UPDATE":
                targets[0].vote(evidence, pro=False)
            entry = self._insert(targets[0].section, content, evidence)
            entry.replaces = [target.id for target in targets]
        elif operation.op == "UPDATE":
            # The counts were earned by the old words.
            targets[0].content, targets[0].helpful, targets[0].harmful = content, 0, 0
            targets[0].created, targets[0].tagged = self.updates, None
        else:
            for target in targets:
                del self.entries[target.id]
            entry = self._insert(targets[0].section, content, evidence)
            entry.helpful = sum(target.helpful for target in targets)
            entry.harmful = sum(target.harmful for target in targets)
            entry.tagged = max((t.tagged for t in targets if t.tagged is not None), default=None)
        return name

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

    def _twin(self, content: str) -> Entry | None:
        for entry in self.entries.values():
            if same_lesson(entry.content, content, self.config.merge_similarity):
                return entry
        return None

    @property
    def _confirmed(self) -> bool:
        return self.config.admission == "confirmed"

    def _settle(self) -> Counter[str]:
        """Confirmed admission: admit what is supported, drop what is outvoted."""
        counts: Counter[str] = Counter()
        if not self._confirmed:
            return counts
        for entry in list(self.entries.values()):
            if entry.against > entry.support:
                del self.entries[entry.id]
                counts["dropped_outvoted"] += 1
        for entry in self.all():
            rivals = [self.entries[i] for i in entry.replaces if i in self.entries]
            ready = entry.support >= self.config.confirmations and entry.support > entry.against
            beaten = any(rival.admitted and rival.net >= entry.net for rival in rivals)
            entry.admitted = ready and not beaten
            if entry.admitted:
                for rival in rivals:
                    del self.entries[rival.id]
                    counts["dropped_replaced"] += 1
                entry.replaces = []
        return counts

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
        counts: Counter[str] = Counter()
        if not self._over_budget():
            return counts
        if self.config.concise != "off":
            counts += self._drop_by_class()
        tokens = self.tokens()
        for entry in self._eviction_order():
            if len(self) <= self.config.max_entries and tokens <= self.config.max_tokens:
                break
            tokens -= self._line_tokens(entry)
            del self.entries[entry.id]
            counts["dropped_budget"] += 1
        return counts

    def _over_budget(self) -> bool:
        return len(self) > self.config.max_entries or self.tokens() > self.config.max_tokens

    def _line_tokens(self, entry: Entry) -> int:
        return self._count_tokens(entry.render() + "\n")

    def _eviction_order(self) -> list[Entry]:
        """Candidates first; then the longest untagged, or (prioritized) seeded at random."""
        entries = self.all()
        if self.config.concise == "prioritized":
            random.Random(f"{self._seed}/{self.updates}").shuffle(entries)
            return sorted(entries, key=lambda e: e.admitted)
        return sorted(
            entries,
            key=lambda e: (e.admitted, e.created if e.tagged is None else e.tagged, e.created),
        )
