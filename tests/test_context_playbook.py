"""The playbook: entries, text, state, operations, tags, and a state machine over all of it."""

import json

import pytest
from books import add, contents, holding, ids, merge, remove, update
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resd.context import Entry, Operation, Playbook, PlaybookConfig
from resd.context.playbook import SECTIONS

# -- text ------------------------------------------------------------------------------------------


def test_an_entry_is_one_line():
    entry = Entry("err-00012", "Mind the end :: always.", helpful=3)
    assert entry.render() == "[err-00012] helpful=3 harmful=0 :: Mind the end :: always."
    assert entry.section == "err"


def test_what_is_rendered_is_read_back():
    book = holding(
        Entry("err-00012", "a :: b", 3, 1),
        Entry("sai-123456", "[err-00012] helpful=3 harmful=0 :: x\u00a0é", 0, 7),
    )
    text = book.render()
    assert Playbook.parse(text) == book
    assert Playbook.parse(text + "\n") == book
    assert Playbook.parse(text.replace("\n", "\r\n")) == book
    assert Playbook.parse(text.replace("\n", "\n\n")) == book
    assert Playbook.parse("") == Playbook()
    # What is read is older than the first update, untagged; new entries get new ids.
    read = Playbook.parse(text)
    assert {(entry.created, entry.tagged) for entry in read.all()} == {(0, None)}
    read.apply([("e", [add("c", "ctx")])])
    assert ids(read)[-1] == "ctx-123457"


def test_playbooks_differ_where_their_text_does():
    book = holding(Entry("err-00001", "a", 1))
    kept = {"support": 9, "against": 2, "created": 4, "tagged": 3, "admitted": False}
    assert book == holding(Entry("err-00001", "a", 1, replaces=["b"], seen=["e"], **kept))
    assert book != holding(Entry("err-00001", "a", 2))
    assert book != holding(Entry("err-00001", "b", 1))
    assert book != holding(Entry("err-00002", "a", 1))
    assert book != holding(Entry("err-00001", "a", 1), Entry("err-00002", "c"))
    assert book != book.render()


@pytest.mark.parametrize(
    "line",
    [
        "a lesson",
        "[err-1] helpful=0 harmful=0 :: a",
        "[xyz-00001] helpful=0 harmful=0 :: a",
        "[err-00001] helpful=-1 harmful=0 :: a",
        "[err-00001] helpful=\u0663 harmful=0 :: a",
        "[err-0000\u0661] helpful=0 harmful=0 :: a",
        "[err-00001] helpful=0 harmful=\u0661 :: a",
        "[err-00001] helpful=0 harmful=0 : a",
        "[err-00001] helpful=0 harmful=" + "9" * 5000 + " :: a",
    ],
)
def test_what_is_no_entry_is_refused_by_line(line):
    good = "[sai-00001] helpful=0 harmful=0 :: a\n"
    with pytest.raises(ValueError, match=r"playbook line 2: expected '\[slug-00001\]"):
        Playbook.parse(good + line)


def test_an_id_that_stands_twice_is_refused():
    line = "[sai-00001] helpful=0 harmful=0 :: a"
    with pytest.raises(ValueError, match="playbook line 2: id sai-00001 stands twice"):
        Playbook.parse(line + "\n" + line)


def test_a_playbook_that_was_handed_over_is_admitted_and_stays():
    book = Playbook.parse(
        "[sai-00001] helpful=0 harmful=0 :: a", PlaybookConfig(admission="confirmed")
    )
    book.apply([])
    assert contents(book) == ["a"] and len(book.shown()) == 1


def test_state_goes_through_json():
    book = holding(Entry("err-00001", "a", 1, 2, 3, 4, 5, 6, ["x"], False, ["e"]))
    book.begin_update()
    state = json.loads(json.dumps(book.state_dict()))
    other = Playbook()
    other.load_state_dict(state)
    assert other.state_dict() == state == book.state_dict()
    assert vars(other.all()[0]) == vars(book.all()[0])
    # Nothing is shared.
    other.all()[0].seen.append("f")
    assert book.all()[0].seen == ["e"] and state["entries"][0]["seen"] == ["e"]
    other.apply([("e", [add("b")])])
    assert ids(other) == ["err-00001", "misc-00002"]


