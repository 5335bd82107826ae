"""RESD's context update (paper: Algorithm 1, line 3): who reads what, and in which order."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import tiny
import torch
from books import contents
from fakes import Scripted, rollout

from resd.config import load_config
from resd.context import Entry, Sections
from resd.engines import Completion, Request, Sampling
from resd.loop.setup import prepare
from resd.loop.trainer import Trainer
from resd.loop.view import PlainView
from resd.methods.base import Notes, StepReport
from resd.runs import RunDirectory
from resd.types import Rollout

ID = "err-00001"


def reflection(lesson: str = "do it right", **tags: str) -> str:
    """A reflector's answer; keywords tag the entries `err-0000N` by `eN`."""
    given = [{"id": f"err-0000{key[1:]}", "tag": tag} for key, tag in tags.items()]
    return json.dumps({"what_went_wrong": "a step", "what_to_do": lesson, "tags": given})


def curation(*contents: str, op: str = "ADD") -> str:
    wanted = [{"op": op, "section": "err", "content": c, "id": ID} for c in contents]
    return json.dumps({"operations": wanted})


class Book:
    """Notes the sections that each kind of prompt was built from, at the time."""

    def __init__(self, made: Any) -> None:
        self.seen: dict[str, list[Sections]] = {}
        for name in ("reflect", "curate", "review"):
            setattr(made.services.builder, name, self._noting(made.services.builder, name))

    def _noting(self, builder: Any, name: str) -> Any:
        real = getattr(builder, name)

        def noted(example: Any, sections: Sections) -> Any:
            self.seen.setdefault(name, []).append(copy.deepcopy(sections))
            return real(example, sections)

        return noted

    def counts(self, name: str) -> list[list[tuple[int, int]]]:
        """Helpful and harmful counts of the entries that each prompt of a kind showed."""
        return [[(e.helpful, e.harmful) for e in s.playbook] for s in self.seen.get(name, [])]


def learn(
    write: Scripted, batch: list[Rollout], lessons: int = 1, **config: Any
) -> tuple[Any, Book, Notes, StepReport]:
    """A method with `lessons` entries learns of a batch."""
    made = fakes.method("resd", write, **{"success_tags": False, **config})
    for n in range(1, lessons + 1):
        made.playbook.entries[f"err-0000{n}"] = Entry(f"err-0000{n}", f"lesson number {n}")
        made.playbook._serial = n
    book, report = Book(made), StepReport()
    return made, book, made.learn(batch, report), report


def test_all_reflections_read_one_snapshot_and_curations_that_after_tagging() -> None:
    write = Scripted(
        reflection=[reflection(e1="helpful"), reflection(e1="helpful", e2="harmful")],
        review=['{"tags": [{"id": "err-00001", "tag": "helpful"}]}'],
        curation=[curation("first new lesson"), curation("another thing entirely")],
    )
    batch = [rollout("a"), rollout("b", passed=True), rollout("c")]
    made, book, notes, report = learn(write, batch, 2, success_tags=True)
    assert book.counts("reflect") == [[(0, 0), (0, 0)]] * 2
    assert book.counts("review") == [[(2, 0), (0, 1)]]
    assert book.counts("curate") == [[(3, 0), (0, 1)]] * 2
    assert [call["what"] for call in write.calls] == ["reflection", "review", "curation"]
    # What the curators wished for is applied in sample order.
    assert contents(made.playbook)[2:] == ["first new lesson", "another thing entirely"]
    assert made.playbook.updates == 1
    assert [n and n.what_to_do for n in notes.reflections] == ["do it right", None, "do it right"]
    assert report.lesson == "another thing entirely"
    assert report.metrics["playbook/entries"] == 4
    assert report.counts["tag_helpful"] == 3
    assert report.counts["op_add"] == 2


def test_what_each_prompt_shows() -> None:
    write = Scripted(reflection=[reflection("do this")], curation=[curation("a new one")])
    batch = [rollout("a", answer="my try", feedback="it broke"), rollout("b", "right", passed=True)]
    _, book, _, _ = learn(write, batch, success_tags=True)
    (reflect,), (curate,), (review,) = (book.seen[k] for k in ("reflect", "curate", "review"))
    assert (reflect.trial, reflect.feedback, reflect.solution) == ("my try", "it broke", "")
    assert (curate.reflection.what_went_wrong, curate.reflection.what_to_do) == (
        "a step",
        "do this",
    )
    assert (review.solution, review.trial) == ("right", "")
    assert all(e.id == ID for s in (reflect, curate, review) for e in s.playbook)


def test_later_operations_win_over_earlier_ones_of_the_batch() -> None:
    write = Scripted(
        reflection=lambda text: reflection(),
        curation=[
            curation("said by the first", op="UPDATE"),
            curation("by the second one", op="UPDATE"),
        ],
    )
    made, *_ = learn(write, [rollout("a"), rollout("b")])
    assert contents(made.playbook) == ["by the second one"]


