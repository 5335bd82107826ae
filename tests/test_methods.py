"""Which samples teach, what each teacher sees, and how much each counts (method.md section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fakes
import pytest
import torch
from books import confirmed, holding
from fakes import rollout

from resd.context import Entry, Playbook, Reflection, Sections
from resd.methods.base import Notes, StepReport, Tokens
from resd.methods.distillation import peer_solution
from resd.types import Outcome, Rollout, TrainingSample

DISTILLATION = ("resd", "sdpo", "sdpo_ss")
LESSON = Entry("err-00001", "a lesson")
REFLECTION = Reflection("it was wrong", "do it right")


def samples(
    made: Any, batch: list[Rollout], reflections: list[Reflection | None] | None = None
) -> tuple[list[TrainingSample | None], StepReport]:
    report = StepReport()
    return made.samples(batch, Notes(reflections or [None] * len(batch)), report), report


def seen(
    made: Any, batch: list[Rollout], reflections: list[Reflection | None] | None = None
) -> list[Sections | None]:
    """What the teacher sees for each rollout; None for one that does not teach."""
    shown: list[Sections] = []
    real = made.services.builder.teacher_and_spans

    def teacher(example: Any, sections: Sections) -> Any:
        shown.append(sections)
        return real(example, sections)

    made.services.builder.teacher_and_spans = teacher
    found, _ = samples(made, batch, reflections)
    made.services.builder.teacher_and_spans = real
    order = iter(shown)
    return [next(order) if sample is not None else None for sample in found]


def with_lesson(**config: Any) -> Any:
    made = fakes.method("resd", **config)
    made.playbook.entries[LESSON.id] = LESSON
    return made


# -- who teaches, and what the teacher sees -------------------------------------------------------


@pytest.mark.parametrize("name", ["sdpo", "sdpo_ss"])
def test_sdpo_shows_the_feedback_alone(name: str) -> None:
    batch = [rollout(answer="my try", feedback="it broke")]
    assert seen(fakes.method(name), batch) == [Sections(feedback="it broke")]
    both = Sections(trial="my try", feedback="it broke")
    assert seen(fakes.method(name, use_trial=True), batch) == [both]


@pytest.mark.parametrize("name", ["sdpo", "sdpo_ss"])
def test_sdpo_shows_a_peers_success_instead_of_trial_and_feedback(name: str) -> None:
    batch = [rollout(answer="my try"), rollout(answer="right", passed=True)]
    assert seen(fakes.method(name), batch)[0] == Sections(solution="right")
    beside = fakes.method(name, feedback_beside_peer=True)
    assert seen(beside, batch)[0] == Sections(feedback="it failed", solution="right")
    silent = [rollout(answer="my try", feedback=""), batch[1]]
    assert seen(fakes.method(name), silent)[0] == Sections(solution="right")


def test_what_passed_is_skipped_by_sdpo_and_its_own_demonstration_for_sdpo_ss() -> None:
    alone = [rollout(answer="right", passed=True)]
    pair = [rollout(answer="right", passed=True), rollout(answer="also right", passed=True)]
    assert seen(fakes.method("sdpo"), alone) == [None]
    assert seen(fakes.method("sdpo"), pair)[0] == Sections(solution="also right")
    assert seen(fakes.method("sdpo_ss"), alone) == [Sections(solution="right")]
    assert seen(fakes.method("sdpo_ss"), pair)[0] == Sections(solution="right")


def test_resd_shows_a_failure_all_there_is() -> None:
    made = with_lesson()
    made.solutions.add("one", "buffered")
    batch = [rollout(answer="my try", feedback="it broke")]
    everything = Sections([LESSON], "my try", "it broke", REFLECTION, "buffered")
    assert seen(made, batch, [REFLECTION]) == [everything]
    assert seen(fakes.method("resd"), batch) == [Sections([], "my try", "it broke")]


def test_resd_shows_a_peers_solution_where_none_is_buffered() -> None:
    batch = [rollout(answer="my try"), rollout(answer="right", passed=True)]
    made = with_lesson()
    assert seen(made, batch)[0] == Sections([LESSON], "my try", "it failed", solution="right")
    made.solutions.add("one", "buffered")
    assert seen(made, batch)[0] == Sections([LESSON], "my try", "it failed", solution="buffered")


@pytest.mark.parametrize(
    ("option", "section", "empty"),
    [
        ("use_trial", "trial", ""),
        ("use_reflection", "reflection", Reflection()),
        ("use_playbook", "playbook", []),
        ("use_solutions", "solution", ""),
    ],
)
def test_each_section_has_its_switch(option: str, section: str, empty: Any) -> None:
    made = with_lesson(**{option: False})
    made.solutions.add("one", "buffered")
    (found,) = seen(made, [rollout(answer="my try")], [REFLECTION])
    assert found is not None
    shown = {"playbook": [LESSON], "trial": "my try", "feedback": "it failed"}
    shown |= {"reflection": REFLECTION, "solution": "buffered"}
    assert found == Sections(**{**shown, section: empty})


def test_resd_shows_a_success_playbook_and_solution_and_never_drops_it() -> None:
    batch = [rollout(answer="right", passed=True), rollout(answer="peer's", passed=True)]
    made = with_lesson(success_tags=False)
    made.learn(batch[:1], StepReport())
    assert seen(made, batch[:1]) == [Sections([LESSON], solution="right")]
    off = with_lesson(use_solutions=False, success_tags=False)
    assert off.learn(batch, StepReport()) == Notes([None, None])
    assert len(off.solutions) == 0
    assert seen(off, batch) == [Sections([LESSON], solution=r.answer) for r in batch]


def test_the_solution_of_a_success_is_the_buffers_then_its_own_then_a_peers() -> None:
    own, silent = rollout(answer="right", passed=True), rollout(answer="", passed=True)
    made = fakes.method("resd")
    assert seen(made, [silent, own])[0] == Sections([], solution="right")
    assert seen(made, [silent]) == [None]
    made.solutions.add("one", "buffered")
    assert seen(made, [silent, own]) == [Sections([], solution="buffered")] * 2
    assert seen(fakes.method("sdpo_ss"), [silent, own])[0] == Sections(solution="right")


def test_notes_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        samples(fakes.method("resd"), [rollout(), rollout()], [REFLECTION])


def test_only_admitted_entries_reach_the_teacher() -> None:
    made = fakes.method("resd")
    candidate = Entry("err-00002", "a candidate", admitted=False)
    made.playbook = confirmed(LESSON, candidate)
    (found,) = seen(made, [rollout()])
    assert found is not None
    assert found.playbook == [LESSON]


@pytest.mark.parametrize("name", DISTILLATION)
def test_nothing_to_say_is_no_sample(name: str) -> None:
    """No feedback, no solution: a playbook alone, and a reflection alone, do not count."""
    made = with_lesson() if name == "resd" else fakes.method(name)
    found, report = samples(made, [rollout(feedback="")], [REFLECTION])
    assert found == [None]
    assert +report.counts == {"nothing_to_say": 1}


@pytest.mark.parametrize("name", DISTILLATION)
def test_what_the_environment_failed_on_and_empty_responses_teach_nothing(name: str) -> None:
    empty = rollout()
    empty = Rollout(
        empty.example, empty.prompt_ids, type(empty.completion)((), "", "stop"), empty.outcome
    )
    found, report = samples(fakes.method(name), [rollout(scored=False), empty, rollout()])
    assert [sample is not None for sample in found] == [False, False, True]
    assert +report.counts == {"empty_response": 1}


def test_an_unfinished_response_shows_no_trial() -> None:
    """Cut off inside its thinking it holds no answer, only what the environment said."""
    (found,) = seen(fakes.method("resd"), [rollout(answer=None, feedback="cut off")])
    assert found == Sections([], feedback="cut off")


def test_a_sample_carries_what_the_update_needs() -> None:
    made = fakes.method("resd")
    batch = [rollout(log_probs=(-1.0,) * 9)]
    ((sample,), report) = samples(made, batch)
    assert sample is not None
    assert sample.prompt_ids == batch[0].prompt_ids
    assert sample.response_ids == batch[0].completion.token_ids
    assert sample.log_probs == (-1.0,) * 9
    prompt = "".join(map(chr, sample.teacher_ids))
    assert "do one" in prompt
    assert "it failed" in prompt
    assert report.metrics["teacher/prompt_tokens"] == len(sample.teacher_ids)


def test_a_question_too_long_for_the_teacher_is_counted() -> None:
    made = fakes.method("resd")
    made.services.builder.max_tokens = 4
    found, report = samples(made, [rollout()])
    assert found == [None]
    assert +report.counts == {"teacher_prompt_too_long": 1}


def test_a_peer_is_drawn_at_random_from_those_of_the_same_example() -> None:
    """Neither the first nor the shortest; the rollout's own seed decides."""
    answers = ["a" * n for n in (3, 1, 4, 2, 5)]
    peers = [rollout(answer=answer, passed=True) for answer in answers]
    others = [rollout("two", "another example's", passed=True), rollout(answer="", passed=True)]

    def drawn(seed: int) -> str:
        return peer_solution(rollout(answer="b", seed=seed), [*peers, *others])

    chosen = [drawn(seed) for seed in range(40)]
    assert set(chosen) == set(answers)
    assert chosen == [drawn(seed) for seed in range(40)]