def test_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 2"):
        Playbook().load_state_dict({**Playbook().state_dict(), "version": 2})


def test_sections_are_those_of_the_paper():
    assert list(SECTIONS) == ["sai", "calc", "code", "err", "heu", "ctx", "misc"]


# -- operations ------------------------------------------------------------------------------------


def test_what_is_added_is_one_clean_line():
    book = Playbook()
    book.apply([("e", [add(" a\n b\u2028c\x00\ud800\u200b <think>d", "err"), add("x", "?")])])
    assert [(e.id, e.content) for e in book.all()] == [
        *(("err-00001", "a b c <think>d"), ("misc-00002", "x"))
    ]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (add(""), "op_empty"),
        (add("\u200b\n"), "op_empty"),
        (update("sai-00001", "..."), "op_empty"),
        (remove("err-00009"), "op_unknown_id"),
        (merge(["sai-00001", "err-00009"], "x"), "op_unknown_id"),
        (merge(["sai-00001", "sai-00001"], "x"), "op_malformed"),
        (merge([], "x"), "op_malformed"),
        (Operation("REMOVE"), "op_malformed"),
        (Operation("UPDATE", "x"), "op_malformed"),
        (Operation("UPDATE", "x", ids=("sai-00001", "sai-00002")), "op_malformed"),
        (Operation("EAT", "x", ids=("sai-00001",)), "op_malformed"),
    ],
)
@pytest.mark.parametrize("admission", ["immediate", "confirmed"])
def test_operations_that_mean_nothing_are_counted(operation, reason, admission):
    book = holding(
        Entry("sai-00001", "a", 1, support=2),
        Entry("sai-00002", "b", 1, support=2),
        admission=admission,
    )
    before = book.state_dict()
    assert book.apply([("e", [operation])]) == {reason: 1}
    assert book.state_dict() == before


def test_an_update_forgets_the_counts_of_the_old_words():
    book = holding(Entry("sai-00001", "left is first", 5, 2, created=0, tagged=3))
    book.updates = 7
    assert book.apply([("e", [update("sai-00001", "Right is first")])]) == {"op_update": 1}
    assert vars(book.all()[0]) | {"seen": []} == vars(
        Entry("sai-00001", "Right is first", created=7)
    )


def test_an_update_that_says_the_same_keeps_the_counts():
    for admission in ("immediate", "confirmed"):
        book = holding(
            Entry("sai-00001", "Mind the end.", 5, 2, support=2, tagged=3), admission=admission
        )
        before = book.state_dict()
        assert book.apply([("e", [update("sai-00001", "mind the `end`")])]) == {"op_duplicate": 1}
        assert book.state_dict() == before


def test_an_update_of_an_entry_that_is_gone_is_kept():
    book = holding(Entry("err-00001", "a", 1))
    counts = book.apply([("e", [remove("err-00001")]), ("f", [update("err-00001", "b")])])
    assert counts == {"op_remove": 1, "op_add": 1}
    assert [(e.id, e.content) for e in book.all()] == [("err-00002", "b")]


def test_an_update_to_what_another_entry_says_leaves_the_other():
    book = holding(Entry("err-00001", "a", 1), Entry("err-00002", "b", 3, 1))
    assert book.apply([("e", [update("err-00001", "B")])]) == {"op_duplicate": 1}
    assert [e.render() for e in book.all()] == ["[err-00002] helpful=3 harmful=1 :: b"]


def test_a_merge_adds_the_counts():
    book = holding(
        Entry("err-00001", "a", 1, 2, tagged=3),
        Entry("sai-00002", "b", 3, 0, tagged=5),
        Entry("sai-00003", "c"),
    )
    operation = merge(["sai-00002", "err-00001", "sai-00002"], "a and b")
    assert book.apply([("e", [operation])]) == {"op_merge": 1}
    assert [e.render() for e in book.all()] == [
        "[sai-00003] helpful=0 harmful=0 :: c",
        "[sai-00004] helpful=4 harmful=2 :: a and b",
    ]
    assert book.all()[1].tagged == 5


