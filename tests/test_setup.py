"""What is checked before a model is loaded: exact limits, and what each refusal says."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resd.config import RunConfig, load_config
from resd.context import ContextBudgets, Templates
from resd.errors import UserError
from resd.loop import setup
from resd.tasks.scoring import Scorer
from resd.types import Example, Outcome


def config(**over: Any) -> RunConfig:
    return load_config(None, [(key.replace("__", "."), value) for key, value in over.items()])


class Chat:
    """A message of n characters has n tokens, from token 1 on."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.seen: list[str] = []

    def encode(self, messages: Any) -> list[int]:
        text = "".join(message["content"] for message in messages)
        self.seen.append(text)
        if self.error and messages[0]["role"] == "system":
            raise ValueError(self.error)
        return list(range(1, len(text) + 1))

    def count_text(self, text: str) -> int:
        return len(text)

    def count(self, messages: Any) -> int:
        return len(self.encode(messages))

    def harmless(self, text: str) -> str:
        return text


def example(length: int, *roles: str, name: str = "e") -> Example:
    messages = [{"role": role, "content": ""} for role in roles]
    return Example(name, [*messages, {"role": "user", "content": "x" * length}])  # type: ignore[list-item]


# -- prompts --------------------------------------------------------------------------------------


def test_what_a_response_leaves_of_the_context() -> None:
    over = {"rollout__max_new_tokens": 100, "rollout__max_prompt_tokens": 50}
    assert setup._max_prompt(config(**over), 116) == 16
    assert setup._max_prompt(config(**over), 1_000) == 50
    with pytest.raises(UserError, match=r"max_new_tokens 100 leaves no room .* of 115 tokens"):
        setup._max_prompt(config(**over), 115)


def check(chat: Chat, examples: list[Example], most: int = 50) -> None:
    setup._check_prompts(config(model__path="m", task="t"), chat, examples, "train", most)  # type: ignore[arg-type]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The model's vocabulary."""
    known: list[int | None] = [None]
    monkeypatch.setattr(setup, "read_vocabulary_size", lambda model: known[0])
    return known


def test_one_prompt_that_fits_is_enough(rows: list[int | None]) -> None:
    check(Chat(), [example(90), example(50)])
    with pytest.raises(UserError, match=r"longer than 50 tokens .*first 2 has 51\)"):
        check(Chat(), [example(90), example(51)])
    many = [example(51 + i) for i in range(64)]
    with pytest.raises(UserError, match=r"the shortest of the first 64 has 51"):
        check(Chat(), [*many, example(49), example(60)])


def test_a_prompt_of_every_form_is_tried(rows: list[int | None]) -> None:
    chat = Chat()
    late = example(3, "system", name="late")
    check(chat, [example(2)] * 70 + [late])
    assert len(chat.seen) == 64 + 2
    assert chat.seen[-1] == "xxx"
    with pytest.raises(UserError) as caught:
        check(Chat("no\nsystem " + "y" * 300), [example(2)] * 70 + [late])
    said = str(caught.value)
    assert said.startswith(
        "model.path: the chat template of m fails on a train prompt of task t: no system yyy"
    )
    assert said.endswith("y")
    assert len(said.partition("task t: ")[2]) == 200


def test_a_template_that_makes_nothing(rows: list[int | None]) -> None:
    with pytest.raises(UserError, match=r"chat template of m makes nothing of a train prompt"):
        check(Chat(), [example(2), example(0)])


def test_a_tokenizer_of_another_model(rows: list[int | None]) -> None:
    rows[0] = 10
    check(Chat(), [example(9)])
    with pytest.raises(UserError, match=r"it makes token 10, the model knows 10"):
        check(Chat(), [example(9), example(10)])


# -- the builder of prompts -----------------------------------------------------------------------


def built(context: int, **over: Any) -> Any:
    return setup._builder(config(**over), Templates(), Chat(), context)  # type: ignore[arg-type]


