"""The playbook: entries, tags, CONCISE, budgets, admission, and a state machine over all of it."""

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resd.context import Entry, Operation, Playbook, PlaybookConfig, SolutionBuffer
from resd.context.playbook import SECTIONS
from resd.context.playbook.similarity import same_lesson, significant_words


def add(content, section="misc"):
    return Operation("ADD", content, section)


def update(id_, content):
    return Operation("UPDATE", content, ids=(id_,))


def merge(ids, content):
    return Operation("MERGE", content, ids=tuple(ids))


def remove(id_):
    return Operation("REMOVE", ids=(id_,))


def holding(*entries, count=None, seed=0, **config):
    """A playbook that holds these entries."""
    book = Playbook(PlaybookConfig(**config), *([count] if count else []), seed=seed)
    book.entries = {entry.id: entry for entry in entries}
    book._serial = len(entries)
    return book


def contents(book):
    return [entry.content for entry in book.all()]


def ids(book):
    return [entry.id for entry in book.all()]


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
    assert Playbook.parse("") == Playbook()
    # New entries get new ids.
    read = Playbook.parse(text)
    read.apply([("e", [add("c", "ctx")])])
    assert ids(read)[-1] == "ctx-123457"


def test_playbooks_differ_where_their_text_does():
    book = holding(Entry("err-00001", "a", 1))
    assert book == holding(Entry("err-00001", "a", 1, support=9, created=4))
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


# -- CONCISE ---------------------------------------------------------------------------------------


def classes():
    """One entry of each class, at context update 4."""
    return [
        Entry("sai-00001", "helpful", 3, 0, created=0, tagged=1),
        Entry("calc-00002", "more helpful than harmful", 3, 2, created=0, tagged=3),
        Entry("err-00003", "as harmful as helpful", 1, 1, created=0, tagged=3),
        Entry("err-00004", "harmful", 0, 1, created=3, tagged=3),
        Entry("heu-00005", "unused for two updates", created=2),
        Entry("ctx-00006", "unused for one update", created=3),
    ]


@pytest.mark.parametrize("concise", ["staleness", "prioritized"])
def test_concise_drops_harmful_and_unused_entries_every_fourth_update(concise):
    book = holding(*classes(), concise=concise)
    for number in range(1, 4):
        assert book.begin_update() == Counter()
        assert (len(book), book.updates) == (6, number)
    assert book.begin_update() == {"dropped_harmful": 2, "dropped_unused": 1}
    assert contents(book) == ["helpful", "more helpful than harmful", "unused for one update"]


def test_concise_can_be_off_and_more_frequent():
    off = holding(*classes(), concise="off")
    for _ in range(8):
        assert off.begin_update() == Counter()
    often = holding(*classes(), concise_every=2)
    often.begin_update()
    assert often.begin_update()["dropped_harmful"] == 2


def test_last_updates_entries_are_not_dropped_before_a_reflector_saw_them():
    book = Playbook(PlaybookConfig(concise_every=1))
    book.begin_update()
    book.apply([("e", [add("a"), add("b")])])
    book.begin_update()
    assert contents(book) == ["a", "b"]
    book.tag([("misc-00002", "helpful")], "f")
    book.begin_update()
    assert contents(book) == ["b"]


def test_staleness_evicts_the_longest_untagged():
    entries = [
        Entry("sai-00001", "tagged at 2", 9, created=0, tagged=2),
        Entry("sai-00002", "tagged at 1", 9, created=0, tagged=1),
        Entry("sai-00003", "tagged at 4", 1, created=0, tagged=4),
        Entry("sai-00004", "tagged at 3", 1, created=3, tagged=3),
    ]
    book = holding(*entries, max_entries=2)
    book.updates = 4
    assert book.apply([("e", [add("new")])]) == {"op_add": 1, "dropped_budget": 3}
    assert contents(book) == ["tagged at 4", "new"]


def test_a_budget_that_is_exceeded_drops_classes_first():
    book = holding(*classes(), max_entries=5)
    book.updates = 4
    assert book.apply([]) == {"dropped_harmful": 2, "dropped_unused": 1}
    assert len(book) == 3


