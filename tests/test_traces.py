"""What a run keeps for people: traces, bounded and compressed; numbers of tokens; the playbook."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from books import add, confirmed, holding, merge, remove, update
from fakes import samples

from resd.config import TracesConfig, load_config
from resd.context import Entry, Playbook
from resd.context.spans import section_spans
from resd.errors import UserError
from resd.loop.recorder import Recorder
from resd.loop.update import PolicyUpdate
from resd.methods.base import StepReport, Written
from resd.runs import atomic, identity
from resd.runs.traces import forget_after, read_traces, trace_files, write_traces
from resd.runs.warnings import add_warning, read_warnings
from resd.types import ChatMessage, Completion, Example, Outcome, Rollout

# -- settings --------------------------------------------------------------------------------------


def test_true_and_false_still_say_whether_traces_are_kept(tmp_path: Path) -> None:
    assert load_config(None, []).traces == TracesConfig()
    assert not load_config(None, [("traces", False)]).traces.keep
    file = tmp_path / "run.toml"
    file.write_text('preset = "lab"\ntraces = true\n')
    assert load_config(file, []).traces.keep
    assert load_config(None, [("traces.responses", 9)]).traces.responses == 9


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "traces",
            "some",
            "it is true, false, or a table of settings",
        ),
        ("traces.response", 4, "did you mean responses?"),
        ("traces.characters", 1, "traces.characters"),
    ],
)
def test_other_values_are_refused_by_name(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, [(key, value)])
    assert said in str(error.value)


def test_a_run_of_before_goes_on_whatever_is_kept_of_it() -> None:
    old: dict[str, Any] = {"settings": {"traces": True, "seed": 0}, "versions": {}, "task": None}
    now = {"settings": {"traces.keep": False, "seed": 0}, "versions": {}, "task": None}
    assert identity.changes(old, now) == {}
    now["settings"] = {"traces.keep": True, "seed": 1}
    assert list(identity.changes(old, now)) == ["config/seed"]


# -- files -----------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_its_bytes_do_not_depend_on_the_time(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    records = [{"kind": "rollout", "response": "é\ud800\n"}, {"kind": "event", "id": 1}]
    write_traces(tmp_path, "step", 12, records)
    ((step, file),) = trace_files(tmp_path)
    assert (step, file.name) == (12, "step-000012.jsonl.gz")
    assert [r["kind"] for r in read_traces(file)] == ["rollout", "event"]
    assert read_traces(file)[0]["response"] == "é\ud800\n"
    assert file.read_bytes()[4:8] == bytes(4)  # the time in a gzip header


def test_what_is_damaged_is_left_out_and_what_is_old_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    write_traces(tmp_path, "step", 1, [{"kind": "rollout"}])
    whole = (folder / "step-000001.jsonl.gz").read_bytes()
    (folder / "step-000002.jsonl.gz").write_bytes(whole[:-9])
    (folder / "step-000003.jsonl").write_text('{"kind": "rollout"}\n[1]\n{"kin\n{"kind": 3}\n')
    (folder / "notes.txt").write_text("mine")
    read = [read_traces(file) for _, file in trace_files(tmp_path)]
    assert read == [[{"kind": "rollout"}], [], [{"kind": "rollout"}]]


def test_what_came_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    for step in (0, 1, 2):
        write_traces(tmp_path, "evaluation", step, [])
        write_traces(tmp_path, "step", step, [])
    forget_after(tmp_path, 1)
    assert [step for step, _ in trace_files(tmp_path)] == [0, 1]
    assert [step for step, _ in trace_files(tmp_path, "evaluation")] == [0, 1]
    forget_after(tmp_path, -1)
    assert not trace_files(tmp_path, "evaluation")


def test_warnings_are_kept_once_each(tmp_path: Path) -> None:
    add_warning(tmp_path, 0, "no sandbox")
    add_warning(tmp_path, 3, "slow\nvery")
    add_warning(tmp_path, 4, "no sandbox")
    with (tmp_path / "warnings.jsonl").open("a") as file:
        file.write('{"step": 5, "te')
    assert read_warnings(tmp_path) == [(0, "no sandbox"), (3, "slow\nvery")]
    assert read_warnings(tmp_path / "none") == []


# -- the recorder ----------------------------------------------------------------------------------


class Run:
    """A run's directory that remembers its traces."""

    def __init__(self) -> None:
        self.traces: list[tuple[str, int, list[Any]]] = []

    def log(self, row: Any) -> None: ...

    def trace(self, what: str, step: int, records: list[Any]) -> None:
        self.traces.append((what, step, records))

    def save_artifacts(self, files: Any) -> None: ...