def test_a_merge_into_what_another_entry_says_adds_the_counts_there():
    book = holding(
        Entry("err-00001", "a", 1, 2, tagged=3),
        Entry("sai-00002", "b", 3, 0),
        Entry("sai-00003", "c", 1, tagged=1),
    )
    assert book.apply([("e", [merge(["err-00001", "sai-00002"], "c")])]) == {"op_duplicate": 1}
    assert [e.render() for e in book.all()] == ["[sai-00003] helpful=5 harmful=2 :: c"]
    assert book.all()[0].tagged == 3


def test_near_duplicates_of_one_batch_are_merged():
    book = Playbook()
    batch = [
        ("e", [add("Close every command with `;`.", "code")]),
        ("f", [add("close every command with ;", "err")]),
        ("g", [add("You must always close every command with ;"), add("Close with `!`")]),
    ]
    assert book.apply(batch) == {"op_add": 3, "op_duplicate": 1}
    assert contents(book) == [
        "Close every command with `;`.",
        "You must always close every command with ;",
        "Close with `!`",
    ]


def test_operations_are_applied_in_sample_order():
    book = Playbook()
    book.apply([("e", [add("a"), add("b")]), ("f", [update("misc-00001", "c"), add("d")])])
    assert contents(book) == ["c", "b", "d"]
    assert ids(book) == ["misc-00001", "misc-00002", "misc-00003"]


# -- tags ------------------------------------------------------------------------------------------


def test_tags_count():
    book = holding(Entry("err-00001", "a"), Entry("err-00002", "b"), Entry("err-00003", "c"))
    book.updates = 6
    tags = [("err-00001", "helpful"), ("err-00002", "harmful"), ("err-00003", "neutral")]
    assert book.tag([*tags, ("err-00009", "helpful")], "e") == {
        **{"tag_helpful": 1, "tag_harmful": 1, "tag_neutral": 1},
        "tag_unknown_id": 1,
    }
    assert [(e.helpful, e.harmful, e.tagged) for e in book.all()] == [
        *((1, 0, 6), (0, 1, 6), (0, 0, None))
    ]
    book.tag([("err-00001", "helpful")], "f")
    assert book.all()[0].helpful == 2


# -- a state machine -------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["a", "b", "A.", "c d", "c :: d", "[err-00001] x", "x" * 90, "\u2028", "é漢", "<think>", "e\nf"]
)
EVIDENCE = st.sampled_from("efghij")
COUNTERS = {
    "bytes": lambda text: (len(text.encode()) + 3) // 4,
    "start token": lambda text: len(text.split()) + 2,
    "square": lambda text: len(text) ** 2 // 60,
}