def test_a_budget_is_held_without_concise_too():
    book = holding(*classes(), max_entries=5, concise="off")
    assert book.apply([]) == {"dropped_budget": 1}


def test_a_budget_that_is_exceeded_triggers_at_the_start_of_an_update():
    book = holding(*classes(), max_entries=2, concise_every=100)
    book.updates = 3
    assert book.begin_update() == {"dropped_harmful": 2, "dropped_unused": 1, "dropped_budget": 1}
    assert contents(book) == ["more helpful than harmful", "unused for one update"]


def prioritized(seed, updates=4):
    helpful = [Entry(f"sai-{i:05d}", f"helpful {i}", 1, tagged=0) for i in range(1, 31)]
    fresh = Entry("err-00031", "new", created=updates)
    book = holding(*helpful, fresh, seed=seed, max_entries=20, concise="prioritized")
    book.updates = updates
    counts = book.apply([])
    assert counts == {"dropped_budget": 11} and len(book) == 20
    return contents(book)


def test_prioritized_evicts_helpful_entries_at_random():
    first = prioritized(0)
    assert first == prioritized(0)
    assert first != prioritized(1)
    assert first != prioritized(0, updates=5)
    kept = Counter(content for seed in range(40) for content in prioritized(seed))
    # The fresh entry has its grace; all others have the same chance.
    assert kept.pop("new") == 40
    assert len(kept) == 30 and min(kept.values()) > 10


def test_eviction_does_not_depend_on_the_hash_seed():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_context_playbook import prioritized, play\n"
        "print(prioritized(3)); print(play(5))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 500


def play(seed):
    """The state after a random game."""
    rng = random.Random(seed)
    book = Playbook(PlaybookConfig(max_entries=8, admission="confirmed", concise="prioritized"))
    for _ in range(40):
        book.begin_update()
        known = ids(book) or ["x"]
        book.tag([(rng.choice(known), rng.choice(["helpful", "harmful"]))], f"e{rng.random()}")
        word = rng.choice("abcdefgh")
        book.apply(
            [(f"e{rng.randrange(9)}", [rng.choice([add(word), update(rng.choice(known), word)])])]
        )
    return book.state_dict()


# -- budgets ---------------------------------------------------------------------------------------


def test_tokens_are_counted_over_the_lines():
    book = holding(Entry("sai-00001", "a"), Entry("sai-00002", "bb"), count=len)
    assert book.tokens() == len(book.render()) + 1


def test_the_token_budget_evicts():
    line = len("[misc-00001] helpful=0 harmful=0 :: aaaa\n")
    book = Playbook(PlaybookConfig(max_tokens=3 * line), len)
    for number, content in enumerate(["aaaa", "bbbb", "cccc"]):
        book.updates = number
        assert book.apply([("e", [add(content)])]) == {"op_add": 1}
    book.updates = 3
    assert book.apply([("e", [add("dddd")])])["op_add"] == 1
    assert contents(book) == ["cccc", "dddd"]  # `aaaa` and `bbbb` were unused too long


def test_a_lesson_that_can_never_fit_is_refused_and_drives_nothing_out():
    book = holding(Entry("sai-00001", "a", 1), Entry("sai-00002", "b", 1), count=len, max_tokens=99)
    long = "x" * 99
    operations = [add(long), update("sai-00001", long), merge(["sai-00001", "sai-00002"], long)]
    assert book.apply([("e", operations)]) == {"op_too_long": 3}
    assert contents(book) == ["a", "b"]


def test_an_entry_that_can_no_longer_fit_drives_nothing_out():
    long = Entry("sai-00003", "x" * 99, 1, tagged=9)
    book = holding(
        Entry("sai-00001", "a", 1), Entry("sai-00002", "b", 1), long, count=len, max_tokens=99
    )
    assert book.begin_update() == {"dropped_budget": 1}
    assert contents(book) == ["a", "b"]


@pytest.mark.parametrize(
    "count",
    [
        lambda text: len(text) ** 2 // 100,  # the whole has more tokens than its parts
        lambda text: len(text.split()) + 9,  # the parts have more
        lambda text: 1000,
        lambda text: 0,
    ],
)
def test_budgets_hold_whatever_the_tokenizer(count):
    book = Playbook(PlaybookConfig(max_tokens=100, max_entries=9), count)
    for number in range(20):
        book.begin_update()
        book.apply([(f"{number}", [add(f"lesson {number}")])])
        assert len(book) <= 9
        assert book.tokens() <= 100
        assert not len(book) or count(book.render()) <= 100