def test_concise_runs_before_anything_is_read() -> None:
    write = Scripted(reflection=[reflection()])
    made = fakes.method("resd", write, playbook={"concise_every": 1})
    made.playbook.entries[ID] = Entry(ID, "a harmful lesson", harmful=1)
    made.playbook.updates = 1
    book, report = Book(made), StepReport()
    made.learn([rollout()], report)
    assert book.counts("reflect") == [[]]
    assert report.counts["dropped_harmful"] == 1
    assert made.playbook.updates == 2


def test_only_failures_with_feedback_are_reflected_on() -> None:
    write = Scripted(reflection=lambda text: reflection())
    batch = [rollout("a", feedback=""), rollout("b", scored=False), rollout("c", passed=True)]
    _, book, notes, _ = learn(write, [*batch, rollout("d")])
    assert [n is not None for n in notes.reflections] == [False, False, False, True]
    assert len(book.seen["reflect"]) == 1


def test_successes_are_cached_and_tagging_them_is_a_setting() -> None:
    batch = [rollout("a", "right", passed=True), rollout("b", "wrong")]
    for success_tags in (True, False):
        write = Scripted(review=['{"tags": [{"id": "err-00001", "tag": "harmful"}]}'])
        made, _, _, _ = learn(write, batch, success_tags=success_tags)
        assert made.solutions.get("a") == "right"  # the answer, without the thinking
        assert made.solutions.get("b") is None
        assert len(write.prompts("review")) == success_tags
        assert made.playbook.entries[ID].harmful == success_tags
    write = Scripted()
    learn(write, batch, lessons=0, success_tags=True)
    assert not write.prompts("review")  # there is nothing to tag


def test_without_the_playbook_in_sight_it_is_written_all_the_same() -> None:
    write = Scripted(reflection=[reflection(e1="helpful")], curation=[curation("something new")])
    made, book, _, _ = learn(write, [rollout()], use_playbook=False)
    assert contents(made.playbook) == ["lesson number 1", "something new"]
    assert book.counts("reflect") == [[(0, 0)]]
    assert made.playbook.entries[ID].helpful == 1


def test_the_rollouts_of_one_example_are_curated_once() -> None:
    batch = [rollout("a", "x"), rollout("a", "y"), rollout("b", "z"), rollout("a", "w")]

    def script() -> Scripted:
        # The first cannot be parsed: the next of its example stands in.
        answers = ["no JSON", *(reflection(f"lesson {n}") for n in "yzw")]
        return Scripted(reflection=answers, curation=lambda text: curation())

    for deduplicate, expected in ((True, "yz"), (False, "yzw")):
        write = script()
        _, book, _, _ = learn(write, batch, deduplicate=deduplicate)
        curated = [sections.reflection.what_to_do for sections in book.seen["curate"]]
        assert curated == [f"lesson {n}" for n in expected]
        assert len(write.prompts("reflection")) == 4


# -- outputs that cannot be used ------------------------------------------------------------------


def test_what_cannot_be_parsed_is_not_used_and_counted() -> None:
    write = Scripted(reflection=["I have no idea", reflection()], curation=["neither have I"])
    made, _, notes, report = learn(write, [rollout("a"), rollout("b")])
    assert [n is not None for n in notes.reflections] == [False, True]
    assert contents(made.playbook) == ["lesson number 1"]
    assert report.counts["reflection_no_json"] == 1
    assert report.counts["curation_no_json"] == 1
    assert report.metrics["rejected/reflection"] == 0.5
    assert report.metrics["rejected/curation"] == 1.0
    assert {call["what"] for call in write.calls} == {"reflection", "curation"}


def test_an_unfinished_output_is_counted_and_never_parsed() -> None:
    """Cut off inside its thinking, where it may hold any draft."""
    write = Scripted(reflection=[None, reflection()], curation=[None])
    made, _, notes, report = learn(write, [rollout("a"), rollout("b")], retry_unparsed=True)
    assert [n is not None for n in notes.reflections] == [False, True]
    assert report.counts["reflection_unfinished"] == 1
    assert report.counts["curation_unfinished"] == 1
    assert report.metrics["rejected/reflection"] == 0.5
    assert not write.prompts("reflection_again")
    assert len(made.playbook) == 1


def test_a_retry_shows_the_output_and_what_was_wrong_with_it() -> None:
    write = Scripted(
        reflection=["I have no idea", reflection("first"), "nor I"],
        reflection_again=[reflection("mended", e1="helpful"), "still none"],
        curation=["neither", curation("a lesson that is new")],
        curation_again=[curation("a lesson that was mended")],
    )
    batch = [rollout("a"), rollout("b"), rollout("c")]
    made, _, notes, report = learn(write, batch, retry_unparsed=True)
    said = [n and n.what_to_do for n in notes.reflections]
    assert said == ["mended", "first", None]
    again = write.prompts("reflection_again")
    assert len(again) == 2
    assert again[0].startswith(write.prompts("reflection")[0])
    assert "assistant: I have no idea\nuser: " in again[0]
    assert "no JSON object" in again[0].rpartition("user: ")[2]
    assert made.playbook.entries[ID].helpful == 1
    assert contents(made.playbook)[1:] == ["a lesson that was mended", "a lesson that is new"]
    assert report.counts["reflection_asked_again"] == 2
    assert report.counts["reflection_mended"] == 1
    assert report.counts["reflection_no_json"] == 1  # the one that was not mended
    assert report.counts["curation_mended"] == 1
    assert report.metrics["rejected/reflection"] == pytest.approx(1 / 3)
    assert report.metrics["rejected/curation"] == 0.0