def rollout(number: int, text: str = "text", **outcome: Any) -> Rollout:
    example = Example(f"e{number}", [ChatMessage(role="user", content=f"question {number}")])
    found = Outcome(**{"reward": 0.0, "passed": False, "feedback": "no", **outcome})
    return Rollout(example, (1, 2), Completion((5, 6, 7), text, "length"), found, seed=100 + number)


def recorder(run: Run, main: bool = True, **config: Any) -> Recorder:
    return Recorder(
        run,  # type: ignore[arg-type]
        TracesConfig(**config),
        lambda ids: f"<{ids[0]}>",
        main=main,
        warn=pytest.fail,
    )


def test_a_rollout_is_kept_with_all_that_a_reader_asks_for() -> None:
    run = Run()
    kept = rollout(1, reward=0.5, cases_passed=1, cases=4)
    recorder(run).step(3, [kept], {}, {})
    ((what, step, (record,)),) = run.traces
    assert (what, step) == ("step", 3)
    assert record == {
        "kind": "rollout",
        "example": "e1",
        "seed": 101,
        "prompt": [{"role": "user", "content": "question 1"}],
        "response": "text",
        "answered": True,
        "finish": "length",
        "tokens": 3,
        "prompt_tokens": 2,
        "evidence": kept.evidence,
        "passed": False,
        "reward": 0.5,
        "cases_passed": 1,
        "cases": 4,
        "feedback": "no",
    }


def test_so_many_rollouts_are_kept_and_what_is_about_the_others_goes() -> None:
    run = Run()
    made = recorder(run, rollouts=2)
    batch = [rollout(i) for i in range(3)]
    wanted = [Written(r, [ChatMessage(role="user", content="why")]) for r in batch]
    made.written("reflection", wanted, [r.completion for r in batch])
    made.trace("event", what="added", id="x")
    made.step(1, batch, {}, {})
    records = run.traces[0][2]
    assert [r["seed"] for r in records if r["kind"] == "rollout"] == [100, 101]
    assert [r["seed"] for r in records if r["kind"] == "reflection"] == [100, 101]
    assert [r["id"] for r in records if r["kind"] == "event"] == ["x"]
    # The next step begins with nothing.
    made.step(2, batch[:1], {}, {})
    assert [r["kind"] for r in run.traces[1][2]] == ["rollout"]


def test_generated_tokens_are_counted_by_purpose_and_step() -> None:
    made = recorder(Run())
    batch = [rollout(i) for i in range(3)]
    wanted = [Written(r, []) for r in batch[:2]]
    made.written("reflection", wanted, [r.completion for r in batch[:2]])
    assert made.tokens_written(batch) == {"tokens/reflection": 6, "tokens/rollout": 9}
    assert made.tokens_written([]) == {"tokens/rollout": 0}


def test_long_texts_lose_their_middle_and_sections_stay_where_they_are() -> None:
    run = Run()
    made = recorder(run, characters=120)
    text = "P" * 70 + "question " + "x" * 400 + " feedback" + "F" * 30
    spans = [("playbook", 0, 70), ("question", 70, 78), ("trial", 80, 479), ("feedback", 488, 518)]
    prompt = [ChatMessage(role="user", content=text)]
    made.trace("teacher", "e1", seed=101, prompt=prompt, spans=spans)
    made.step(1, [rollout(1, text="y" * 500)], {}, {})
    teacher, kept = run.traces[0][2]
    shown = teacher["prompt"][0]["content"]
    assert len(shown) < 160
    assert len(kept["response"]) < 160
    pieces = {name: shown[start:end] for name, start, end in teacher["spans"]}
    assert pieces["playbook"] == "P" * 70
    assert pieces["question"] == "question"
    assert pieces["feedback"] == "F" * 30
    assert prompt[0]["content"] == text  # the prompt itself is not touched


def test_watched_responses_are_drawn_alike_in_every_process() -> None:
    batch = [rollout(i) for i in range(8)]
    taught = [None if i == 1 else samples(1)[0] for i in range(8)]
    one, other = recorder(Run(), responses=3), recorder(Run(), main=False, responses=3)
    drawn = one.watched(batch, taught)
    assert drawn == other.watched(batch, taught) == sorted(set(drawn))
    assert len(drawn) == 3
    assert 1 not in drawn
    assert recorder(Run(), responses=30, rollouts=4).watched(batch, taught) == [0, 2, 3]
    assert recorder(Run(), responses=0).watched(batch, taught) == []
    assert recorder(Run(), keep=False).watched(batch, taught) == []
    assert recorder(Run()).watched(batch, [None] * 8) == []
    others = [
        recorder(Run(), responses=3).watched([replace(batch[0], seed=s)] * 8, taught)
        for s in range(9)
    ]
    assert len({tuple(places) for places in others}) > 1


# -- numbers of tokens -----------------------------------------------------------------------------