def test_long_lessons_are_cut():
    book = Playbook(PlaybookConfig(max_entry_chars=16))
    book.apply([("e", [add("123456789012345 78")])])
    assert contents(book) == ["123456789012345"]


# -- operations ------------------------------------------------------------------------------------


def test_what_is_added_is_one_clean_line():
    book = Playbook()
    book.apply([("e", [add(" a\n b\u2028c\x00\ud800\u200b <think>d", "err"), add("x", "?")])])
    assert [(e.id, e.content) for e in book.all()] == [("err-00001", "a b c"), ("misc-00002", "x")]


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (add(""), "op_empty"),
        (add("\u200b\n"), "op_empty"),
        (update("sai-00001", "<think>x"), "op_empty"),
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


# -- confirmed admission ---------------------------------------------------------------------------


def confirmed(*entries, **config):
    return holding(*entries, admission="confirmed", **config)


def test_immediate_entries_are_shown_at_once():
    book = Playbook()
    book.apply([("e", [add("a")])])
    assert contents(book) == [entry.content for entry in book.shown()] == ["a"]


def test_a_second_independent_voice_admits():
    book = confirmed()
    assert book.apply([("e", [add("Mind the end.")])]) == {"op_add": 1}
    assert book.shown() == [] and len(book.all()) == 1
    assert book.apply([("f", [add("mind the end")])]) == {"op_duplicate": 1}
    assert [e.render() for e in book.shown()] == [
        "[misc-00001] helpful=1 harmful=0 :: Mind the end."
    ]


def test_a_helpful_tag_is_a_voice_and_a_neutral_one_is_not():
    book = confirmed()
    book.apply([("e", [add("a")])])
    book.tag([("misc-00001", "neutral")], "f")
    book.apply([])
    assert not book.shown()
    book.tag([("misc-00001", "helpful")], "f")
    book.apply([])
    assert len(book.shown()) == 1


def test_two_voices_of_one_batch_admit():
    book = confirmed()
    book.apply([("e", [add("a")]), ("f", [add("a")])])
    assert len(book.shown()) == 1


def test_the_same_evidence_does_not_count_twice():
    book = confirmed()
    for _ in range(3):
        book.apply([("e", [add("a"), add("A")])])
        book.tag([("misc-00001", "helpful")], "e")
    entry = book.all()[0]
    assert not entry.admitted and entry.support == 1
    # Three tags are three reflections; that the lesson was written again adds nothing.
    assert entry.helpful == 3


def test_more_confirmations_can_be_asked_for():
    book = confirmed(confirmations=3)
    for evidence, shown in (("e", 0), ("f", 0), ("g", 1)):
        book.apply([(evidence, [add("a")])])
        assert len(book.shown()) == shown
    alone = confirmed(confirmations=1)
    alone.apply([("e", [add("a")])])
    assert len(alone.shown()) == 1


def test_votes_against_must_be_outweighed():
    book = confirmed(Entry("err-00001", "a", support=2, against=1, admitted=False))
    book.apply([("e", [remove("err-00001")])])
    assert not book.shown()
    book.apply([("f", [add("a")])])
    assert len(book.shown()) == 1


def test_one_voice_removes_nothing_and_outvoted_entries_go():
    book = confirmed(Entry("err-00001", "a", support=2))
    assert book.apply([("e", [remove("err-00001")])]) == {"op_remove_vote": 1}
    assert len(book.shown()) == 1
    assert book.apply([("e", [remove("err-00001")])]) == {"op_remove_vote": 1}
    assert book.all()[0].against == 1
    book.tag([("err-00001", "harmful")], "f")
    assert book.apply([]) == Counter()
    assert not book.shown() and len(book) == 1  # as many against as for
    book.tag([("err-00001", "harmful")], "g")
    assert book.apply([]) == {"dropped_outvoted": 1}
    assert len(book) == 0


