"""verifiers:TASKSET: real tasksets of the package, scored by their own rewards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers.v1")

import verifiers.v1 as vf

from resd.errors import UserError
from resd.tasks.adapters import VerifiersEnvironment
from resd.tasks.adapters.library_server import Refused
from resd.tasks.adapters.verifiers_server import _Server, refuse_unless_single
from resd.tasks.check import run_checks
from resd.tasks.registry import load_environment

TASKSETS = Path(__file__).with_name("tasksets")
GOLDS = {
    "little_sums": "The sum is {answer}",
    "turned_text": "{turned}",
    "tagged_words": None,
}


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The tasksets beside this file are found, here and in every process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TASKSETS))
        patch.setenv("PYTHONPATH", str(TASKSETS), prepend=":")
        yield


class Here:
    """The process of a taskset, in this process: to start one takes seconds (see the slow test)."""

    def __init__(self, module: str, setup: dict[str, Any], name: str, kept: Any) -> None:
        served = _Server(**setup)
        self.started, self.ask = served.offer, served.answer


@pytest.fixture(scope="module")
def words() -> VerifiersEnvironment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resd.tasks.adapters.verifiers.LibraryProcess", Here)
        sizes = {"train_size": 20, "test_size": 10}
        environment = load_environment("verifiers:tagged_words", sizes)
    assert isinstance(environment, VerifiersEnvironment)
    return environment


def server(taskset: str, train: int = 6, test: int = 3, **more: Any) -> _Server:
    options = {"config": {}, "test_config": None, "seed": 0, "gold": None, "reasons": []}
    return _Server(taskset, train=train, test=test, **{**options, **more})


# -- tasks ---------------------------------------------------------------------------------------


def test_tasks_become_examples(words: VerifiersEnvironment) -> None:
    train, test = words.examples("train"), words.examples("test")
    assert [example.id for example in test[:2]] == ["test-00000", "test-00001"]
    prompts = [example.prompt[0]["content"] for example in [*train, *test]]
    assert len(set(prompts)) == 30
    assert all("between <words> and </words>" in prompt for prompt in prompts)
    assert [m["role"] for m in train[0].prompt] == ["user"]


def test_the_seed_decides_the_order_and_sizes_do_not_move_the_test() -> None:
    first = server("turned_text")
    assert server("turned_text", train=12).offer["test"] == first.offer["test"]
    assert server("turned_text", train=12).offer["train"][:6] == first.offer["train"]
    other = server("turned_text", seed=1).offer["test"]
    assert [item[1] for item in other] != [item[1] for item in first.offer["test"]]


def test_no_prompt_stands_twice() -> None:
    made = server("little_sums", train=60, test=15, config={"digits": 1})  # 81 sums in all
    prompts = [item[1][1]["content"] for split in ("train", "test") for item in made.offer[split]]
    assert len(set(prompts)) == 75


def test_system_prompts_options_and_a_split_of_its_own() -> None:
    made = server(
        "little_sums", config={"digits": 2, "split": "train"}, test_config={"split": "test"}
    )
    for split in ("train", "test"):
        for _, messages, _, _ in made.offer[split]:
            assert messages[0] == {"role": "system", "content": "Calculate."}
            assert messages[1]["content"].endswith(f"({split})?")
    assert len(made.offer["train"]) == 6 and len(made.offer["test"]) == 3
    assert max(task.data.answer for task in made.tasks) < 200


# -- scores --------------------------------------------------------------------------------------


def test_every_reward_is_named_with_what_it_gave(words: VerifiersEnvironment) -> None:
    example = words.examples("train")[0]
    word, number = example.prompt[0]["content"].split()[1:3]
    right = words.evaluate(example, f"<words>{f'{word} ' * int(number)}</words>")
    assert (right.reward, right.passed, right.feedback) == (1.0, True, "")
    half = words.evaluate(example, f"<words>{word}</words>")
    assert half.reward == pytest.approx(1.2 / 2.2) and not half.passed
    assert half.metrics["reward/right_word"] == 1.0
    assert half.feedback.splitlines() == [
        "The response does not pass: its reward is 1.2 of 2.2.",
        "- chatter: 0 times -0.1",
        "- in_tags: 1 times 0.2",
        "- right_word: 1",
        "- right_number: 0",
    ]
    # The taskset's own words, on its own key.
    empty = words.evaluate(example, "")
    assert empty.feedback.endswith("- feedback: nothing stands between <words> and </words>")
    # A negative weight takes away, and is not needed to pass.
    assert words.evaluate(example, "a" * 300).reward == pytest.approx(-0.1 / 2.2)


def test_what_a_response_thinks_does_not_count(words: VerifiersEnvironment) -> None:
    example = words.examples("train")[0]
    assert words.evaluate(example, "<think><words></words></think>no").reward == 0.0


def scored(made: _Server, response: str) -> dict[str, Any]:
    return made.answer((made.offer["train"][0][0], response))


def test_rewards_metrics_and_the_words_of_their_docstrings() -> None:
    made = server("little_sums")
    answer = made.tasks[made.offer["train"][0][0]].data.answer
    assert scored(made, f"12 and {answer}") == {
        "rewards": {"right_sum": [1.0, 1.0]},
        "metrics": {"numbers": 2.0},
        "reasons": {},
    }
    assert made.offer["says"] == {
        "right_sum": "Whether the last number of the response is the sum."
    }


def test_half_characters_do_not_fail_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    import little_sums

    async def right_sum(self: Any, trace: Any) -> float:
        return float(len(trace.last_reply.encode()))

    made = server("little_sums")
    monkeypatch.setattr(little_sums.SumTask, "right_sum", vf.reward(right_sum))
    assert scored(made, "a \ud800 b")["rewards"] == {"right_sum": [5.0, 1.0]}


class Stub(VerifiersEnvironment):
    """The environment's end alone, with a verdict put in its mouth."""

    def __init__(self, taskset: str = "stub", **more: Any) -> None:
        self.taskset, self.pass_at = taskset, more.get("pass_at")
        self._says = {"likeness": "How like it is."}
        self._score = lambda index, text: VerdictOf(text)  # type: ignore[assignment]