# -- how much -------------------------------------------------------------------------------------


def weights(batch: list[Rollout], exponents: Any, name: str = "resd") -> list[float]:
    found, _ = samples(fakes.method(name, success_weights=exponents), batch)
    return [sample.weight for sample in found if sample is not None]


def test_success_rate_weights_favour_the_rarer_outcome() -> None:
    batch = [rollout(passed=i == 0, seed=i, example=f"e{i}") for i in range(4)]
    assert weights(batch, (1.0, 1.0)) == pytest.approx([2.0, 2 / 3, 2 / 3, 2 / 3])
    # (1-s)^a for a success, s^b for a failure: exponents are not exchanged
    a, b = 0.75**2, 0.25**0.5
    mean = (a + 3 * b) / 4
    assert weights(batch, (2.0, 0.5)) == pytest.approx([a / mean, *[b / mean] * 3])
    assert weights(batch, (0.0, 0.0)) == weights(batch, None) == [1.0] * 4


@pytest.mark.parametrize("passed", [True, False])
def test_a_batch_of_one_outcome_has_weight_one(passed: bool) -> None:
    batch = [rollout(passed=passed, example=f"e{i}") for i in range(3)]
    assert weights(batch, (1.0, 1.0)) == [1.0] * 3


def test_the_success_rate_is_of_what_was_scored() -> None:
    batch = [rollout(passed=i == 0, example=f"e{i}") for i in range(4)]
    broken = [rollout(scored=False, example="x"), *batch, rollout(scored=False, example="y")]
    assert weights(broken, (1.0, 1.0)) == weights(batch, (1.0, 1.0))