def test_an_update_is_a_rival_until_it_has_more_support():
    book = confirmed(Entry("err-00001", "closer: end", support=3))
    assert book.apply([("e", [update("err-00001", "closer: stop")])]) == {"op_update": 1}
    old, new = book.all()
    assert (old.support, old.against, old.admitted) == (3, 1, True)
    assert (new.support, new.admitted, new.replaces) == (1, False, ["err-00001"])
    assert new.id == "err-00002"
    # Support 2 of the rival against a net 2, then 1, of the old one.
    book.apply([("f", [add("closer: stop")])])
    assert [e.content for e in book.shown()] == ["closer: end"]
    assert book.apply([("g", [remove("err-00001")])]) == {
        "op_remove_vote": 1,
        "dropped_replaced": 1,
    }
    assert contents(book) == ["closer: stop"] and book.shown()[0].replaces == []


def test_the_better_supported_of_two_rivals_wins():
    book = confirmed(Entry("err-00001", "closer: end", support=2))
    book.apply(
        [
            ("e", [update("err-00001", "closer: stop")]),
            ("f", [update("err-00001", "closer: over")]),
        ]
    )
    assert [e.content for e in book.shown()] == []  # two for, two against
    book.tag([("err-00002", "helpful")], "g")
    for evidence in "hi":
        book.tag([("err-00003", "helpful")], evidence)
    assert book.apply([]) == {"dropped_replaced": 1}
    # The loser waits, and must beat the winner to take its place.
    assert [e.content for e in book.shown()] == ["closer: over"]
    assert [(e.content, e.replaces) for e in book.all()] == [
        ("closer: stop", ["err-00003"]),
        ("closer: over", []),
    ]
    for evidence in "jk":
        book.tag([("err-00002", "helpful")], evidence)
    assert book.apply([]) == {"dropped_replaced": 1}
    assert contents(book) == ["closer: stop"] and len(book.shown()) == 1


def test_a_second_update_to_the_same_words_supports_the_rival():
    book = confirmed(Entry("err-00001", "closer: end", support=2))
    for evidence in "ef":
        book.apply([(evidence, [update("err-00001", "closer: stop")])])
    assert contents(book) == ["closer: stop"]


def test_a_merge_waits_for_support_and_then_replaces():
    book = confirmed(
        Entry("err-00001", "a", support=2),
        Entry("err-00002", "b", support=2),
        Entry("err-00003", "c", support=2),
    )
    operation = merge(["err-00001", "err-00002"], "a")
    assert book.apply([("e", [operation])]) == {"op_merge": 1}
    assert len(book.shown()) == 3 and len(book) == 4
    assert book.apply([("f", [operation])]) == {"op_duplicate": 1}
    assert len(book) == 4  # two for the merged entry against a net 2
    assert book.apply([("g", [operation])]) == {"op_duplicate": 1, "dropped_replaced": 2}
    assert [e.id for e in book.shown()] == ["err-00003", "err-00004"]


def test_candidates_wait_with_patience():
    book = confirmed(candidate_patience=4, concise_every=1)
    book.apply([("e", [add("a")])])
    for _ in range(4):
        assert book.begin_update() == Counter()
    assert book.begin_update() == {"dropped_unconfirmed": 1}


def test_a_tag_renews_the_patience():
    book = confirmed(candidate_patience=4, concise_every=1)
    book.apply([("e", [add("a")])])
    book.updates = 3
    book.tag([("misc-00001", "helpful")], "e")
    for _ in range(4):
        assert book.begin_update() == Counter()
    assert book.begin_update() == {"dropped_unconfirmed": 1}


@pytest.mark.parametrize("concise", ["staleness", "prioritized", "off"])
def test_candidates_leave_first(concise):
    book = confirmed(
        Entry("err-00001", "a", 1, support=2, tagged=0),
        Entry("err-00002", "b", admitted=False, created=9),
        Entry("err-00003", "c", 1, support=2, tagged=1),
        max_entries=2,
        concise=concise,
    )
    book.updates = 9
    assert book.begin_update() == {"dropped_budget": 1}
    assert contents(book) == ["a", "c"]


