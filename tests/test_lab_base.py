"""How the lab's base model is made: samples whose answers are right, gates that can fail."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from resd.context.curation import parse_curation
from resd.context.reflection import parse_reflection
from resd.context.templates import BUILT_IN, Templates
from resd.lab_base.corpus import HELD_OUT, Corpus
from resd.lab_base.drills import Mix
from resd.lab_base.gates import (
    CASES,
    JUDGES,
    THRESHOLDS,
    WITHOUT_THRESHOLD,
    HeldOut,
    make_cases,
    measure_gates,
)
from resd.lab_base.pretrain import (
    PretrainConfig,
    Stage,
    answer_loss,
    batches,
    build_model,
    build_tokenizer,
    collate,
    optimizers,
    pace,
    pretrain,
)
from resd.lab_base.targets import curation_target, lesson_of, reflection_target, solution
from resd.lab_base.tokenizer import turn
from resd.lab_base.wording import lab_templates, reworded
from resd.tasks.lab.dialect import SHIFTED, SPELLINGS, Dialect
from resd.tasks.lab.interpreter import Request, interpret

TINY = PretrainConfig(
    stages=(
        Stage(2, 1, 1e-3, Mix()),
        Stage(2, 0, 1e-3, Mix(lookups=0.3, two_houses=0.5, shifts=0.3, general=0.2, executed=0.5)),
    ),
    hidden=32,
    layers=1,
    heads=1,
    batch_tokens=600,
    vocab_size=400,
)


def corpus(**mix: float) -> Corpus:
    return Corpus(0, lab_templates(), turn, Mix(**mix))


def world(templates: Templates | None = None) -> HeldOut:
    return HeldOut(0, templates or lab_templates(), turn)


# -- the samples -----------------------------------------------------------------------------------


def test_drills_in_two_houses_ask_for_what_the_notes_say() -> None:
    for _ in range(20):
        segments = corpus(two_houses=1.0).look_up(Dialect.numbered(HELD_OUT))
        notes = segments[0][0].split("\n")
        for (text, _), (answer, taught) in zip(segments[::2], segments[1::2], strict=True):
            house = text.split("in ")[-1].split()[0]
            device = text.removesuffix("<|assistant|>").split()[-1]
            assert taught
            assert f"{house} verb: {device}{answer}" in notes


def test_drills_of_shifts_are_right() -> None:
    made, kinds = corpus(), set()
    for _ in range(40):
        segments = made.shift(Dialect.numbered(HELD_OUT))
        opening = segments[0][0]
        for (text, _), (answer, _) in zip(segments[::2], segments[1::2], strict=True):
            words = text.replace("<|user|>", "").removesuffix("<|assistant|>").split()
            if "tried:" in words:
                tried, result = text.removesuffix("<|assistant|>").split("tried: ")[1].split("\n")
                kinds.add("infers from a command" if "wanted" in result else "infers")
                (written,) = [SPELLINGS[word][1] for word in tried.split() if word in SPELLINGS]
                stands = int(result.split("at ")[1].split(",")[0])
                assert answer == f"shift: {(written - stands) % 9}"
            else:
                kinds.add("applies")
                shift = int(opening.split("shift: ")[1].split()[0])
                assert SPELLINGS[answer][1] == (int(words[-1]) - 1 + shift) % 9 + 1
    assert kinds == {"infers", "infers from a command", "applies"}


def test_a_third_of_the_samples_of_shifts_infer_one_and_a_third_solve_by_one() -> None:
    made, inferred, unknown, solved = corpus(shifts=1.0), 0, 0, 0
    for _ in range(300):
        (prompt, _), (answer, _), *more = made.sample(0.0)
        lesson = parse_reflection(answer).what_to_do
        if " stands at " in prompt and lesson:
            inferred += 1
            assert "shift:" in lesson
            unknown += lesson not in prompt
        elif "set the" in prompt:
            solved += 1
            assert re.search(r"^(?:\w+ )?shift: \d$", prompt, re.M) and SHIFTED in prompt
            assert len(more) == 6
    assert 70 < inferred < 130 and 70 < solved < 130
    assert unknown > inferred * 0.6


def test_commands_that_only_execution_finds_fault_with() -> None:
    def kinds(**mix: float) -> float:
        made, found = corpus(**mix), []
        for number in range(300):
            dialect = Dialect.numbered(HELD_OUT + number)
            found.append(made.failure(dialect, made.requests())[1].kind)
        return sum(kind in ("verb", "level", "place") for kind in found) / len(found)

    assert kinds(executed=0.9) > 0.6 > kinds() + 0.2


def prompts_to_solve(number: int, **mix: float) -> list[tuple[Dialect, str, str]]:
    """Dialect, prompt and answer."""
    made, found = corpus(**mix), []
    for i in range(number):
        dialect = replace(Dialect.numbered(HELD_OUT + i), house="oak")
        (prompt, _), (answer, _), *_ = made.solve(dialect)
        found.append((dialect, prompt.removesuffix("<|assistant|>"), answer))
    return found


def test_a_house_s_playbook_holds_another_s_facts_as_often_as_the_mix_says() -> None:
    def share(beside: float) -> float:
        seen = []
        for _, prompt, _ in prompts_to_solve(300, beside=beside, dirty=0.0):
            facts = re.findall(r"^(\w+) (?:open|close|room|order|level|verb):", prompt, re.M)
            if facts:
                seen.append(set(facts) != {"oak"})
        return sum(seen) / len(seen)

    assert share(0.0) == 0.0
    assert share(1.0) > 0.8
    assert 0.25 < share(0.5) < 0.7


def test_some_playbooks_lack_just_the_verb_that_is_needed() -> None:
    def lacking(unknown: float) -> tuple[int, int]:
        """Whole playbooks but for the first device's verb, and whole ones."""
        lack = whole = 0
        for dialect, prompt, _ in prompts_to_solve(300, unknown=unknown, beside=0.0, dirty=0.0):
            missing = [fact for fact in dialect.facts() if fact not in prompt]
            device = prompt.split("set the ")[1].split()[0]
            whole += not missing
            lack += missing == [f"oak verb: {device} {dialect.verb_of(device)}"]
        return lack, whole

    lack, whole = lacking(0.0)
    assert lack < 5 and whole > 50
    lack, whole = lacking(1.0)
    assert lack > 80 and whole < 5