def test_a_retry_never_outgrows_the_prompt_limit() -> None:
    write = Scripted(reflection=["no JSON " * 200])
    made = fakes.method("resd", write, retry_unparsed=True)
    made.services.builder.max_tokens = 1500
    report = StepReport()
    made.learn([rollout()], report)
    assert not write.prompts("reflection_again")
    assert report.counts["reflection_again_too_long"] == 1


@pytest.mark.parametrize("room", [0, -1])
def test_a_retry_may_fill_the_prompt_limit_and_shows_no_more_of_an_output(room: int) -> None:
    write = Scripted(reflection=["x" * 5000], reflection_again=[None])
    made, report = fakes.method("resd", write, retry_unparsed=True), StepReport()
    made.services.builder.max_tokens = 100_000
    made.learn([rollout()], report)
    (asked,) = [item.prompt for kind, _, item in write.asked if kind == "reflection_again"]
    assert asked[-2]["content"] == "x" * 4000
    assert report.counts["reflection_asked_again"] == 1
    assert report.counts["reflection_mended"] == 0
    made.services.builder.max_tokens = len(made.services.encode(asked)) + room
    write.answers["reflection"], report = ["x" * 5000], StepReport()
    made.learn([rollout()], report)
    assert report.counts["reflection_again_too_long"] == -room


def test_a_prompt_that_cannot_fit_is_counted() -> None:
    write = Scripted(reflection=lambda text: reflection())
    made = fakes.method("resd", write)
    made.services.builder.max_tokens = 10
    report = StepReport()
    notes = made.learn([rollout()], report)
    assert notes == Notes([None])
    assert "rejected/reflection" not in report.metrics  # nothing was asked
    assert report.counts["reflection_prompt_too_long"] == 1
    assert not write.asked


# -- who writes, and how -------------------------------------------------------------------------


def test_limits_and_temperature_of_what_is_written() -> None:
    write = Scripted(reflection=["none"], reflection_again=[reflection()], curation=["none"])
    batch = [rollout("a"), rollout("b", passed=True)]
    config = {"reflection_tokens": 70, "curation_tokens": 50, "reflection_temperature": 0.9}
    learn(write, batch, success_tags=True, retry_unparsed=True, **config)
    limits = {call["what"]: call["limit"] for call in write.calls}
    assert limits == {
        "reflection": 70,
        "reflection_again": 70,
        "review": 70,
        "review_again": 70,
        "curation": 50,
        "curation_again": 50,
    }
    assert {call["temperature"] for call in write.calls} == {0.9}
    assert {call["teacher"] for call in write.calls} == {None}
    assert [item.about.example.id for _, _, item in write.asked[:2]] == ["a", "a"]


class Copying:
    """An engine with weights of its own, that notes whose they were when it wrote."""

    shares_weights = False

    def __init__(self) -> None:
        self.weight = 0.0
        self.wrote: list[tuple[float, int]] = []

    def sync(self, model: Any, version: str) -> None:
        self.weight = float(next(model.parameters()).detach().double().sum())

    def generate(self, requests: list[Request], on_done: Any = None) -> list[Completion]:
        self.wrote += [(self.weight, request.seed) for request in requests]
        text = json.dumps({"what_to_do": "something", "operations": []})
        return [Completion((5, 6), text, "stop", (-1.0, -1.0), answer=text) for _ in requests]


def first_weight(model: torch.nn.Module) -> float:
    return float(next(model.parameters()).detach().double().sum())


@pytest.mark.parametrize("reflector", ["student", "teacher"])
def test_the_reflector_really_uses_those_weights(
    tiny_model: Path, tmp_path: Path, reflector: str
) -> None:
    values = tiny.settings(
        tiny_model, tmp_path / "run", method__reflector=reflector, method__teacher__kind="frozen"
    )
    config = load_config(None, list(values.items()))
    setup, engine = prepare(config), Copying()
    run = RunDirectory.create(tmp_path / "run", config)
    trainer = Trainer(setup, run, PlainView(), engine)
    teacher = first_weight(trainer.model)
    with torch.no_grad():
        next(trainer.model.parameters()).add_(0.25)
    trainer.sampler.student_changed()
    student = first_weight(trainer.model)
    assert teacher != student
    notes = trainer.method.learn([rollout("a", seed=3), rollout("b", seed=4)], StepReport())
    assert all(notes.reflections)
    writer = teacher if reflector == "teacher" else student
    assert [weight for weight, _ in engine.wrote] == [writer] * 4  # reflections, curations
    assert len({seed for _, seed in engine.wrote}) == 4
    sampling = Sampling(1.0, 1.0, 4)
    trainer.sampler.generate([Request((5,), sampling, 0)])
    assert engine.wrote[-1][0] == student  # the next rollouts are the student's again
    run.close()
    setup.close()