def test_candidates_are_shown_once_admission_is_immediate():
    book = confirmed()
    book.apply([("e", [add("a")])])
    other = Playbook()
    other.load_state_dict(book.state_dict())
    other.apply([])
    assert len(other.shown()) == 1


def test_remembered_evidence_is_bounded():
    entry = Entry("err-00001", "a")
    for number in range(200):
        entry.vote(f"{number}", pro=True)
    assert len(entry.seen) == 64 and entry.support == 201


# -- near-duplicates -------------------------------------------------------------------------------

LONG = (
    "when the list is read in a loop then check that its length is known and that it is not nil, "
    "and do so at every turn"
)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Check it.", "check it", True),
        ("Check the end", "check end", True),
        ("Look, then check,", "look then check", True),
        ("You should always check it", "you check it", True),
        ('close with ";"', "close with ;", True),
        ("close with `;`", "close with `!`", False),
        ("close with end", "close with stop", False),
        ("key is x", "key is X", False),
        ("strings take '", 'strings take "', False),
        ("strings take `'`", 'strings take `"`', False),
        ("level: +2", "level: -2", False),
        ("level: +2", "level: +3", False),
        (LONG, LONG.replace("loop", "cycle"), True),
        (LONG, LONG.replace("not nil", "nil"), False),
        (LONG, LONG.replace("nil", "0"), False),
        (LONG, LONG.replace("known", "Known"), False),
        (f"it can be so {LONG}", f"it can't be so {LONG}", False),
        (f"go left {LONG}", f"go right {LONG}", False),
        (LONG, "no " + LONG, False),
        (LONG, LONG.split(" then ")[0], False),
        ("x y " * 20 + "z", "x " * 20 + "y " * 20 + "z", False),
        ("", "a", False),
        ("the", "a", False),
        ("close with please", "close with always", False),
        ("close with please", "please close with please", True),
    ],
)
def test_same_lesson(a, b, same):
    assert same_lesson(a, b, 0.94) is same
    assert same_lesson(b, a, 0.94) is same
    assert same_lesson(a, b, 1) is (significant_words(a) == significant_words(b))


def test_very_long_lessons_are_the_same_only_word_for_word():
    long = "x y " * 400
    assert same_lesson(long, "the " + long, 0.9)
    assert not same_lesson(long, long + "z", 0.9)


# -- solutions -------------------------------------------------------------------------------------


def test_the_solution_buffer_keeps_the_latest():
    buffer = SolutionBuffer()
    assert buffer.get("a") is None
    assert buffer.add("a", "one") and buffer.add("a", "two")
    assert buffer.get("a") == "two" and len(buffer) == 1


def test_the_solution_buffer_is_bounded():
    buffer = SolutionBuffer(max_examples=2, max_chars=5)
    for example in "abac":
        buffer.add(example, example)
    assert [buffer.get(x) for x in "abc"] == ["a", None, "c"]
    assert buffer.add("d", "12345") and not buffer.add("a", "123456")
    assert [buffer.get(x) for x in "acd"] == [None, "c", "12345"]


@pytest.mark.parametrize("response", ["", " \n", "<think>all of it", "<think>x</think> "])
def test_a_response_without_a_solution_is_not_kept(response):
    assert not SolutionBuffer().add("a", response)


def test_the_solution_buffers_state_goes_through_json():
    buffer = SolutionBuffer(max_examples=3)
    for example in "abca":
        buffer.add(example, f"{example}\ud800")
    state = json.loads(json.dumps(buffer.state_dict()))
    other = SolutionBuffer(max_examples=2)
    other.load_state_dict(state)
    assert [other.get(x) for x in "abc"] == ["a\ud800", None, "c\ud800"]
    other.add("d", "d")
    assert [x for x in "abcd" if other.get(x)] == ["a", "d"]
    assert len(buffer) == 3


@pytest.mark.parametrize("bounds", [{"max_examples": 0}, {"max_chars": 0}])
def test_the_solution_buffer_must_hold_something(bounds):
    with pytest.raises(ValueError, match="at least one"):
        SolutionBuffer(**bounds)


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
                assert entry.support >= entry.against
                if entry.admitted:
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
            assert 0 < len(entry.content) <= 40 and "<think>" not in entry.content
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
