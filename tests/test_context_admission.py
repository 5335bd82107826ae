"""Confirmed admission, and what one output or one update may change."""

import json
from collections import Counter

import pytest
from books import add, confirmed, contents, holding, merge, remove, update

from resd.context import (
    Entry,
    Operation,
    Playbook,
    PlaybookConfig,
    parse_curation,
    parse_reflection,
)

# -- confirmed admission ---------------------------------------------------------------------------


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
    # Who merges entries says nothing against them.
    assert [(e.support, e.seen) for e in book.shown()] == [(2, [])] * 3
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


# -- bounds ------------------------------------------------------------------------------------

MANY = [
    Entry(f"err-{i:05d}", f"lesson {i} of {i * i}", 3, tagged=1, support=2) for i in range(1, 9)
]


def many(**config):
    book = holding(*[Entry(**{**vars(entry), "seen": []}) for entry in MANY], **config)
    book.begin_update()
    return book


def identifiers(*numbers):
    return [f"err-{number:05d}" for number in numbers]


@pytest.mark.parametrize("admission", ["immediate", "confirmed"])
@pytest.mark.parametrize(
    ("operations", "done"),
    [
        ([remove(i) for i in identifiers(*range(1, 9))], 2),
        ([update(i, f"banana {i}") for i in identifiers(*range(1, 9))], 2),
        ([merge(identifiers(1, 2), "banana"), merge(identifiers(3, 4), "apple")], 1),
        ([merge(identifiers(1, 2, 3), "banana")], 0),
        ([remove("err-00001"), merge(identifiers(2, 3), "banana"), update("err-00004", "x")], 2),
    ],
)
def test_one_output_changes_a_bounded_number_of_entries(operations, done, admission):
    book = many(admission=admission, max_changes_per_update=99)
    before = {entry.id: entry.content for entry in book.shown()}
    counts = book.apply([("e", operations)])
    assert counts["op_over_output_bound"] == len(operations) - done
    after = {entry.id: entry.content for entry in book.all()}
    assert sum(after.get(id_) != text for id_, text in before.items()) <= 2
    assert sum(bool(entry.against) for entry in book.all()) <= 2


def test_the_same_entry_counts_once_and_adds_do_not_count():
    book = many(max_changes_per_output=1, max_changes_per_update=9)
    operations = [update("err-00001", "x 1"), update("err-00001", "y 2"), add("a 3"), add("b 4")]
    assert book.apply([("e", operations)]) == {"op_update": 2, "op_add": 2}
    # Other words for the same change nothing.
    operations = [update("err-00002", "Lesson 2 of 4"), update("err-00003", "x 3")]
    assert book.apply([("e", operations)]) == {"op_duplicate": 1, "op_update": 1}


def test_one_update_changes_a_bounded_number_of_entries():
    book = many()
    wishes = [(f"e{i}", [remove(id_)]) for i, id_ in enumerate(identifiers(*range(1, 6)))]
    assert book.apply(wishes) == {"op_remove": 2, "op_over_update_bound": 3}
    again = Playbook(book.config)
    again.load_state_dict(json.loads(json.dumps(book.state_dict())))
    assert again.apply([("f", [remove("err-00004")])]) == {"op_over_update_bound": 1}
    again.begin_update()
    assert again.apply([("f", [remove("err-00004")])]) == {"op_remove": 1}


def test_votes_take_a_bounded_number_of_entries_an_update():
    book = many(admission="confirmed")
    for entry in book.all():
        for number in range(2 + (entry.id == "err-00007")):
            entry.vote(f"v{number}", pro=False)
    assert book.apply([]) == {"dropped_outvoted": 1, "drop_waits": 6}
    # The worst first; what waits is still shown.
    assert len(book.shown()) == 6 and "err-00007" not in book.entries
    assert book.apply([]) == {"drop_waits": 6}
    book.begin_update()
    assert book.apply([]) == {"drop_waits": 4}
    assert len(book.shown()) == 4 and len(book) == 7


def test_a_replacement_waits_where_it_would_take_too_many():
    book = many(admission="confirmed", max_changes_per_update=1)
    rival = Entry("err-00009", "both", support=9, replaces=identifiers(1, 2), admitted=False)
    book.entries[rival.id] = rival
    assert book.apply([]) == {"drop_waits": 1} and not rival.admitted
    rival.replaces = identifiers(1)
    assert book.apply([]) == {"dropped_replaced": 1} and rival.admitted
    rival = Entry("err-00010", "both", support=9, replaces=identifiers(2), admitted=False)
    book.entries[rival.id] = rival
    assert book.apply([]) == {"drop_waits": 1}


def test_one_reflection_tags_a_bounded_number_of_entries_harmful():
    book = many()
    tags = [(id_, "harmful") for id_ in [*identifiers(1, 1), *identifiers(*range(2, 9))]]
    counts = book.tag([*tags, ("err-00008", "helpful")], "e")
    assert counts == {"tag_harmful": 5, "tag_over_bound": 4, "tag_helpful": 1}
    assert [entry.harmful for entry in book.all()] == [2, 1, 1, 1, 0, 0, 0, 0]
    assert many(max_harmful_per_output=0).tag(tags, "e") == {"tag_over_bound": 9}


@pytest.mark.parametrize("admission", ["immediate", "confirmed"])
def test_one_hostile_output_leaves_the_playbook(admission):
    everything = identifiers(*range(1, 9))
    output = json.dumps(
        {
            "what_to_do": "x",
            "tags": dict.fromkeys(everything, "harmful"),
            "operations": [
                {"op": "MERGE", "ids": everything, "content": "banana"},
                *({"op": "REMOVE", "id": id_} for id_ in everything),
            ],
        }
    )
    book = many(admission=admission, concise_every=1)
    book.tag(parse_reflection(output).tags, "evil")
    book.apply([("evil", parse_curation(output).operations)])
    book.begin_update()
    assert len(book.shown()) >= 6


def test_a_curator_that_may_only_add():
    book = many(operations="add")
    assert book.config.add_only and not PlaybookConfig().add_only
    wishes = [add("new 1"), remove("err-00001"), update("err-00099", "x"), Operation("MERGE")]
    assert book.apply([("e", wishes)]) == {"op_add": 1, "op_not_allowed": 3}
    assert len(book) == 9