# -- GRPO -----------------------------------------------------------------------------------------


def advantages(batch: list[Rollout], **config: Any) -> list[float | None]:
    found, _ = samples(fakes.method("grpo", **config), batch)
    return [None if sample is None else sample.advantage for sample in found]


def test_grpo_compares_with_the_group() -> None:
    rewards = [1.0, 0.0, 0.0, 0.25]
    group = [rollout(reward=reward) for reward in rewards]
    mean = 1.25 / 4
    assert advantages(group, scale_rewards=False) == pytest.approx([r - mean for r in rewards])
    deviation = torch.tensor(rewards).std().item()
    expected = [(r - mean) / (deviation + 1e-4) for r in rewards]
    assert advantages(group, scale_rewards=True) == pytest.approx(expected)


def test_grpo_groups_by_example_wherever_they_stand_in_the_batch() -> None:
    batch = [rollout("a", reward=1.0), rollout("b", reward=0.0)]
    batch += [rollout("a", reward=0.0), rollout("b", reward=0.5)]
    expected = [0.5, -0.25, -0.5, 0.25]
    assert advantages(batch, scale_rewards=False) == pytest.approx(expected)


def test_grpo_learns_nothing_from_equal_rewards_or_alone() -> None:
    batch = [rollout("a", reward=0.7), rollout("b", reward=1.0), rollout("a", reward=0.7)]
    made = fakes.method("grpo")
    found, report = samples(made, batch)
    assert found == [None] * 3
    assert report.counts["nothing_to_say"] == 3


