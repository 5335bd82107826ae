"""The lab's world: dialects, interpreter, requests, ground truth."""

import itertools
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd import Environment
from resd.tasks.lab import Dialect, LabEnvironment
from resd.tasks.lab.dialect import (
    DEVICES,
    LEVELS,
    NOTATIONS,
    ROOMS,
    SPELLINGS,
    VERBS,
    contradicts,
    score_facts,
)
from resd.tasks.lab.environment import wrong_message
from resd.tasks.lab.interpreter import Request, check_command, interpret, slot_of

DIALECTS = st.integers(0, 300).map(Dialect.numbered)
REQUESTS = st.builds(
    Request, st.sampled_from(DEVICES), st.sampled_from(ROOMS), st.sampled_from(list(LEVELS))
)


@given(DIALECTS, REQUESTS)
def test_the_right_command_does_what_was_requested(dialect, request):
    line = dialect.command(request.device, request.room, request.level)
    assert check_command(dialect, request, line) is None
    assert check_command(dialect, request, line + " x") is not None


@given(DIALECTS, DIALECTS, REQUESTS)
def test_what_feedback_teaches_is_true_and_was_wrong(dialect, other, request):
    """A command of another dialect fails, and the fact that follows is one of this dialect's."""
    line = other.command(request.device, request.room, request.level)
    finding = check_command(dialect, request, line)
    if finding is None:
        assert line == dialect.command(request.device, request.room, request.level)
    else:
        assert finding.fact in dialect.facts()
        # The fact that a verb does not drive what was wanted is not stated, only what it drives.
        if finding.kind == "verb":
            assert request.device not in finding.fact


def test_errors_come_in_the_order_of_parsing_then_execution():
    dialect = Dialect.numbered(0)
    request = Request("lamp", "hall", 3)
    wrong = next(Dialect.numbered(i) for i in itertools.count(1) if _differs(dialect, i, request))
    kinds = []
    words = wrong.command("lamp", "hall", 3)
    for _ in range(10):
        finding = check_command(dialect, request, words)
        if finding is None:
            break
        kinds.append(finding.kind)
        words = _mend(words, finding, dialect, request)
    order = ["open", "close", "order", "room", "verb", "level"]
    assert kinds == [kind for kind in order if kind in kinds]
    assert len(kinds) >= 5
    assert finding is None


def _differs(dialect, number, request):
    """All six conventions differ, for the request."""
    other = Dialect.numbered(number)
    pairs = [(other.opener, dialect.opener), (other.closer, dialect.closer)]
    pairs += [(other.order, dialect.order), (other.mark, dialect.mark)]
    pairs += [(other.verb_of(request.device), dialect.verb_of(request.device))]
    pairs += [(other.notation, dialect.notation)]
    return all(a != b for a, b in pairs)


def _mend(line, finding, dialect, request):
    """Mend just what was reported."""
    words = line.split()
    right = dialect.command(request.device, request.room, request.level).split()
    if finding.kind == "open":
        return " ".join([right[0], *words[1:]])
    if finding.kind == "close":
        return " ".join([*words[:-1], right[-1]])
    if finding.kind == "order":
        ordered = [next(w for w in words[1:-1] if slot_of(w) == slot) for slot in dialect.order]
        return " ".join([words[0], *ordered, words[-1]])
    slot = {"room": "room", "verb": "verb", "level": "level"}[finding.kind]
    place = 1 + dialect.order.index(slot)
    words[place] = right[place]
    return " ".join(words)


def test_a_wrong_level_shows_the_level_that_was_reached_in_the_dialects_notation():
    dialect = next(d for d in map(Dialect.numbered, range(99)) if d.notation == "roman")
    line = dialect.command("lamp", "hall", 6)
    finding = check_command(dialect, Request("lamp", "hall", 3), line)
    assert finding.feedback == "the lamp reached level vi, wanted 3"
    assert finding.fact == "level: roman"
    unread = check_command(dialect, Request("lamp", "hall", 3), line.replace("vi", "33"))
    assert unread.fact == "level: roman"
    assert unread.feedback == "the lamp reached level iv, wanted 3"


