"""The playbook itself: entries in, text out, operations applied."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from resd.context.playbook.admission import settle
from resd.context.playbook.concise import drop_by_class, eviction_order
from resd.context.playbook.config import PlaybookConfig
from resd.context.playbook.entry import SECTIONS, Entry, Event, Operation, Tag
from resd.context.playbook.similarity import same_lesson
from resd.text import (
    CountTokens,
    approximate_tokens,
    one_line,
    says_something,
)

_LINE = re.compile(
    rf"\[((?:{'|'.join(SECTIONS)})-([0-9]{{5,18}}))\] "
    r"helpful=([0-9]{1,18}) harmful=([0-9]{1,18}) :: (.*)"
)
_TEXTS_KEPT = 64
_WANTED_IDS = {"ADD": (0, 0), "UPDATE": (1, 1), "REMOVE": (1, 1), "MERGE": (2, 1 << 30)}


class Playbook:
    """Entries in, text out, operations applied.

    `events` holds what happened to its entries since the last update began, in order.

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
        self._changed = 0
        self._count_tokens = count_tokens
        self._tokens: dict[str, int] = {}
        self.events: list[Event] = []

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
            "changed": self._changed,
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
        self._changed = int(state["changed"])

    # -- writing ---------------------------------------------------------------------------

    def begin_update(self) -> Counter[str]:
        """Start a context update (paper: Algorithm 1).

        Runs CONCISE after every `concise_every` updates (at the start of updates 5, 9, 13, ... by
        default), and whenever the budget is exceeded.
        """
        done = self.updates
        self.updates += 1
        self._changed, self.events = 0, []
        counts: Counter[str] = Counter()
        if self.config.concise != "off" and done and done % self.config.concise_every == 0:
            counts += drop_by_class(self.entries, self.config, self.updates, self._tell)
        return counts + self._hold_budget()

    def tag(self, tags: Iterable[tuple[str, Tag]], evidence: str) -> Counter[str]:
        """Apply one reflection's tags.

        Args:
            tags: pairs of entry id and tag; unknown ids, and more entries tagged harmful than one
                output may, are counted and ignored.
            evidence: names the trial that the reflection is about.
        """
        counts: Counter[str] = Counter()
        harmful: set[str] = set()
        for id_, verdict in tags:
            entry = self.entries.get(id_)
            if entry is None:
                counts["tag_unknown_id"] += 1
                continue
            if verdict == "harmful":
                if len(harmful | {id_}) > self.config.max_harmful_per_output:
                    counts["tag_over_bound"] += 1
                    continue
                harmful.add(id_)
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
            touched: set[str] = set()
            for operation in operations:
                counts[self._apply_one(operation, evidence, touched)] += 1
        room = max(0, self.config.max_changes_per_update - self._changed)
        before = {entry.id for entry in self.shown()}
        settled, gone = settle(self.entries, self.config, room, self._tell)
        for entry in self.all():
            if entry.admitted != (entry.id in before):
                self._tell("admitted" if entry.admitted else "withdrawn", entry.id)
        self._changed += gone
        counts += settled
        counts += self._hold_budget()
        return +counts

    def _apply_one(self, operation: Operation, evidence: str, touched: set[str]) -> str:
        """Apply an operation of an output that has `touched` these entries; what came of it."""
        if self.config.add_only and operation.op != "ADD":
            return "op_not_allowed"
        fewest, most = _WANTED_IDS.get(operation.op, (1, 0))
        if not fewest <= len(set(operation.ids)) <= most:
            return "op_malformed"
        content = one_line(operation.content)
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
        if operation.op == "UPDATE" and self._same(targets[0].content, content):
            # Other words for the same: nothing to vote on, and the counts stay.
            return "op_duplicate"
        refused = self._over_bounds(operation, touched)
        if refused:
            return refused
        if operation.op == "REMOVE":
            return self._remove(targets[0], evidence)
        twin = self._twin(content, besides=operation.ids)
        if twin is not None:
            return self._agree(twin, targets, operation, evidence)
        if operation.op == "ADD":
            self._insert(operation.section, content, evidence)
            return "op_add"
        return self._rewrite(targets, operation, content, evidence)

    def _over_bounds(self, operation: Operation, touched: set[str]) -> str:
        """Why an operation would change too many entries; else empty, and they are noted."""
        changed = set(operation.ids)
        if changed and len(touched | changed) > self.config.max_changes_per_output:
            return "op_over_output_bound"
        # Under confirmed admission operations only vote: what votes change is bounded by `settle`.
        if not self._confirmed:
            if changed and self._changed + len(changed) > self.config.max_changes_per_update:
                return "op_over_update_bound"
            self._changed += len(changed)
        touched |= changed
        return ""

    def _remove(self, entry: Entry, evidence: str) -> str:
        if self._confirmed:
            self._vote(entry, evidence, pro=False)
            return "op_remove_vote"
        del self.entries[entry.id]
        self._tell("dropped", entry.id, "removed", evidence)
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
            self._vote(targets[0], evidence, pro=False)
        return "op_duplicate"

    def _rewrite(
        self, targets: Sequence[Entry], operation: Operation, content: str, evidence: str
    ) -> str:
        """UPDATE and MERGE: at once, or as a candidate that must earn its place."""
        name = f"op_{operation.op.lower()}"
        if self._confirmed:
            if operation.op == "UPDATE":
                self._vote(targets[0], evidence, pro=False)
            entry = self._insert(targets[0].section, content, evidence)
            entry.replaces = [target.id for target in targets]
        elif operation.op == "UPDATE":
            self._tell("rewritten", targets[0].id, targets[0].content, evidence)
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
            self._tell("dropped", target.id, f"merged into {entry.id}")
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
        self._tell("added", entry.id, content, evidence)
        return entry

    def _count_tag(self, entry: Entry, evidence: str, *, pro: bool) -> None:
        entry.helpful += pro
        entry.harmful += not pro
        entry.tagged = self.updates
        self._tell("tagged", entry.id, "helpful" if pro else "harmful", evidence)
        self._vote(entry, evidence, pro=pro)

    def _vote(self, entry: Entry, evidence: str, *, pro: bool) -> None:
        if evidence not in entry.seen:
            self._tell("supported" if pro else "opposed", entry.id, evidence=evidence)
        entry.vote(evidence, pro=pro)

    def _tell(self, what: str, id_: str, detail: str = "", evidence: str = "") -> None:
        self.events.append(Event(what, id_, evidence, detail))

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

    def _hold_budget(self) -> Counter[str]:
        """CONCISE with a budget: classes first, then entries one by one until the rest fits."""
        counts: Counter[str] = Counter()
        if not self._over_budget(self.tokens()):
            return counts
        if self.config.concise != "off":
            counts += drop_by_class(self.entries, self.config, self.updates, self._tell)
        # What can never fit goes first: it would drive everything else out.
        lines = {entry.id: self._line_tokens(entry) for entry in self.all()}
        order = eviction_order(self.all(), self.config, self._seed, self.updates)
        order.sort(key=lambda entry: lines[entry.id] <= self.config.max_tokens)
        tokens = sum(lines.values())
        for entry in order:
            if not self._over_budget(tokens):
                break
            tokens -= lines[entry.id]
            del self.entries[entry.id]
            self._tell("dropped", entry.id, "budget")
            counts["dropped_budget"] += 1
        return counts

    def _over_budget(self, tokens: int) -> bool:
        """By entries, by tokens summed over the lines, or by tokens of the whole text."""
        config = self.config
        if len(self) > config.max_entries or tokens > config.max_tokens:
            return True
        return len(self) > 0 and self._count(self.render()) > config.max_tokens

    def _line_tokens(self, entry: Entry) -> int:
        return self._count(entry.render() + "\n")

    def _count(self, text: str) -> int:
        """Tokens of a text, counted once; the texts asked for longest ago are forgotten."""
        count = self._tokens.pop(text, None)
        if count is None:
            count = self._count_tokens(text)
        self._tokens[text] = count
        if len(self._tokens) > 2 * len(self.entries) + _TEXTS_KEPT:
            del self._tokens[next(iter(self._tokens))]
        return count