def test_the_longest_text_decides_how_long_a_prompt_may_be() -> None:
    tokens = {"rollout__max_new_tokens": 100}
    most = {"method__max_teacher_tokens": 10_000}
    resd = {**most, "method__reflection_tokens": 200, "method__curation_tokens": 300}
    made = built(1_000, **tokens, **resd)
    assert made.max_tokens == 700
    assert made._add_only is False
    assert built(1_000, **tokens, method__name="grpo").max_tokens == 900
    assert built(1_000, **{**tokens, **resd, "method__max_teacher_tokens": 650}).max_tokens == 650
    short = {**most, "method__name": "sdpo"}
    assert built(1_000, **tokens, **short).max_tokens == 900
    budgets = built(1_000, **tokens, **short, method__budgets__trial=7).budgets
    assert budgets == ContextBudgets(trial=7)
    assert built(1_000, **tokens, **resd, method__playbook__operations="add")._add_only is True


def test_a_context_that_a_text_fills() -> None:
    over = {"rollout__max_new_tokens": 100, "method__name": "sdpo"}
    assert built(116, **over).max_tokens == 16
    with pytest.raises(UserError, match=r"curation of 100 tokens leaves no room .* of 115 tokens"):
        built(115, **over)


# -- the task -------------------------------------------------------------------------------------


class World:
    templates: Any = None

    def evaluate(self, example: Example, response: str) -> Outcome:
        if example.id == "bad" and response == "":
            raise RuntimeError("nothing there")
        return Outcome(0.0, False, "no")


def test_an_environment_that_fails_on_an_empty_response() -> None:
    scorer = Scorer(World(), mode="thread")  # type: ignore[arg-type]
    setup._probe(scorer, example(1), "t")
    with pytest.raises(UserError, match=r"task t: evaluate\(\) failed on an empty .*nothing there"):
        setup._probe(scorer, example(1, name="bad"), "t")


def test_the_users_templates_go_before_the_tasks(tmp_path: Path) -> None:
    for name, text in (("mine", "mine {{ question }}"), ("task", "task {{ question }}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teacher.jinja").write_text(text)
    (tmp_path / "task" / "review.jinja").write_text("of the task {{ question }}")
    world = World()
    world.templates = tmp_path / "task"
    found = setup.load_templates(config(templates=str(tmp_path / "mine")), world)  # type: ignore[arg-type]
    assert found.render("teacher", "q") == "mine q"
    assert found.render("review", "q") == "of the task q"
    assert setup.load_templates(config(), world).render("teacher", "q") == "task q"  # type: ignore[arg-type]
    world.templates = ["a"]
    with pytest.raises(UserError, match=r"templates must be a directory, found \['a'\]"):
        setup.load_templates(config(), world)  # type: ignore[arg-type]


def test_templates_that_fail_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^templates: template directory .*gone does not exist"):
        setup.load_templates(config(templates=str(tmp_path / "gone")), World())  # type: ignore[arg-type]

    def fails(directories: Any) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(setup, "Templates", fails)
    with pytest.raises(UserError, match=rf"templates: one in {tmp_path} fails: .*no such disk"):
        setup.load_templates(config(templates=str(tmp_path)), World())  # type: ignore[arg-type]


def test_a_tracker_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"tensorboardX", "wandb"}
    monkeypatch.setattr(setup, "find_spec", lambda name: name if name in there else None)
    setup._check_trackers(["tensorboard", "wandb"])
    with pytest.raises(UserError, match=r"trackers: mlflow is not installed; pip install mlflow"):
        setup._check_trackers(["wandb", "mlflow"])


def test_closing_ends_the_processes() -> None:
    closed: list[int] = []
    fields: dict[str, Any] = dict.fromkeys(setup.Setup.__dataclass_fields__)
    fields["scorer"] = SimpleNamespace(close=lambda: closed.append(1))
    kept: Any = SimpleNamespace(close=lambda: closed.append(2))
    fields["retention"] = setup.Kept(scorer=kept)
    setup.Setup(**fields).close()
    assert closed == [1, 2]


@pytest.mark.parametrize(
    ("over", "alone", "together"),
    [
        ({}, "", ""),
        ({"engine__kind": "vllm"}, "", ""),
        ({"train__optimizer": "adamw_stochastic"}, "", "torchrun started 2 processes: use adamw"),
        ({"method__teacher__offload": True}, "with several processes", ""),
    ],
)
def test_what_has_never_run_in_several_processes(
    over: dict[str, Any], alone: str, together: str
) -> None:
    for number, said in ((1, alone), (2, together)):
        with pytest.raises(UserError, match=said) if said else nullcontext():
            setup.check_processes(config(**over), number)