def test_grpo_leaves_out_what_the_environment_failed_on() -> None:
    batch = [rollout(reward=1.0), rollout(reward=0.0, scored=False), rollout(reward=0.0)]
    assert advantages(batch, scale_rewards=False) == [0.5, None, -0.5]


def test_grpo_learns_nothing_of_an_empty_response() -> None:
    one = rollout(reward=1.0)
    empty = replace(
        one, completion=replace(one.completion, token_ids=()), outcome=Outcome(0, False)
    )
    found, report = samples(fakes.method("grpo"), [one, empty])
    assert [sample is not None for sample in found] == [True, False]
    assert report.counts["nothing_to_say"] == 1


def test_grpo_clips_its_ratio_on_each_side_by_its_own_bound() -> None:
    """Of a ratio beyond its bound nothing is to be gained, and no gradient comes."""
    made = fakes.method("grpo", clip_low=0.2, clip_high=0.28)
    log_probs = torch.tensor([1.5, 0.5, 1.25, 0.9]).log().requires_grad_()
    tokens = Tokens(log_probs, torch.zeros(4), torch.tensor([1.0, -2.0, 1.0, -2.0]))
    loss = made.per_token(tokens, torch.zeros(4, 3), {})
    assert loss.tolist() == pytest.approx([-1.28, 1.6, -1.25, 1.8])
    loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([0.0, 0.0, -1.25, 1.8])


# -- what is kept ---------------------------------------------------------------------------------


def test_resd_remembers_playbook_and_solutions() -> None:
    made = with_lesson()
    made.solutions.add("one", "right")
    again = fakes.method("resd")
    again.load_state_dict(made.state_dict())
    assert again.playbook == made.playbook == holding(LESSON)
    assert again.solutions.get("one") == "right"
    files = made.artifacts("A title")
    assert files.keys() == {"playbook.json", "playbook.md"}
    assert all("a lesson" in text for text in files.values())
    assert "A title" in files["playbook.md"]
    assert files["playbook.json"].startswith('{\n "')
    assert files["playbook.json"].endswith("}\n")


def test_the_playbook_is_judged_by_worlds_that_know_the_truth() -> None:
    class World:
        def score_playbook(self, contents: list[str]) -> dict[str, float]:
            assert contents == ["a lesson"]
            return {"precision": 1}

    made = with_lesson()
    made.playbook.entries["err-00002"] = Entry("err-00002", "a candidate", admitted=False)
    assert made.metrics(World()) == {"playbook/precision": 1.0}
    assert made.metrics(object()) == {}
    assert fakes.method("sdpo").metrics(World()) == {}
    assert isinstance(made.playbook, Playbook)


def test_a_method_that_remembers_nothing() -> None:
    made = fakes.method("grpo")
    report = StepReport()
    assert made.learn([rollout(), rollout()], report) == Notes([None, None])
    assert report == StepReport()
    assert made.state_dict() == made.tensors() == made.artifacts("t") == made.metrics(None) == {}


def test_what_a_step_tells_of_the_playbook() -> None:
    made, report = with_lesson(), StepReport()
    for number, admitted in enumerate([True, True, True, False, False], start=2):
        entry = Entry(f"err-{number:05d}", f"lesson {number}", admitted=admitted)
        made.playbook.entries[entry.id] = entry
    made.solutions.add("one", "x")
    made._describe({LESSON.id, "err-00099"}, report)
    assert report.lesson == "lesson 4"
    tokens = report.metrics.pop("playbook/tokens")
    assert tokens == made.playbook.tokens() > 0
    wanted = {"playbook/entries": 4.0, "playbook/candidates": 2.0, "solutions": 1.0}
    wanted["playbook/gone"] = 1.0
    assert report.metrics == wanted
    made._describe(set(made.playbook.entries), report)
    assert report.lesson == ""