def test_some_messages_beside_a_playbook_are_wrong_and_the_answer_is_not() -> None:
    wrong = told = 0
    for dialect, prompt, answer in prompts_to_solve(600, beside=0.0, dirty=0.0):
        shown = re.search(r"tried: (.+)\nresult: (.+)", prompt)
        if shown is None or prompt.count("set the") != 1:
            continue
        words = prompt.split("set the ")[1].split()
        request = Request(words[0], words[3], int(words[5]))
        assert interpret(dialect, [request], answer).passed
        found = interpret(dialect, [request], shown[1]).finding
        told += 1
        wrong += found is None or found.feedback != shown[2]
    assert told > 100
    assert 0.02 < wrong / told < 0.14


def test_what_is_known_is_mostly_kept_to() -> None:
    made, kept = corpus(), 0
    for number in range(200):
        dialect = Dialect.numbered(HELD_OUT + number)
        trial, _ = made.failure(dialect, made.requests()[:1], known=2)
        words = trial.split()
        kept += bool(words) and (words[0], words[-1]) == (dialect.opener, dialect.closer)
    assert kept > 150


def test_evaluation_dialects_are_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made, held_out, other = corpus(), Dialect.numbered(0), Dialect.numbered(HELD_OUT)
    drawn = [held_out, held_out, other]
    monkeypatch.setattr(Dialect, "sample", lambda rng: drawn.pop(0))
    assert made.dialect().verbs == other.verbs
    assert not drawn


def test_houses_and_shifts_are_a_part_of_all_dialects() -> None:
    made = corpus()
    drawn = [made.dialect() for _ in range(400)]
    assert 0.2 < sum(bool(d.house) for d in drawn) / 400 < 0.4
    assert 0.1 < sum(bool(d.shift) for d in drawn) / 400 < 0.3


def test_other_wordings_lack_words_and_nothing_else() -> None:
    found = reworded(random.Random(0), 6)
    texts = {t.render("reflect", "the question", trial="t", feedback="f") for t in found}
    assert len(texts) >= 4
    assert all("the question" in text and '{"what_went_wrong"' in text for text in texts)
    original = (BUILT_IN / "reflect.jinja").read_text(encoding="utf-8").split()
    assert all(
        set(text.split()) <= {*original, "the", "question", "t", "f", "```"} for text in texts
    )


# -- the gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", CASES)
def test_a_perfect_answer_passes_and_others_do_not(gate: str) -> None:
    made = world()
    for case in make_cases(gate, made, 30):
        if gate in ("reflection", "inference"):
            finding, _ = case.truth
            right = reflection_target(finding, [])
            assert parse_reflection(right).what_to_do == lesson_of(finding)
            wrong = reflection_target(finding, []).replace(lesson_of(finding), "open: nothing")
        elif gate == "curation":
            continue  # its answers are compared whole; see below
        else:
            dialect, requests = case.truth[0], case.truth[1]
            requests = requests if isinstance(requests, list) else [requests]
            right, wrong = solution(dialect, requests), "open nothing"
        assert JUDGES[gate](*case.truth, right)
        assert not JUDGES[gate](*case.truth, wrong)


def test_curations_are_compared_whole() -> None:
    made = world()
    for _ in range(30):
        dialect = made.dialect()
        playbook = made.playbook(dialect, complete=False)
        lesson = made.lesson(dialect, playbook)
        right = curation_target(lesson, playbook)
        truth = (parse_curation(right).operations,)
        assert JUDGES["curation"](*truth, right)
        other = '{"operations":[{"op":"ADD","section":"code","content":"open: nothing"}]}'
        assert not JUDGES["curation"](*truth, other)


