"""What a user can get wrong: one line that says what and where, and exit code 2.

Nothing is loaded and nothing left behind; or, where a run can go on, a skip that is counted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from resd.cli import main
from resd.engines import Completion, HFEngine
from resd.runs import read_metrics

Words = Callable[..., list[str]]
Capture = pytest.CaptureFixture[str]

GOOD = """
import math, sys
from resd import Example, Outcome

class Env:
    def examples(self, split):
        return [self.example(split, i) for i in range(4)]
    def example(self, split, i):
        return Example(f"{split}-{i}", [{"role": "user", "content": f"set lamp {i}"}])
    def evaluate(self, example, response):
        return Outcome(reward=0.0, passed=False, feedback="no")
"""


def one_line(capsys: Capture) -> str:
    """The only line on stderr."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    assert error.startswith("resd: ")
    return error.strip()


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be loaded."""

    def load(config: Any) -> None:
        raise AssertionError("a model was loaded before the refusal")

    monkeypatch.setattr("resd.loop.trainer.load_model", load)


@pytest.fixture
def refused(
    nothing_loads: None, train_words: Words, tmp_path: Path, capsys: Capture
) -> Callable[..., str]:
    """Run `resd train` that must be refused; returns the line."""

    def run(*extra: str, words: list[str] | None = None, **over: Any) -> str:
        given = train_words(**over) if words is None else words
        assert main([*given, *extra]) == 2
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs").exists()
        return one_line(capsys)

    return run


@pytest.fixture
def env(tmp_path: Path) -> Callable[[str], str]:
    """A task file: the good environment, and then what makes it bad."""

    def write(bad: str, name: str = "env.py") -> str:
        (tmp_path / name).write_text(GOOD + bad)
        return f"{tmp_path / name}:Env"

    return write


def method(name: str, body: str) -> str:
    """A subclass of the good environment with one other method."""
    heads = {
        "__init__": "(self)",
        "examples": "(self, split)",
        "evaluate": "(self, example, response)",
        "example": "(self, split, i)",
    }
    return f"\nclass Env(Env):\n    def {name}{heads[name]}:\n        {body}\n"


# -- settings -------------------------------------------------------------------------------------

TOML = {
    "not TOML": ("[train\nlr = 1", ["config.toml is not valid TOML", "line 1"]),
    "unknown table": ("[trian]\nlr = 1", ["unknown key trian", "train"]),
    "unknown key": ("[train]\nlearning_rate = 1", ["unknown key train.learning_rate", "lr"]),
    "unknown key deep down": (
        "[method.playbook]\nsize = 3",
        ["unknown key method.playbook.size", "max_entries"],
    ),
    "key of another method": (
        '[method]\nname = "grpo"\nalpha = 0.5',
        ["unknown key method.alpha", "clip_low"],
    ),
    "unknown method": ('[method]\nname = "ppo"', ["unknown method 'ppo'", "resd, sdpo"]),
    "method as text": ('method = "grpo"', ["--method.name grpo"]),
    "unknown preset": ('preset = "huge"', ["no preset 'huge'", "lab"]),
    "unknown task": ('task = "chess"', ["unknown task 'chess'", "path/to/file.py:Class"]),
    "NaN": ("[train]\nlr = nan", ["train.lr", "finite"]),
    "infinity": ("[method]\nratio_max = inf", ["method.ratio_max", "finite"]),
    "text for a number": ('[train]\nsteps = "many"', ["train.steps", "'many'"]),
    "no steps": ("[train]\nsteps = 0", ["train.steps", "greater than or equal to 1"]),
    "no batch": ("[train]\nbatch_size = 0", ["train.batch_size"]),
    "negative seed": ("seed = -1", ["seed", "-1"]),
    "seed too large": ("seed = 9223372036854775808", ["seed"]),
    "rate without measure": ("[train]\nlr = 1e9", ["train.lr", "less than or equal"]),
    "negative rate": ("[train]\nlr = -1e-3", ["train.lr"]),
    "no samples": ("[evaluation]\nsamples = 0", ["evaluation.samples"]),
    "no temperature": ("[rollout]\ntemperature = 0", ["rollout.temperature"]),
    "top-p above 1": ("[rollout]\ntop_p = 1.5", ["rollout.top_p"]),
    "alpha above 1": ("[method]\nalpha = 2", ["method.alpha"]),
    "negative exponents": ("[method]\nsuccess_weights = [-1, 1]", ["method.success_weights"]),
    "crossed ratios": ("[method]\nratio_min = 3\nratio_max = 2", ["ratio_min 3.0 is above"]),
    "EMA rate of zero": ("[method.teacher]\nrate = 0", ["method.teacher.rate"]),
    "unknown device": ('[model]\ndevice = "abacus"', ["model.device", "abacus"]),
    "unknown tracker": ('trackers = ["paper"]', ["trackers"]),
    "a tracker that is not installed": ('trackers = ["trackio"]', ["trackio is not installed"]),
    "no place for a prompt": (
        "[rollout]\nmax_new_tokens = 1020",
        ["rollout.max_new_tokens 1020", "1024"],
    ),
    "no place for a reflection's prompt": (
        "[method]\nreflection_tokens = 1020",
        ["method.reflection_tokens", "1024"],
    ),
    "unknown argument of the task": ("[task_args]\nsize = 3", ["task_args", "size", "noisy"]),
    "no template directory": ('templates = "/nowhere"', ["templates", "/nowhere"]),
}


@pytest.mark.parametrize("name", TOML)
def test_settings_in_a_file(
    name: str, refused: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    text, wanted = TOML[name]
    values = tiny.settings(tiny_model, tmp_path / "run")
    keep = {"task", "model.path", "output", "rollout.max_new_tokens", "method.reflection_tokens"}
    keep = {key for key in keep if f"{key.rpartition('.')[2]} =" not in text}
    (tmp_path / "config.toml").write_text(text)
    rest = {key: value for key, value in values.items() if key in keep}
    if 'name = "' in text or text.startswith("method"):
        rest = {key: value for key, value in rest.items() if not key.startswith("method")}
    line = refused(words=["train", str(tmp_path / "config.toml"), *tiny.arguments(rest)])
    for word in wanted:
        assert word in line


COMMAND = {
    "two files": (["a.toml", "b.toml"], ["two config files"]),
    "no such file": (["nowhere.toml"], ["nowhere.toml does not exist"]),
    "a directory": (["."], ["cannot be read"]),
    "no value": (["--train.lr"], ["--train.lr needs a value"]),
    "a value that is a key": (["--train.lr", "--seed", "3"], ["--train.lr needs a value"]),
    "a value on the way": (["--seed", "3", "--seed.x", "4"], ["--seed.x", "seed is a value"]),
    "an empty key": (["--=3"], ["unknown key"]),
    "a method": (["--method", "grpo"], ["--method.name grpo"]),
    "a number for a method": (["--method", "3"], ["method"]),
    "an unknown key": (["--train.learning-rate", "3"], ["unknown key train.learning_rate"]),
    "NaN": (["--train.lr", "NaN"], ["train.lr", "finite"]),
}


@pytest.mark.parametrize("name", COMMAND)
def test_words_of_the_command_line(
    name: str, nothing_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    words, wanted = COMMAND[name]
    assert main(["train", *words]) == 2
    line = one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    for word in wanted:
        assert word in line


def test_a_file_that_is_no_text(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "c.toml cannot be read" in refused(words=["train", str(tmp_path / "c.toml")])


def test_a_task_of_ones_own_without_a_model(
    refused: Callable[..., str], env: Callable[[str], str]
) -> None:
    assert "model.path is not set" in refused(words=["train", "--task", env("")])


# -- models ---------------------------------------------------------------------------------------


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop_end_token(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (model / "tokenizer_config.json").write_text(json.dumps(config))


MODELS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no tokenizer": (
        lambda m: [f.unlink() for f in m.glob("tokenizer*")],
        ["no tokenizer", "save_pretrained"],
    ),
    "damaged tokenizer": (lambda m: (m / "tokenizer.json").write_text("{"), ["no tokenizer in"]),
    "no chat template": (lambda m: (m / "chat_template.jinja").unlink(), ["no chat template"]),
    "broken chat template": (
        lambda m: (m / "chat_template.jinja").write_text("{% for"),
        ["chat template", "fails"],
    ),
    "chat template that refuses": (
        lambda m: (m / "chat_template.jinja").write_text("{{ raise_exception('no users') }}"),
        ["chat template", "no users"],
    ),
    "chat template that says nothing": (
        lambda m: (m / "chat_template.jinja").write_text("{# nothing #}"),
        ["chat template", "makes nothing"],
    ),
    "no end token": (drop_end_token, ["end token"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["no weights"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["no config.json"]),
    "damaged config": (lambda m: (m / "config.json").write_text("{"), ["model.path"]),
    "config of an unknown kind": (
        lambda m: rewrite(m / "config.json", model_type="abacus"),
        ["model.path"],
    ),
    "tokenizer of another model": (
        lambda m: rewrite(m / "config.json", vocab_size=20),
        ["does not belong to the model"],
    ),
}


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_directory(name: str, refused: Callable[..., str], model_copy: Path) -> None:
    spoil, wanted = MODELS[name]
    spoil(model_copy)
    line = refused(model__path=str(model_copy))
    assert "model.path" in line
    for word in wanted:
        assert word in line


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_model_directory_that_is_not_there(path: str, refused: Callable[..., str]) -> None:
    assert f"no model directory {path}" in refused(model__path=path)


def test_a_hub_id_that_cannot_be_had(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "model.path: no tokenizer in nobody/nothing" in refused(model__path="nobody/nothing")


WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:2000]),
    "garbage": lambda file: file.write_bytes(b"garbage" * 999),
    "of another shape": lambda file: rewrite(file.with_name("config.json"), hidden_size=64),
    "without a layer": lambda file: rewrite(
        file.with_name("config.json"), num_hidden_layers=2, layer_types=["full_attention"] * 2
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_load(
    name: str, train_words: Words, model_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Only loading shows it: still one line, and no directory that is in the way next time."""
    WEIGHTS[name](model_copy / "model.safetensors")
    assert main(train_words(model__path=str(model_copy))) == 2
    assert f"model.path: {model_copy} cannot be loaded" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_adapters_that_do_not_fit(train_words: Words, tmp_path: Path, capsys: Capture) -> None:
    assert main(train_words(model__lora__target_modules=["nowhere"])) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("resd: model.lora does not fit the model")
    assert not (tmp_path / "run").exists()