def VerdictOf(text: str) -> Any:
    from resd.tasks.adapters.verifiers import _Verdict

    if text == "long":
        return _Verdict(limits="it took too long")
    if text == "broken":
        return _Verdict(failed="ValueError: no")
    if text == "penalty":
        return _Verdict(rewards={"chatter": (0.0, -1.0)})
    reasons = {"feedback": "close to secret-word"} if text == "tells" else {}
    return _Verdict({"likeness": (0.8, 1.0)}, {"length": 3.0}, reasons)


def example_of(*secrets: str) -> Any:
    from resd.types import Example

    prompt = [{"role": "user", "content": "?"}]
    return Example("train-0", prompt, {"index": 0, "gold": None, "secrets": list(secrets)})  # type: ignore[arg-type]


def test_when_a_response_passes() -> None:
    example = example_of()
    assert not Stub().evaluate(example, "x").passed
    assert Stub().evaluate(example, "x").reward == pytest.approx(0.8)
    assert Stub().evaluate(example, "x").feedback.splitlines()[1:] == [
        "- likeness: 0.8 (How like it is.)",
        "- length: 3, not rewarded",
    ]
    passed = Stub(pass_at=0.8).evaluate(example, "x")
    assert (passed.reward, passed.passed, passed.feedback) == (1.0, True, "")
    assert Stub(pass_at=1.6).evaluate(example, "x").reward == pytest.approx(0.5)
    with pytest.raises(UserError, match="no reward of stub has a positive weight: set pass_at"):
        Stub().evaluate(example, "penalty")


def test_feedback_does_not_give_the_right_answer_away() -> None:
    told = Stub().evaluate(example_of("secret-word"), "tells").feedback
    assert "secret-word" not in told and "likeness" in told
    assert "secret-word" in Stub().evaluate(example_of("other-word"), "tells").feedback


def test_scoring_that_fails_is_no_score() -> None:
    out = Stub().evaluate(example_of(), "long")
    assert (out.reward, out.feedback) == (
        0.0,
        "The response could not be scored: it took too long.",
    )
    with pytest.raises(RuntimeError, match="the rewards of stub failed: ValueError: no"):
        Stub().evaluate(example_of(), "broken")


# -- what is refused -----------------------------------------------------------------------------