def test_the_inference_gate_shows_no_shift() -> None:
    for case in make_cases("inference", world(), 40):
        finding = case.truth[0]
        assert finding.kind == "shift"
        asked = case.prompt.split("\n")
        assert finding.fact not in asked[-3:]
        assert asked[-1] == f"result: {finding.feedback}"


def test_the_gate_of_two_houses_names_one_and_shows_both() -> None:
    for case in make_cases("two_houses", world(), 40):
        dialect, requests = case.truth
        facts = [line for line in case.prompt.split("\n") if ": " in line]
        assert len(facts) == 26
        assert set(dialect.facts()) < set(facts)
        assert f"in {dialect.house} house" in case.prompt
        other = next(f.split()[0] for f in facts if not f.startswith(dialect.house))
        assert other != dialect.house
        assert interpret(dialect, requests, solution(dialect, requests)).passed


def test_all_gates_are_measured_in_their_own_words() -> None:
    asked: list[str] = []

    def silent(prompts: Any) -> list[str]:
        asked.extend(prompts)
        return [""] * len(prompts)

    gates = measure_gates(silent, 5)
    assert set(gates) == {*THRESHOLDS, *WITHOUT_THRESHOLD, "reflection_tags"}
    assert max(v for k, v in gates.items() if "curation" not in k and k != "reflection_tags") == 0.0
    assert sum("pasta" in prompt for prompt in asked) == 10


# -- the model -------------------------------------------------------------------------------------


def test_padding_is_never_seen_by_what_is_taught() -> None:
    tokenizer = build_tokenizer(TINY)
    model = build_model(TINY, tokenizer)
    short, long = ([5, 6, 7, 8], [False, False, True, True]), ([9] * 9, [False] * 9)
    alone = answer_loss(model, collate([short], 0))
    padded = answer_loss(model, collate([short, long], 0))
    assert torch.allclose(alone, padded, atol=2e-2)  # bfloat16
    other = answer_loss(model, collate([short, long], 3))
    assert torch.equal(padded, other)


def test_batches_hold_as_many_tokens_as_they_may() -> None:
    tokenizer = build_tokenizer(TINY)
    stream = batches(1, TINY, tokenizer)
    for _ in range(40):
        ids, taught = next(stream)
        assert ids.numel() <= TINY.batch_tokens or len(ids) == 1
        assert ids.shape[1] <= TINY.longest
        assert taught.any(dim=1).all()


def test_the_rate_rises_and_falls() -> None:
    stage = Stage(100, 0, 1.0, Mix(), warmup=10)
    rates = [pace(step, stage) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] == pytest.approx(0.05, abs=1e-2)


def test_the_first_batches_are_copied_words_alone() -> None:
    """Echoes and recitals, of one turn each; then the skills."""
    tokenizer = build_tokenizer(TINY)
    config = replace(TINY, stages=(Stage(200, 100, 1e-3, Mix(dirty=0.0)),))
    stream, copied = batches(0, config, tokenizer), []
    for _ in range(200):
        ids, _ = next(stream)
        asked = [tokenizer.decode(row).removeprefix("<|user|>") for row in ids]
        copied.append(sum(text.startswith(("echo", "recite")) for text in asked) / len(asked))
    assert min(copied[:90]) == 1.0
    assert sum(copied[-20:]) / 20 < 0.5


def test_matrices_of_the_layers_go_to_muon_and_the_rest_to_adamw() -> None:
    model = build_model(TINY, build_tokenizer(TINY))
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon, adamw = optimizers(model, 1e-3, 0.1)
    inner = {names[id(w)] for group in muon.param_groups for w in group["params"]}
    outer = {names[id(w)] for group in adamw.param_groups for w in group["params"]}
    assert inner | outer == set(names.values())
    assert not inner & outer
    assert outer == {n for n in names.values() if "embed" in n or "norm" in n}
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (1e-3, 5e-4)


def test_a_stage_begins_with_the_weights_that_were_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision: who continues from the files continues from the same numbers."""
    seen = []

    def nothing(model: Any, tokenizer: Any, number: int, *rest: Any) -> None:
        seen.append({name: w.clone() for name, w in model.state_dict().items()})

    monkeypatch.setattr("resd.lab_base.pretrain._train", nothing)
    monkeypatch.setattr("resd.lab_base.pretrain.final_gates", lambda *a: {"playbook": 0.0})
    pretrain(tmp_path, TINY)
    saved = load_file(tmp_path / "model.safetensors")
    first, second = seen
    assert any(not torch.equal(first[name], w.float()) for name, w in saved.items())
    assert all(torch.equal(second[name], w.float()) for name, w in saved.items())


def test_it_is_made_in_one_go_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "resd.lab_base.pretrain.final_gates", lambda model, tokenizer: {"playbook": 0.0}
    )
    first, again = tmp_path / "first", tmp_path / "again"
    assert pretrain(first, TINY) == {"playbook": 0.0}
    pretrain(again, TINY)
    rows = [json.loads(line) for line in (first / "pretrain.jsonl").read_text().splitlines()]
    assert [next(iter(row)) for row in rows] == ["config", "gates"]
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(first).dtype == torch.float16