class PlaybookMachine(RuleBasedStateMachine):
    """Random updates, tags, operations and restarts; what must hold, holds after each."""

    def __init__(self):
        super().__init__()
        self.book = None
        self.within_budget = True

    @precondition(lambda self: self.book is None)
    @rule(
        admission=st.sampled_from(["immediate", "confirmed"]),
        concise=st.sampled_from(["staleness", "prioritized", "off"]),
        every=st.integers(1, 4),
        entries=st.integers(1, 6),
        tokens=st.integers(16, 120),
        count=st.sampled_from(sorted(COUNTERS)),
    )
    def start(self, admission, concise, every, entries, tokens, count):
        self.config = PlaybookConfig(
            admission=admission,
            concise=concise,
            concise_every=every,
            max_entries=entries,
            max_tokens=tokens,
            max_entry_chars=40,
            candidate_patience=2,
        )
        self.count = COUNTERS[count]
        self.book = Playbook(self.config, self.count)
        self.serial = 0

    def ids(self, data):
        known = [*ids(self.book), "err-00099", "nonsense"]
        return data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))

    @precondition(lambda self: self.book is not None)
    @rule()
    def begin_update(self):
        before, updates = set(ids(self.book)), self.book.updates
        counts = self.book.begin_update()
        assert self.book.updates == updates + 1
        assert sum(counts.values()) == len(before) - len(self.book)
        assert set(ids(self.book)) <= before
        self.within_budget = True

    @precondition(lambda self: self.book is not None)
    @rule(data=st.data(), evidence=EVIDENCE)
    def tag(self, data, evidence):
        verdicts = st.sampled_from(["helpful", "harmful", "neutral"])
        tags = [(id_, data.draw(verdicts)) for id_ in self.ids(data)]
        before = {e.id: (e.helpful, e.harmful) for e in self.book.all()}
        counts = self.book.tag(tags, evidence)
        assert sum(counts.values()) == len(tags)
        for entry in self.book.all():
            for place, verdict in enumerate(["helpful", "harmful"]):
                now = (entry.helpful, entry.harmful)[place]
                assert now - before[entry.id][place] == tags.count((entry.id, verdict))
        self.within_budget = False  # counts may have grown by a digit

    @precondition(lambda self: self.book is not None)
    @rule(data=st.data(), number=st.integers(0, 3))
    def apply(self, data, number):
        batch = []
        for _ in range(number):
            op = data.draw(st.sampled_from(["ADD", "ADD", "UPDATE", "MERGE", "REMOVE", "EAT"]))
            section = data.draw(st.sampled_from([*SECTIONS, "?"]))
            wanted = () if op == "ADD" else tuple(self.ids(data))
            batch.append((data.draw(EVIDENCE), [Operation(op, data.draw(WORDS), section, wanted)]))
        before = self.book.state_dict()
        counts = self.book.apply(batch)
        assert sum(n for name, n in counts.items() if name.startswith("op_")) == number
        assert min(counts.values(), default=1) > 0
        self.within_budget = True
        # The same again from the same state: nothing is left to chance.
        again = Playbook(self.config, self.count)
        again.load_state_dict(before)
        assert again.apply(batch) == counts and again.state_dict() == self.book.state_dict()
        for entry in self.book.all():
            if self.config.admission == "immediate":
                assert entry.admitted
            else:
                waits = counts["drop_waits"]
                assert entry.support >= entry.against or waits
                if entry.admitted and not waits:
                    assert entry.support >= 2 and entry.support > entry.against
                    assert not set(entry.replaces) & set(ids(self.book))

    @precondition(lambda self: self.book is not None)
    @rule()
    def restart(self):
        state = json.loads(json.dumps(self.book.state_dict()))
        book = Playbook(self.config, self.count)
        book.load_state_dict(state)
        assert book == self.book and book.state_dict() == self.book.state_dict() == state
        self.book = book

    @precondition(lambda self: self.book is not None)
    @invariant()
    def holds(self):
        book = self.book
        assert Playbook.parse(book.render(), self.config) == book
        assert [entry.id for entry in book.entries.values()] == list(book.entries)
        if self.within_budget:
            assert len(book) <= self.config.max_entries
            assert book.tokens() <= self.config.max_tokens
            assert not len(book) or self.count(book.render()) <= self.config.max_tokens
        for entry in book.all():
            assert min(entry.helpful, entry.harmful, entry.support, entry.against) >= 0
            assert 0 < len(entry.content) <= 40
            assert entry.render().splitlines() == [entry.render()]
            assert 0 <= entry.created <= book.updates
            assert entry.tagged is None or entry.created <= entry.tagged <= book.updates
            assert (entry.tagged is None) == (entry.helpful + entry.harmful == 0)
        # Ids are never used again.
        serials = [int(entry.id.partition("-")[2]) for entry in book.all()]
        assert len(set(serials)) == len(serials)
        assert book.state_dict()["serial"] >= max(self.serial, *serials, 0)
        self.serial = book.state_dict()["serial"]


PlaybookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_playbook_machine = PlaybookMachine.TestCase