def numbers(update: PolicyUpdate, watched: Any, **traces: Any) -> dict[int, Any]:
    update._traces = TracesConfig(**traces)
    report = StepReport()
    update.run(samples(), report, watched)
    return report.tokens


@pytest.fixture
def make(tiny_model: Path) -> Callable[..., PolicyUpdate]:
    return fakes.maker(tiny_model)


def test_the_numbers_are_those_of_the_models(make: Callable[..., PolicyUpdate]) -> None:
    update = make("sdpo", alpha=0.0)
    sample = samples()[3]
    assert sample is not None

    def log_probs(model: Any, prompt: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *sample.response_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
        return logits.log_softmax(-1)

    student = log_probs(update.student, sample.prompt_ids)
    with update.method.teacher.model() as model:  # type: ignore[attr-defined]
        teacher = log_probs(model, sample.teacher_ids)
    ids = torch.tensor(sample.response_ids)
    found = numbers(update, [3], alternatives=3)
    assert list(found) == [3]
    got = found[3]
    assert got.ids == list(sample.response_ids)
    own = student.gather(-1, ids[:, None])[:, 0]
    assert got.student == pytest.approx(own.tolist(), abs=1e-4)
    assert got.teacher == pytest.approx(teacher.gather(-1, ids[:, None])[:, 0].tolist(), abs=1e-4)
    assert (torch.tensor(got.student) - torch.tensor(got.teacher)).abs().max() > 0.01
    for log_p, tops in ((student, got.student_top), (teacher, got.teacher_top)):
        values, tokens = log_p.topk(3, dim=-1)
        assert [[token for token, _ in row] for row in tops] == tokens.tolist()
        flat = [value for row in tops for _, value in row]
        assert flat == pytest.approx(values.flatten().tolist(), abs=1e-4)


def test_the_loss_is_the_token_s_own(make: Callable[..., PolicyUpdate]) -> None:
    """Whatever the weights of samples: their weighted sum is the loss of the batch."""
    update = make("sdpo", alpha=0.0, aggregation="token_mean")
    batch = [replace(s, weight=1.0) for s in samples() if s is not None]
    report = StepReport()
    update.run(batch, report, range(len(batch)))
    losses = [value for place in range(len(batch)) for value in report.tokens[place].loss]
    assert len(losses) == sum(len(s.response_ids) for s in batch)
    assert sum(losses) / len(losses) == pytest.approx(report.metrics["train/loss"], rel=1e-4)


def test_chunks_and_micro_batches_change_no_number(make: Callable[..., PolicyUpdate]) -> None:
    places = [0, 2, 7]
    one = numbers(make("sdpo"), places)
    other = numbers(make("sdpo", {"chunk_tokens": 3, "micro_batch_tokens": 1}), places)
    assert sorted(one) == sorted(other) == places
    for place in places:
        assert one[place].ids == other[place].ids
        assert one[place].loss == pytest.approx(other[place].loss, abs=1e-4)
        assert one[place].teacher == pytest.approx(other[place].teacher, abs=1e-4)


def test_the_numbers_are_those_before_the_first_update(make: Callable[..., PolicyUpdate]) -> None:
    one = numbers(make("sdpo"), [2])
    many = numbers(make("sdpo", {"updates_per_batch": 3}), [2])
    assert one[2].student == pytest.approx(many[2].student, abs=1e-6)
    assert len(many[2].ids) == len(one[2].ids)


def test_so_many_tokens_of_a_response_are_kept(make: Callable[..., PolicyUpdate]) -> None:
    sample = samples()[3]
    assert sample is not None
    assert len(sample.response_ids) > 4
    found = numbers(make("sdpo", {"chunk_tokens": 3}), [3], tokens=4, alternatives=0)
    assert found[3].ids == list(sample.response_ids[:4])
    assert found[3].student_top == [[], [], [], []]


def test_without_a_teacher_there_are_the_student_s(make: Callable[..., PolicyUpdate]) -> None:
    found = numbers(make("grpo"), [0, 4])
    assert list(found) == [0]  # the other teaches nothing
    assert found[0].teacher is None
    assert found[0].teacher_top is None
    assert len(found[0].loss) == len(found[0].ids)


def test_watching_changes_no_weight(make: Callable[..., PolicyUpdate]) -> None:
    plain, watched = make("sdpo"), make("sdpo")
    plain.run(samples(), StepReport())
    watched.run(samples(), StepReport(), [0, 1, 2, 3])
    for a, b in zip(plain.student.parameters(), watched.student.parameters(), strict=True):
        assert torch.equal(a, b)


# -- what happens to the playbook ------------------------------------------------------------------


def told(book: Playbook) -> list[tuple[str, str, str, str]]:
    return [(e.what, e.id, e.evidence, e.detail) for e in book.events]


def test_births_votes_and_tags_are_told_with_their_evidence() -> None:
    book = confirmed(confirmations=2)
    book.begin_update()
    book.apply([("e1/a", [add("first", "err")]), ("e2/b", [add("first", "err")])])
    assert told(book) == [
        ("added", "err-00001", "e1/a", "first"),
        ("tagged", "err-00001", "e2/b", "helpful"),
        ("supported", "err-00001", "e2/b", ""),
        ("admitted", "err-00001", "", ""),
    ]
    book.begin_update()
    assert told(book) == []
    book.tag([("err-00001", "harmful")], "e3/c")
    book.tag([("err-00001", "neutral")], "e4/d")
    assert told(book) == [
        ("tagged", "err-00001", "e3/c", "harmful"),
        ("opposed", "err-00001", "e3/c", ""),
    ]


@pytest.mark.parametrize(
    ("book", "do", "expected"),
    [
        (
            holding(Entry("sai-00001", "old")),
            lambda b: b.apply([("e/x", [remove("sai-00001")])]),
            [("dropped", "sai-00001", "e/x", "removed")],
        ),
        (
            holding(Entry("sai-00001", "old words")),
            lambda b: b.apply([("e/x", [update("sai-00001", "something else entirely")])]),
            [("rewritten", "sai-00001", "e/x", "old words")],
        ),
        (
            holding(Entry("sai-00001", "use red"), Entry("sai-00002", "avoid blue")),
            lambda b: b.apply([("e/x", [merge(["sai-00001", "sai-00002"], "colours matter")])]),
            [
                ("added", "sai-00003", "e/x", "colours matter"),
                ("dropped", "sai-00001", "", "merged into sai-00003"),
                ("dropped", "sai-00002", "", "merged into sai-00003"),
            ],
        ),
        (
            holding(Entry("sai-00001", "a", 1, 2), concise_every=1),
            lambda b: (setattr(b, "updates", 1), b.begin_update()),
            [("dropped", "sai-00001", "", "harmful")],
        ),
        (
            holding(Entry("sai-00001", "a"), concise_every=1),
            lambda b: (setattr(b, "updates", 4), b.begin_update()),
            [("dropped", "sai-00001", "", "unused")],
        ),
        (
            holding(Entry("sai-00001", "a", 9), Entry("sai-00002", "b", 9), max_entries=1),
            lambda b: b.begin_update(),
            [("dropped", "sai-00001", "", "budget")],
        ),
        (
            confirmed(Entry("sai-00001", "a", support=1, against=2, admitted=False)),
            lambda b: b.apply([]),
            [("dropped", "sai-00001", "", "outvoted")],
        ),
        (
            confirmed(
                Entry("sai-00001", "a", support=2),
                Entry("sai-00002", "b", support=5, replaces=["sai-00001"], admitted=False),
                confirmations=2,
            ),
            lambda b: b.apply([]),
            [
                ("dropped", "sai-00001", "", "replaced by sai-00002"),
                ("admitted", "sai-00002", "", ""),
            ],
        ),
        (
            confirmed(Entry("sai-00001", "a", support=2, against=2), confirmations=2),
            lambda b: b.apply([]),
            [("withdrawn", "sai-00001", "", "")],
        ),
    ],
)
def test_what_ends_or_changes_a_lesson_is_told(book: Playbook, do: Any, expected: Any) -> None:
    do(book)
    assert told(book) == expected


# -- where sections stand --------------------------------------------------------------------------


def test_sections_are_found_where_they_stand() -> None:
    text = "Lessons:\n- one\n- two\n\nset it\n\nTried:\nset it wrong\nFound: bad\nWhy: bad form"
    spans = section_spans(
        text,
        "set it",
        ["one", "two"],
        [
            ("trial", "set it wrong"),
            ("feedback", "bad"),
            ("reflection", "bad form"),
            ("solution", ""),
        ],
    )
    assert [(name, text[start:end]) for name, start, end in spans] == [
        ("playbook", "one\n- two"),
        ("question", "set it"),
        ("trial", "set it wrong"),
        ("feedback", "bad"),
        ("reflection", "bad form"),
    ]


def test_what_a_template_does_not_print_is_not_found() -> None:
    assert section_spans("only this", "asked", ["lesson"], [("trial", "tried")]) == []
    assert section_spans("", "", [], []) == []


def test_of_two_pieces_in_one_place_the_longer_is_shown() -> None:
    text = "asked\nlesson: order: room verb"
    spans = section_spans(
        text, "asked", [], [("reflection", "order"), ("reflection", "order: room verb")]
    )
    assert [text[a:b] for _, a, b in spans] == ["asked", "order: room verb"]


def test_atomic_bytes_are_there_whole(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a", gzip.compress(b"x"))
    assert gzip.decompress((tmp_path / "a").read_bytes()) == b"x"
    assert json.loads("[]") == [p for p in tmp_path.iterdir() if p.name != "a"]