# -- templates ------------------------------------------------------------------------------------

TEMPLATES = {
    "does not parse": ("teacher.jinja", b"{% if %}", ["teacher.jinja", "line 1"]),
    "unknown variable": ("reflect.jinja", b"{{ qestion }}", ["reflect.jinja", "qestion"]),
    "no text": ("curate.jinja", b"\xff\xfe\xff", ["templates"]),
    "divides by zero": ("review.jinja", b"{{ 1 / 0 }}", ["templates", "ZeroDivisionError"]),
    "needs a playbook": (
        "teacher.jinja",
        b"{{ question }} {{ playbook[0].content }}",
        ["teacher.jinja"],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    file, content, wanted = TEMPLATES[name]
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / file).write_bytes(content)
    line = refused(templates=str(tmp_path / "templates"))
    for word in wanted:
        assert word in line


# -- task files -----------------------------------------------------------------------------------


def outcome(arguments: str) -> str:
    return method("evaluate", f"return Outcome({arguments})")


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


# -- what goes wrong while a run runs -------------------------------------------------------------


def trained(words: list[str], run: Path) -> dict[str, float]:
    """Run to the end; the sums of all counts."""
    assert main(words) == 0
    counts: dict[str, float] = {}
    for row in read_metrics(run):
        for key, value in row.items():
            if key.startswith("count/"):
                counts[key] = counts.get(key, 0) + value
    assert (run / "done.json").is_file()
    return counts


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("raise ValueError('at times')", "env_raised"),
        ("sys.exit(1)", "env_raised"),
        ("return None", "env_wrong_type"),
        ("return Outcome(math.nan, False)", "reward_not_finite"),
        ("return Outcome(0.0, False, cases=1, cases_passed=2)", "env_wrong_type"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_environment_that_fails_at_times_is_counted(
    bad: str,
    reason: str,
    workers: int,
    train_words: Words,
    env: Callable[[str], str],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    task = env(
        method(
            "evaluate",
            f"if example.id in ('train-1', 'test-2') and response: {bad}\n"
            "        return super().evaluate(example, response)",
        )
    )
    words = train_words(task=task, train__steps=2, rollout__env_workers=workers)
    counts = trained(words, tmp_path / "run")
    error = capsys.readouterr().err
    assert counts[f"count/{reason}"] == 2
    assert f"warning: step 1: {reason}" in error
    assert "Traceback" not in error
    rows = [row for row in read_metrics(tmp_path / "run") if "eval/env_failed" in row]
    assert {row["eval/env_failed"] for row in rows} == {2}  # one of four problems, two samples


@pytest.mark.parametrize("when", ["rollout", "evaluation"])
def test_an_environment_that_fails_on_everything_stops_the_run_and_it_can_go_on(
    when: str, train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    split = {"rollout": "train", "evaluation": "test"}[when]
    task = env(
        method(
            "evaluate",
            f"import pathlib\n        if example.id.startswith('{split}') and response and "
            f"pathlib.Path({str(tmp_path / 'down')!r}).exists(): raise OSError('server down')\n"
            "        return super().evaluate(example, response)",
        )
    )
    whole = train_words(output=tmp_path / "whole", task=task, train__steps=2)
    assert main(whole) == 0
    (tmp_path / "down").touch()
    capsys.readouterr()
    run = tmp_path / "run"
    assert main(train_words(task=task, train__steps=2)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert "the environment failed on every response" in last
    assert "server down" in last
    assert f"--resume {run}" in last
    (tmp_path / "down").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    for name in ("final/model.safetensors", "playbook.json", "done.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupt_is_said_and_the_run_can_go_on(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(self: Any, batch: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resd.loop.trainer.Trainer._one_step", interrupted)
        assert main(train_words(train__steps=1)) == 130
    assert "--resume" in one_line(capsys)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_numbers_of_other_libraries_are_numbers(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    body = (
        "import numpy as np, torch\n        return Outcome(np.float32(0.5), np.bool_(False), 'no', "
        "np.int64(1), torch.tensor(2), {'a': np.float16(1), 'b': torch.tensor(2.0)})"
    )
    counts = trained(
        train_words(task=env(method("evaluate", body)), train__steps=1), tmp_path / "run"
    )
    assert not [key for key in counts if "env" in key or "reward" in key]
    row = next(row for row in read_metrics(tmp_path / "run") if "rollout/reward" in row)
    assert (row["rollout/reward"], row["rollout/cases"]) == (0.5, 0.5)
    assert (row["env/a"], row["env/b"]) == (1.0, 2.0)


def test_a_metric_that_is_not_finite_is_left_out_and_counted(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    task = env(outcome("0.0, False, 'no', metrics={'bad': math.nan, 'good': 1}"))
    counts = trained(train_words(task=task, train__steps=1), tmp_path / "run")
    assert counts["count/metric_not_finite"] == 4
    row = next(row for row in read_metrics(tmp_path / "run") if "rollout/reward" in row)
    assert row["env/good"] == 1.0
    assert "env/bad" not in row


@pytest.mark.parametrize("body", ["raise ValueError('x')", "return None", "return {'a': 'b'}"])
def test_a_playbook_score_that_fails_is_a_warning(
    body: str, train_words: Words, env: Callable[[str], str], tmp_path: Path, capsys: Capture
) -> None:
    task = env(f"\nclass Env(Env):\n    def score_playbook(self, contents):\n        {body}\n")
    trained(train_words(task=task, train__steps=1), tmp_path / "run")
    assert "score_playbook failed" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_is_skipped_and_counted(
    train_words: Words, env: Callable[[str], str], tmp_path: Path
) -> None:
    long = "'x ' * 3000 if i == 1 else 'y'"
    task = env(
        method("example", f"return Example(f'{{i}}', [{{'role': 'user', 'content': {long}}}])")
    )
    run = tmp_path / "run"
    assert trained(train_words(task=task), run)["count/prompt_too_long"] == 4  # once a step
    rows = [row for row in read_metrics(run) if "eval/skipped" in row]
    assert {(row["eval/skipped"], row["eval/problems"]) for row in rows} == {(1, 3)}


@pytest.mark.parametrize("name", ["resd", "sdpo", "sdpo_ss", "grpo"])
@pytest.mark.parametrize("ids", [(), (1,)])
def test_empty_responses(
    ids: tuple[int, ...],
    name: str,
    train_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that ends at once, with the end token or (another engine) without any."""
    monkeypatch.setattr(
        HFEngine,
        "generate",
        lambda self, requests: [Completion(ids, "", "stop")] * len(requests),
    )
    counts = trained(train_words(name), tmp_path / "run")
    expected = "count/nothing_to_say" if name == "grpo" else "count/empty_response"
    assert bool(counts.get(expected)) == (not ids or name == "grpo")


def test_a_model_without_finite_probabilities(
    train_words: Words, model_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    from safetensors.torch import load_file, save_file

    file = model_copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, file, {"format": "pt"})
    assert main(train_words(model__path=str(model_copy))) == 2
    line = one_line(capsys)
    assert "no finite probabilities" in line
    assert "train.lr" in line


# -- the other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["eval", "/nowhere"], "no model directory /nowhere"),
        (["eval", "MODEL", "--samples", "0"], "--samples must be at least 1"),
        (["eval", "MODEL", "--seed", "-1"], "--seed must be at least 0"),
        (["eval", "MODEL", "--task", "chess"], "unknown task 'chess'"),
        (["playbook", "show", "/nowhere"], "no run directory /nowhere"),
        (["playbook", "show", "MODEL"], "no config.toml"),
    ],
)
def test_other_commands(words: list[str], wanted: str, tiny_model: Path, capsys: Capture) -> None:
    assert main([str(tiny_model) if word == "MODEL" else word for word in words]) == 2
    assert wanted in one_line(capsys)


def test_an_evaluation_says_when_the_environment_fails(
    env: Callable[[str], str], tiny_model: Path, capsys: Capture
) -> None:
    task = env(
        method("evaluate", "return super().evaluate(example, response) if not response else 1")
    )
    assert main(["eval", str(tiny_model), "--task", task, "--samples", "1"]) == 0
    assert "failed on 4 responses" in capsys.readouterr().err


def test_a_playbook_of_a_method_that_keeps_none(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    assert main(train_words("sdpo", train__steps=1)) == 0
    capsys.readouterr()
    assert main(["playbook", "show", str(tmp_path / "run")]) == 2
    assert "no playbook" in one_line(capsys)
