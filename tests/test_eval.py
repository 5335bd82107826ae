"""`resd eval`: any task on any model, every setting, with and without a playbook; answers kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import Capture, one_line

import resd
from resd.cli import main
from resd.context import Playbook
from resd.errors import UserError
from resd.loop.view import MuteView
from resd.measure import settings_of

LESSON = "the lamp wants its number twice"


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on the noisy world, with a playbook of one lesson."""
    place = tmp_path_factory.mktemp("trained") / "run"
    over = {"train__steps": 1, "evaluation__at_start": False, "rollout__env_mode": "thread"}
    values = tiny.settings(tiny_model, place, task_args__noisy=True, **over)
    run = resd.train(view=MuteView(), **values)
    book = Playbook.parse(f"[err-00001] helpful=1 harmful=0 :: {LESSON}")
    (run.path / "playbook.json").write_text(json.dumps(book.state_dict()))
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def kept(place: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (place / "answers.jsonl").read_text().splitlines()
    return json.loads((place / "result.json").read_text()), [json.loads(line) for line in lines]


def test_answers_are_kept_with_and_without_the_playbook(run: Path, capsys: Capture) -> None:
    words = ["eval", str(run), "--evaluation.max_examples", "3", "--samples", "2"]
    assert main(words) == 0
    assert f"answers: {run}/evaluations/final" in capsys.readouterr().out
    assert main([*words, "--context", "playbook", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    plain, rows = kept(run / "evaluations" / "final")
    told, told_rows = kept(run / "evaluations" / "final-playbook")
    assert printed["answers"] == str(run / "evaluations" / "final-playbook")
    assert (plain["context"], told["context"]) == ("none", "playbook")
    assert plain["task"] == f"{tiny.__file__}:TinyWorld"
    assert [(row["example"], row["sample"]) for row in rows] == [
        (f"test-{i}", sample) for i in range(3) for sample in range(2)
    ]
    assert plain["eval/mean@2"] == pytest.approx(sum(row["passed"] for row in rows) / 6)
    for row, other in zip(rows, told_rows, strict=True):
        assert row["seed"] == other["seed"]  # both answer with the same luck
        assert LESSON not in str(row["prompt"])
        assert LESSON in other["prompt"][-1]["content"]
        assert row["prompt"][-1]["content"] in other["prompt"][-1]["content"]
        assert "feedback" in row and other["prompt_tokens"] > row["prompt_tokens"]
    assert [row["response"] for row in rows] != [row["response"] for row in told_rows]
    # Once more does not write over it.
    assert main(words) == 0
    _, same = kept(run / "evaluations" / "final-2")
    assert [row["response"] for row in same] == [row["response"] for row in rows]


def test_another_task_takes_nothing_of_the_run_s_own(run: Path, tmp_path: Path) -> None:
    task = f"{Path(__file__).parent / 'test_eval.py'}:Other"
    words = ["eval", str(run), "--task", task, "--output", str(tmp_path / "out")]
    words += ["--rollout.env_mode", "thread", "--evaluation.temperature", "0.1", "--seed", "5"]
    assert main([*words, "--task_args.word", "fan"]) == 0
    result, rows = kept(tmp_path / "out")
    assert {row["prompt"][0]["content"] for row in rows} == {"say fan"}
    settings = (tmp_path / "out" / "settings.toml").read_text()
    assert "noisy" not in settings and "seed = 5" in settings and "temperature = 0.1" in settings
    assert 'env_mode = "thread"' in settings
    assert (result["which"], result["task"]) == ("final", task)
    # Where responses are evaluated is of the run's task alone.
    assert settings_of(str(run)).rollout.env_mode == "thread"
    assert settings_of(str(run), named=[("task", task)]).rollout.env_mode == "process"


class Other:
    """A world that knows none of the run's arguments."""

    def __init__(self, word: str) -> None:
        self.word = word

    def examples(self, split: str) -> list[resd.Example]:
        return [resd.Example(split, [{"role": "user", "content": f"say {self.word}"}])]

    def evaluate(self, example: resd.Example, response: str) -> resd.Outcome:
        passed = self.word in response
        return resd.Outcome(float(passed), passed, "" if passed else "another word")


def test_a_model_alone_is_shown_the_playbook_of_a_run(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = Other("lamp")
    result = resd.evaluate(tiny_model, task, context="playbook", playbook=run, samples=3)
    assert len(result.rows) == result.samples == 3
    assert LESSON in result.rows[0]["prompt"][-1]["content"]
    # A gate of the room: an answer may take half of the context at most, unless it is said.
    assert not (tmp_path / "runs").exists()
    words = ["eval", str(tiny_model), "--task", f"{tiny.__file__}:TinyWorld", "--samples", "1"]
    words += ["--rollout.max_new_tokens", "3", "--rollout.env_mode", "thread"]
    assert main([*words, "--context", "playbook", "--playbook", str(run / "playbook.json")]) == 0
    _, rows = kept(tmp_path / "runs" / f"eval-{tiny_model.name}-playbook")
    assert max(row["tokens"] for row in rows) <= 3


def test_a_file_stands_in_place_of_the_run_s_settings(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        f'task = "{tiny.__file__}:TinyWorld"\n[method]\nname = "resd"\nreflection_tokens = 8\n'
        'curation_tokens = 8\n[rollout]\nmax_new_tokens = 5\nenv_mode = "thread"\n'
        "[evaluation]\nsamples = 1\nmax_examples = 2\n"
    )
    result = resd.evaluate(str(run), config=file)
    assert (result.samples, result.problems) == (1, 2)
    assert max(row["tokens"] for row in result.rows) <= 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--playbook", "RUN"], "a playbook is shown with context playbook only"),
        (["--context", "playbok"], "unknown --context 'playbok'; did you mean playbook?"),
        (["--context", "playbook", "--playbook", "/nowhere"], "there is no playbook /nowhere"),
        (["--context", "playbook", "--playbook", __file__], "is no playbook that a run has"),
        (
            ["--evaluation.sampls", "2"],
            "key evaluation.sampls in RUN/config.toml or on the",
        ),
        (["--task", "chess"], "unknown task 'chess'"),
        (["--which", "best", "--evaluation.samples", "0"], "evaluation.samples in RUN"),
        (["--config", "nowhere.toml"], "config file nowhere.toml does not exist"),
        (["--output", f"{__file__}/out"], "output: cannot make directory"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = [str(run) if word == "RUN" else word for word in words]
    assert main(["eval", str(run), *given]) == 2
    assert said.replace("RUN", str(run)) in one_line(capsys)
    assert not (run / "evaluations").exists()


def test_an_evaluation_that_fails_leaves_no_directory(run: Path, tmp_path: Path) -> None:
    class Broken(Other):
        def baselines(self) -> Any:
            raise ValueError("no strategy")

    with pytest.raises(UserError, match="no strategy"):
        resd.evaluate(run, Broken("fan"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_playbook_without_an_admitted_lesson(run: Path) -> None:
    (run / "playbook.json").write_text(json.dumps(Playbook().state_dict()))
    with pytest.raises(UserError, match="no lesson was admitted"):
        resd.evaluate(run, context="playbook")
    with pytest.raises(UserError, match="context must be none or playbook, found 'lessons'"):
        resd.evaluate(run, context="lessons")  # type: ignore[arg-type]