@given(DIALECTS, REQUESTS, st.sampled_from(sorted(NOTATIONS)))
def test_a_level_in_another_notation_never_passes_by_luck(dialect, request, notation):
    words = dialect.command(request.device, request.room, request.level).split()
    place = 1 + dialect.order.index("level")
    for spelling in NOTATIONS[notation]:
        words[place] = spelling
        passed = check_command(dialect, request, " ".join(words)) is None
        assert passed == (spelling == dialect.write(request.level))


def test_no_two_notations_share_a_spelling():
    assert len(SPELLINGS) == len(NOTATIONS) * len(LEVELS)


@given(DIALECTS, REQUESTS, st.text(max_size=60))
def test_garbage_never_raises_and_never_passes(dialect, request, text):
    report = interpret(dialect, [request], text)
    right = dialect.command(request.device, request.room, request.level)
    lines = [line for line in text.strip().split("\n") if line.strip()]
    assert report.passed == ([line.split() for line in lines] == [right.split()])
    assert report.passed or report.finding.feedback


def test_cases_are_commands_and_feedback_names_the_first_that_is_wrong():
    environment = LabEnvironment(3, commands=3)
    example = environment.examples("test")[0]
    lines = environment.gold(example).split("\n")
    assert environment.evaluate(example, "\n".join(lines)).passed
    outcome = environment.evaluate(example, "\n".join([lines[0], "nonsense", lines[2]]))
    assert (outcome.cases_passed, outcome.cases, outcome.passed) == (2, 3, False)
    assert outcome.feedback.startswith("command 2: ")
    assert environment.evaluate(example, "\n".join([*lines, lines[0]])).passed is False


@pytest.mark.parametrize("commands", [1, 2, 3])
def test_gold_answers_pass_and_splits_share_no_command(commands):
    environment = LabEnvironment(1, commands=commands)
    assert isinstance(environment, Environment)
    seen = {}
    for split in ("train", "test"):
        examples = environment.examples(split)
        assert len({example.id for example in examples}) == len(examples)
        assert all(environment.evaluate(e, environment.gold(e)).passed for e in examples)
        seen[split] = {request for e in examples for request in e.data["requests"]}
    assert not seen["train"] & seen["test"]


