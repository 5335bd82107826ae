"""CONCISE: when it runs, which classes leave, what the budgets evict."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from books import add, contents, holding, ids, merge, update

from resd.context import Entry, Playbook, PlaybookConfig

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
def test_concise_drops_harmful_and_unused_entries_between_batches(concise):
    book = holding(concise=concise)
    fired = []
    for number in range(1, 15):
        gone = Entry("err-00001", "harmful", 0, 1, created=number, tagged=number)
        book.entries = {gone.id: gone}
        fired += [number] if book.begin_update() else []
        assert book.updates == number
    assert fired == [5, 9, 13]
    book = holding(*classes(), concise=concise)
    book.updates = 4
    assert book.begin_update() == {"dropped_harmful": 2, "dropped_unused": 2}
    assert contents(book) == ["helpful", "more helpful than harmful"]
    book = holding(*classes(), concise=concise, concise_every=3)
    book.updates = 3
    assert book.begin_update() == {"dropped_harmful": 2, "dropped_unused": 1}
    assert contents(book)[-1] == "unused for one update"


def test_under_confirmed_admission_what_is_shown_goes_by_its_class_and_candidates_by_patience():
    shown = Entry("err-00001", "shown, harmful", 0, 1, tagged=3)
    waits = Entry("err-00002", "waits, harmful", 0, 1, tagged=3, admitted=False)
    waited = Entry("err-00003", "waited", created=1, admitted=False)
    book = holding(shown, waits, waited, admission="confirmed", candidate_patience=3)
    book.updates = 4
    assert book.begin_update() == {"dropped_harmful": 1, "dropped_unconfirmed": 1}
    assert contents(book) == ["waits, harmful"]


def test_that_trigger_holds_no_budget_and_can_be_off_or_more_frequent():
    helpful = [Entry(f"sai-{i:05d}", f"helpful {i}", 1, tagged=0) for i in range(1, 4)]
    book = holding(*helpful, max_entries=3, concise_every=1)
    book.updates = 1
    assert book.begin_update() == Counter() and len(book) == 3
    off = holding(*classes(), concise="off")
    for _ in range(9):
        assert off.begin_update() == Counter()
    often = holding(*classes(), concise_every=2)
    assert often.begin_update() == often.begin_update() == Counter()
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
        "from test_context_concise import prioritized, play\n"
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


def test_a_line_is_tokenized_once():
    asked = Counter()

    def count(text):
        asked[text] += 1
        return len(text.split())

    book = Playbook(PlaybookConfig(max_entries=20, max_tokens=200), count)
    for number in range(30):
        book.begin_update()
        book.apply([(f"{number}", [add(f"lesson number {number}")])])
        for _ in range(3):
            assert book.tokens() <= 200
    assert max(asked.values()) == 1
    # For each update the new line, and the text as a whole where it was changed.
    assert sum(asked.values()) < 5 * 30
    assert len(book._tokens) <= 2 * len(book) + 65