class Right(vf.Task[vf.TaskData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return 1.0


class Stops(Right):
    @vf.stop
    async def enough(self, response: vf.Response) -> bool:
        return True


class Rewrites(Right):
    @vf.intercept
    async def shout(self, request: vf.Request) -> None:
        return None


class Prepares(Right):
    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        return None


class Looks(Right):
    @vf.reward
    async def tests(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        return 1.0


class Uses(Right):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [vf.Toolset(vf.ToolsetConfig())]


class JudgedConfig(vf.TaskConfig):
    judge: vf.JudgeConfig = vf.JudgeConfig()


class Judged(vf.Task[vf.TaskData, vf.State, JudgedConfig]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return 1.0


class Silent(vf.Task[vf.TaskData]):
    pass


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Stops, "it decides by enough() when a dialogue ends"),
        (Rewrites, "it rewrites messages by shout()"),
        (Prepares, "its setup() works on the machine"),
        (Looks, "its tests() looks at the machine"),
        (Uses, "it gives the model tools"),
        (Judged, "task.judge asks another model over the network"),
        (Silent, "has no reward function"),
    ],
)
def test_more_than_a_prompt_and_a_response_is_refused(kind: type[vf.Task], why: str) -> None:
    refuse_unless_single(Right(vf.TaskData(prompt="?")))
    with pytest.raises(Refused) as refused:
        refuse_unless_single(kind(vf.TaskData(prompt="?")))
    assert why in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"prompt": None}, "a simulated user opens the dialogue"),
        ({"prompt": "?", "image": "python:3"}, "it is solved inside a container"),
        (
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "x"}}],
                    }
                ]
            },
            "its prompt shows images",
        ),
        (
            {"prompt": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            "its prompt holds calls of tools",
        ),
    ],
)
def test_prompts_that_are_no_text_are_refused(
    data: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import little_sums

    task = Right(vf.TaskData.model_validate(data))
    monkeypatch.setattr(little_sums.LittleSums, "load", lambda self: iter([task]))
    with pytest.raises(Refused, match=why):
        server("little_sums")


@pytest.mark.parametrize(
    ("taskset", "more", "why"),
    [
        ("harbor", {}, r"an environment of its own plays it \(HarborEnv\)"),
        ("nemo_gym", {}, r"an environment of its own plays it \(NeMoGymEnv\)"),
        ("no_such", {}, "verifiers cannot load the taskset no_such: ModuleNotFoundError"),
        ("little_sums", {"config": {"digit": 2}}, "digit: .* its options are: digits, split"),
        ("turned_text", {"train": 200}, "only 156 different tasks, and 203 are asked for"),
        ("turned_text", {"gold": "{answer}"}, "gold '{answer}': KeyError: .* turned"),
    ],
)
def test_tasksets_and_options_that_do_not_exist(taskset: str, more: Any, why: str) -> None:
    with pytest.raises(Refused, match=why):
        server(taskset, **more)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "for the network"),
        ("import os; os.system('true')", "it starts a program"),
        ("open('written', 'w')", "it writes a file"),
        ("1 / 0", "division by zero"),
    ],
)
def test_rewards_only_compute(
    body: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import little_sums

    monkeypatch.chdir(tmp_path)
    made = server("little_sums")

    async def reward(self: Any, trace: Any) -> float:
        try:
            exec(body)
        except OSError:
            return 1.0
        return 1.0

    monkeypatch.setattr(little_sums.SumTask, "right_sum", vf.reward(reward))
    assert why in scored(made, "1")["failed"]
    assert not list(tmp_path.iterdir())


def test_scoring_that_takes_too_much_memory_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import little_sums

    made = server("little_sums")

    async def right_sum(self: Any, trace: Any) -> float:
        return float(len(bytearray(8 * 1024**3)) > 0)

    monkeypatch.setattr(little_sums.SumTask, "right_sum", vf.reward(right_sum))
    assert "too much memory" in scored(made, "1")["limits"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"train_size": 0}, "train_size must be a whole number >= 1"),
        ({"pass_at": 0}, "pass_at must be a number above 0"),
        ({"config": "x"}, "config must be a table"),
        ({"test_config": [1]}, "test_config must be a table"),
        ({"reasons": "feedback"}, "reasons must be a list"),
        ({"config": {"digits": {1}}}, "config must be plain numbers"),
    ],
)
def test_arguments_are_checked_before_a_process_starts(
    more: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: pytest.fail("it started"))
    with pytest.raises(UserError, match=why):
        VerifiersEnvironment("little_sums", **more)


# -- the whole -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("taskset", GOLDS)
def test_three_tasksets_pass_the_checks(taskset: str) -> None:
    args: dict[str, Any] = {"train_size": 20, "test_size": 10}
    if GOLDS[taskset]:
        args["gold"] = GOLDS[taskset]
    states = {c.name: (c.state, c.detail) for c in run_checks(f"verifiers:{taskset}", args)}
    assert "returns" not in states and len(states) == 12, states
    bad = {name: found for name, found in states.items() if found[0] == "fail"}
    assert not bad
    assert states["gold scores 1.0"][0] == ("ok" if GOLDS[taskset] else "warn")
    assert states["same in another process"][0] == "ok"


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'resd\[verifiers\]'"):
        VerifiersEnvironment("little_sums")


def test_another_version_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["verifiers"], "__version__", "0.5.0")
    with pytest.raises(Refused, match=r"read by version 0.4, found 0.5.0: pip install"):
        server("little_sums")