def test_examples_do_not_depend_on_the_hash_seed():
    code = (
        "from resd.tasks.lab import LabEnvironment as L; import hashlib; e = L(7);"
        "text = str([x.prompt for x in e.examples('train')]) + str(e.dialect);"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1


def test_a_guess_succeeds_at_most_once_in_twenty_thousand():
    """By enumeration: the chance of a uniform guess over all dialects is 1 in 82,944."""
    rng = random.Random(0)
    request = Request("fan", "attic", 4)
    commands = {
        Dialect.sample(rng).command(request.device, request.room, request.level)
        for _ in range(400_000)
    }
    assert len(commands) > 80_000


def test_playbooks_are_scored_against_the_truth():
    dialect = Dialect.numbered(2)
    facts = dialect.facts()
    assert score_facts(facts, dialect) == {"precision": 1.0, "recall": 1.0}
    assert score_facts([], dialect) == {"precision": 1.0, "recall": 0.0}
    half = [facts[0].upper() + ".", "verb: lamp lamp"]
    assert score_facts(half, dialect) == {"precision": 0.5, "recall": 1 / len(facts)}


def test_contradictions():
    assert contradicts("verb: lamp zap", "verb: lamp buzz")
    assert contradicts("verb: lamp zap", "verb: fan zap")
    assert contradicts("close: end", "close: over")
    assert not contradicts("verb: lamp zap", "verb: fan buzz")
    assert not contradicts("close: end", "open: end")
    assert not contradicts("close: end", "close: end")


def test_bad_arguments_are_refused():
    for arguments in ({"dialect": -1}, {"commands": 4}, {"train_size": 0}):
        with pytest.raises(ValueError, match="dialect must be"):
            LabEnvironment(**arguments)
    for arguments in ({"known": 6}, {"known": -1}, {"noise": 1.5}):
        with pytest.raises(ValueError, match="known must be 0 to 5, noise 0 to 1"):
            LabEnvironment(**arguments)
    with pytest.raises(ValueError, match="no house 'brich'; there are birch, oak"):
        LabEnvironment(house="brich")


# -- worlds in which claims can fail ---------------------------------------------------------------

SHIFTED = st.integers(0, 300).map(lambda number: Dialect.numbered(number, shifted=True))


def test_dialects_are_what_they_were_before_there_were_shifts_and_houses():
    assert Dialect.numbered(0).facts()[:6] == [
        *("open: ahoy", "close: end", "room: #", "order: room verb level", "level: capitals"),
        "verb: lamp zap",
    ]
    plain, other = Dialect.numbered(3), Dialect.numbered(3, shifted=True, house="oak")
    assert replace(other, shift=0, house="") == plain


def test_known_facts_stand_in_every_request():
    world = LabEnvironment(4, known=3)
    for example in world.examples("train")[:20]:
        lines = example.prompt[0]["content"].split("\n")
        assert lines[:3] == world.dialect.facts()[:3]
        assert lines[3].startswith("set the ")
    assert world.examples("train")[0].id == LabEnvironment(4).examples("train")[0].id


def test_a_house_stands_in_every_request_and_in_what_is_learnt():
    world = LabEnvironment(4, house="birch", known=1, commands=2)
    example = world.examples("test")[0]
    lines = example.prompt[0]["content"].split("\n")
    assert lines[0] == "in birch house"
    assert lines[1] == f"birch open: {world.dialect.opener}"
    assert all(line.startswith("set the ") for line in lines[2:])
    assert world.evaluate(example, world.gold(example)).passed
    assert all(fact.startswith("birch ") for fact in world.dialect.facts())
    finding = interpret(world.dialect, example.data["requests"], "nonsense").finding
    assert finding.fact in world.dialect.facts()
    assert "birch" not in finding.feedback


def test_facts_of_two_houses_do_not_contradict_and_are_judged_apart():
    assert contradicts("birch close: end", "birch close: over")
    assert not contradicts("birch close: end", "oak close: over")
    assert contradicts("birch verb: lamp zap", "birch verb: fan zap")
    assert not contradicts("birch verb: lamp zap", "oak verb: fan zap")
    birch = Dialect.numbered(0, house="birch")
    oak = Dialect.numbered(1, house="oak")
    both = [*birch.facts(), *oak.facts()]
    assert score_facts(both, birch) == {"precision": 1.0, "recall": 1.0}
    unnamed = Dialect.numbered(0).facts()
    assert score_facts([*birch.facts(), *unnamed], birch) == {"precision": 0.5, "recall": 1.0}


@given(SHIFTED, REQUESTS)
def test_no_message_names_the_shift_and_it_follows_from_one(dialect, request):
    assert 1 <= dialect.shift <= 8
    right = dialect.command(request.device, request.room, request.level)
    assert check_command(dialect, request, right) is None
    unshifted = replace(dialect, shift=0).command(request.device, request.room, request.level)
    finding = check_command(dialect, request, unshifted)
    assert (finding.kind, finding.fact) == ("shift", f"shift: {dialect.shift}")
    stands = (request.level - 1 - dialect.shift) % 9 + 1
    assert finding.feedback == f"the {request.device} stands at {stands}, wanted {request.level}"
    assert f"shift: {dialect.shift}" in dialect.facts()


@given(SHIFTED, REQUESTS, st.sampled_from(sorted(NOTATIONS)))
def test_the_notation_is_taught_before_the_shift(dialect, request, notation):
    words = dialect.command(request.device, request.room, request.level).split()
    words[1 + dialect.order.index("level")] = NOTATIONS[notation][request.level - 1]
    finding = check_command(dialect, request, " ".join(words))
    kind = "shift" if notation == dialect.notation else "level"
    assert finding.fact == next(f for f in dialect.facts() if f.startswith(f"{kind}:"))


def test_a_request_says_that_levels_are_shifted_and_not_by_how_much():
    world, plain = LabEnvironment(3, inference=True, house="oak"), LabEnvironment(3)
    text = world.examples("train")[0].prompt[0]["content"]
    assert text.split("\n")[:2] == ["in oak house", "levels are shifted"]
    assert "shifted" not in plain.examples("train")[0].prompt[0]["content"]


@given(SHIFTED, DIALECTS, REQUESTS)
def test_what_feedback_of_a_shifted_dialect_teaches_is_true(dialect, other, request):
    line = other.command(request.device, request.room, request.level)
    finding = check_command(dialect, request, line)
    assert finding is None or finding.fact in dialect.facts()


def test_noise_is_a_share_of_wrong_messages_and_changes_no_reward():
    world, truth = LabEnvironment(2, noise=0.3), LabEnvironment(2)
    other = LabEnvironment(7)
    wrong = 0
    examples = world.examples("train")
    for example in examples:
        response = other.gold(example)
        noisy, plain = world.evaluate(example, response), truth.evaluate(example, response)
        assert (noisy.reward, noisy.passed) == (plain.reward, plain.passed)
        assert world.evaluate(example, response) == noisy
        wrong += noisy.feedback != plain.feedback
    assert 0.2 < wrong / len(examples) < 0.4
    gold = [world.evaluate(example, world.gold(example)) for example in examples]
    assert all(outcome.passed and not outcome.feedback for outcome in gold)


def test_noise_is_drawn_for_every_example():
    """The same response to all of them: neither always right nor always wrong."""
    world, truth = LabEnvironment(2, noise=0.3), LabEnvironment(2)
    pairs = [(world.evaluate(e, "hey"), truth.evaluate(e, "hey")) for e in world.examples("train")]
    wrong = sum(noisy.feedback != plain.feedback for noisy, plain in pairs)
    assert 0.2 < wrong / len(pairs) < 0.4


def test_a_wrong_message_states_what_is_false():
    world, rng = LabEnvironment(2, house="elm"), random.Random(0)
    for example in world.examples("train")[:50]:
        response = LabEnvironment(7).gold(example)
        finding = wrong_message(world.dialect, example.data["requests"], response, rng)
        assert finding.fact not in world.dialect.facts()
        assert finding.fact.startswith("elm ")


def test_what_a_uniform_guess_gets():
    """By enumeration of what is not known."""
    assert LabEnvironment(0).uniform_guess() == pytest.approx(1 / 82_944)
    assert LabEnvironment(0, known=5).uniform_guess() == pytest.approx(1 / 8)
    assert LabEnvironment(0, known=3).uniform_guess() == pytest.approx(1 / 384)
    assert LabEnvironment(0, inference=True).uniform_guess() == pytest.approx(1 / 82_944 / 8)
    world = LabEnvironment(5, commands=2, known=5)
    rng, hits, draws = random.Random(0), 0, 40_000
    examples = world.examples("test")
    for _ in range(draws):
        guess = replace(world.dialect, verbs=tuple(rng.sample(VERBS, len(VERBS))))
        example = rng.choice(examples)
        lines = [guess.command(r.device, r.room, r.level) for r in example.data["requests"]]
        hits += world.evaluate(example, "\n".join(lines)).passed
    assert hits / draws == pytest.approx(world.uniform_guess(), rel=0.1)


def test_the_table_of_worlds_is_in_the_docs(capsys):
    from resd.cli import main

    assert main(["lab", "worlds"]) == 0
    page = Path(__file__).resolve().parents[1] / "docs/tasks.md"
    assert capsys.readouterr().out in page.read_text(encoding="utf-8") + "\n"
