"""What a user can get wrong in a task file: one line that says what and where, and exit code 2.

Nothing is loaded and nothing left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import method, outcome

TASKS = {
    "syntax error": ("\nclass Env(:\n", ["SyntaxError", "line 13"]),
    "raises at import": ("\nraise RuntimeError('no data')", ["RuntimeError: no data", "line 13"]),
    "exits at import": ("\nsys.exit('bye')", ["SystemExit: bye"]),
    "imports what is not there": ("\nimport nowhere", ["ModuleNotFoundError"]),
    "an error without text": ("\nclass E(Exception):\n    __str__ = None\nraise E", ["E ("]),
    "no such class": ("\ndel Env\nclass Other: ...", ["no class Env", "Other"]),
    "a function": ("\ndef Env(): ...", ["no class Env"]),
    "raises in __init__": (
        method("__init__", "raise KeyError('path')"),
        ["Env() failed", "'path'"],
    ),
    "exits in __init__": (method("__init__", "sys.exit(3)"), ["SystemExit: 3"]),
    "no examples": ("\ndel Env.examples", ["no method examples"]),
    "no evaluate": ("\ndel Env.evaluate", ["no method evaluate"]),
    "examples raise": (method("examples", "raise OSError('gone')"), ["examples('train')", "gone"]),
    "examples exit": (method("examples", "sys.exit(1)"), ["examples('train')", "SystemExit"]),
    "examples are none": (method("examples", "return []"), ["returned no example"]),
    "examples are None": (method("examples", "return None"), ["examples('train') failed"]),
    "no test examples": (
        method("examples", "return super().examples(split) if split == 'train' else []"),
        ["examples('test') returned no example"],
    ),
    "an example is a dict": (method("example", "return {'id': 'a'}"), ["[0]", "found dict"]),
    "an id is a number": (method("example", "return Example(i, [])"), ["id must be", "found 0"]),
    "a prompt is text": (method("example", "return Example(f'{i}', 'hi')"), ["prompt must be"]),
    "a prompt is empty": (method("example", "return Example(f'{i}', [])"), ["prompt must be"]),
    "a message is text": (
        method("example", "return Example(f'{i}', ['hi'])"),
        ["chat message must be"],
    ),
    "a message without content": (
        method("example", "return Example(f'{i}', [{'role': 'user', 'content': None}])"),
        ["chat message must be"],
    ),
    "an unknown role": (
        method("example", "return Example(f'{i}', [{'role': 'boss', 'content': 'x'}])"),
        ["role must be one of system, user, assistant", "'boss'"],
    ),
    "the assistant has the last word": (
        method("example", "return Example(f'{i}', [{'role': 'assistant', 'content': 'x'}])"),
        ["last message"],
    ),
    "half a character": (
        method("example", "return Example(f'{i}', [{'role': 'user', 'content': chr(0xD800)}])"),
        ["half a character"],
    ),
    "an id twice": (
        method("example", "return Example('a', [{'role': 'user', 'content': 'x'}])"),
        ["examples('train')[1]", "id 'a' stands twice"],
    ),
    "prompts that are too long": (
        method("example", "return Example(f'{i}', [{'role': 'user', 'content': 'x ' * 3000}])"),
        ["train prompts are longer than", "rollout.max_prompt_tokens"],
    ),
    "test prompts that are too long": (
        method(
            "example",
            "n = 3000 * (split == 'test')\n"
            "        return Example(f'{i}', [{'role': 'user', 'content': 'x ' * n}])",
        ),
        ["test prompts are longer than"],
    ),
    "templates are a number": ("\nEnv.templates = 3", ["templates must be a directory", "3"]),
    "no such templates": ("\nEnv.templates = '/nowhere'", ["templates", "/nowhere"]),
    "evaluate raises": (
        method("evaluate", "raise ValueError('two\\nlines')"),
        ["evaluate() failed on an empty response", "ValueError: two lines", "line 15"],
    ),
    "evaluate exits": (method("evaluate", "sys.exit(0)"), ["SystemExit: 0"]),
    "evaluate takes too little": (
        "\nclass Env(Env):\n    def evaluate(self): ...",
        ["takes 1 positional argument"],
    ),
    "evaluate returns None": (method("evaluate", "pass"), ["Outcome, found NoneType"]),
    "evaluate returns a dict": (method("evaluate", "return {}"), ["Outcome, found dict"]),
    "evaluate is asynchronous": (
        "\nclass Env(Env):\n    async def evaluate(self, example, response): ...",
        ["Outcome, found coroutine"],
    ),
    "reward is NaN": (outcome("math.nan, False"), ["reward_not_finite", "nan"]),
    "reward is infinite": (outcome("math.inf, True"), ["reward_not_finite", "inf"]),
    "reward is text": (outcome("'1', True"), ["reward must be a number"]),
    "reward is None": (outcome("None, True"), ["reward must be a number"]),
    "passed is text": (outcome("1.0, 'yes'"), ["passed must be True or False"]),
    "no cases": (outcome("0.0, False, cases=0"), ["cases must be an integer >= 1"]),
    "cases are text": (outcome("0.0, False, cases='3'"), ["cases must be"]),
    "more cases passed than there are": (
        outcome("0.0, False, cases=2, cases_passed=3"),
        ["from 0 to cases = 2", "found 3"],
    ),
    "negative cases passed": (outcome("0.0, False, cases_passed=-1"), ["found -1"]),
    "cases passed are text": (outcome("0.0, False, cases_passed='1'"), ["found '1'"]),
    "feedback is a list": (outcome("0.0, False, ['no']"), ["feedback must be a string"]),
    "feedback is None": (outcome("0.0, False, None"), ["feedback must be a string"]),
    "metrics are a list": (outcome("0.0, False, metrics=[1]"), ["metrics must be a dict"]),
    "a metric is text": (outcome("0.0, False, metrics={'a': 'b'}"), ["metrics must map"]),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_file(name: str, refused: Callable[..., str], env: Callable[[str], str]) -> None:
    bad, wanted = TASKS[name]
    line = refused(task=env(bad))
    assert "task" in line or "templates" in line
    for word in wanted:
        assert word in line


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("nowhere.py:Env", "nowhere.py does not exist"),
        ("nowhere.module:Env", "task module nowhere.module cannot be imported"),
        ("json:Env", "no class Env in json"),
        ("env.py", "unknown task 'env.py'"),
        (":Env", "unknown task ':Env'"),
    ],
)
def test_a_task_that_is_not_there(task: str, wanted: str, refused: Callable[..., str]) -> None:
    assert wanted in refused(task=task)


def test_a_module_that_exits(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "SystemExit: 0" in refused(task="exiting_module:Env")
