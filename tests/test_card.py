"""What lies beside a trained model: its card, and the sampling that was evaluated."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import ModelCard

from resd.cli import main
from resd.cli.main import _split
from resd.config import RunConfig, load_config
from resd.config.paths import anchored
from resd.interval import wilson
from resd.runs import RunDirectory, base_model, read_metrics
from resd.runs.remake import remake_command
from resd.runs.warnings import read_warnings

Make = Callable[..., tuple[RunDirectory, RunConfig]]
FENCED = "[misc-00001] helpful=2 harmful=0 :: write ``` around it"


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    def make(method: str = "resd", **over: Any) -> tuple[RunDirectory, RunConfig]:
        values = tiny.settings(tiny_model, tmp_path / "run", method, **over)
        config = anchored(load_config(None, list(values.items())), Path.cwd())
        return RunDirectory.create(tmp_path / "run", config), config

    return make


def save(run: RunDirectory, best: int = 2) -> tuple[ModelCard, ModelCard]:
    """Cards of the final model and of the best."""

    def fill(place: Path) -> None:
        (place / "generation_config.json").write_text('{"eos_token_id": 1}')

    run.save_evaluated(best, [best], fill)
    run.save_final(fill)
    run.finish(best, {"best_step": best})
    final, best_card = (ModelCard.load(run.path / name / "README.md") for name in ("final", "best"))
    return final, best_card


def evaluation(step: int, mean: float, **more: float) -> dict[str, float]:
    names = ("mean", "best", "case_mean", "case_best")
    return {"step": step, **{f"eval/{n}@2": mean for n in names}, "eval/problems": 50, **more}


def test_the_card_says_what_was_measured(make: Make) -> None:
    run, _ = make()
    run.log(evaluation(0, 0.1))
    run.log({"step": 4, "rollout/passed": 0.5})
    run.log(evaluation(2, 0.8, **{"eval/retention/skills": 0.75, "baseline/uniform": 0.25}))
    run.log(evaluation(4, 0.5))
    final, best = save(run)
    for card, mean in ((final, 0.5), (best, 0.8)):
        low, high = wilson(mean * 50, 50)
        start, end = wilson(5, 50)
        row = f"| mean@2 | 0.100 [{start:.3f}, {end:.3f}] | {mean:.3f} [{low:.3f}, {high:.3f}] |"
        assert row in card.text
        assert "Wilson's 95 % interval over the 50 test examples" in card.text
        assert card.data.to_dict() == {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["resd"],
        }
    assert "after step 2, the best of the evaluated ones" in best.text
    assert "after step 4, the last" in final.text
    assert "| retention/skills |  | 0.750 |" in best.text
    assert "Trivial strategies solve, of the same examples: uniform 0.250" in best.text
    assert "temperature 0.6, top-p 0.95, at most 12 tokens" in best.text
    assert re.search(r"resd \d\S*, torch ", best.text)
    assert str(run.path.parent) not in best.text + final.text


def test_the_playbook_is_that_of_the_step_and_stays_text(make: Make) -> None:
    from resd.context import Playbook

    run, config = make()
    run.log(evaluation(2, 0.8))
    run.log({"step": 4, "rollout/passed": 0.5})
    early, late = Playbook.parse(FENCED), Playbook.parse(FENCED.replace("write", "never write"))
    candidate = Playbook.parse("[misc-00002] helpful=0 harmful=0 :: said once")
    early.entries |= {id_: replace(e, admitted=False) for id_, e in candidate.entries.items()}
    run.trace("step", 2, [{"kind": "playbook", **early.state_dict()}])
    run.save_artifacts({"playbook.json": json.dumps(late.state_dict())})
    final, best = save(run)
    assert f"````text\n{FENCED}\n````" in best.text
    assert "after step 2, written by the model" in best.text
    assert "at the end of the run, written by the model" in final.text
    assert "never write" in final.text
    assert "said once" not in best.text
    other = RunDirectory.create_numbered(run.path, config)
    assert "It was empty after step 0." in save(other, 0)[1].text


def test_the_sampling_that_was_evaluated_lies_beside_the_weights(
    make: Make, tiny_model: Path
) -> None:
    from transformers import GenerationConfig

    run, _ = make(evaluation__temperature=0.3, evaluation__top_p=0.8)
    save(run)
    for name in ("best", "final"):
        found = GenerationConfig.from_pretrained(run.path / name)
        assert (found.do_sample, found.temperature, found.top_p) == (True, 0.3, 0.8)
        assert (found.top_k, found.max_new_tokens, found.eos_token_id) == (0, 12, 1)
        found.validate(strict=True)


def test_a_card_that_cannot_be_written_ends_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise PermissionError("no licence may be read")

    run, _ = make()
    monkeypatch.setattr("resd.runs.card.card_text", fail)
    run.save_final(lambda place: None)
    assert (run.path / "final").is_dir()
    assert read_warnings(run.path) == [
        (0, "no model card: PermissionError: no licence may be read")
    ]


STREAM = [{"name": "a", "task_args": {"dialect": 1}}, {"name": "b", "task": "skills", "steps": 3}]


@pytest.mark.parametrize(
    "named",
    [
        {"preset": "none", "model.path": "lab", "task_args": {"dialect": "birch", "n": "7"}},
        {"preset": "lab", "method.name": "grpo", "train.steps": 9, "seed": 3},
        {"preset": "lab", "method.anchors.weight": 2.0, "method.top_k": None},
        {"task": "org.module:Task", "model.path": "org/name", "model.lora.rank": 4},
        {"preset": "none", "model.path": "lab", "method.success_weights": [1.0, 0.5]},
        {"preset": "lab", "stream": STREAM},
        {"preset": "manufactoria-paper-lora", "engine.kind": "vllm", "model.lora": None},
    ],
)
def test_one_command_makes_the_run_again(named: dict[str, Any]) -> None:
    config = load_config(None, list(named.items()))
    command = shlex.split(remake_command(config))
    assert command[:2] == ["resd", "train"]
    words = _split(command[2:])
    assert words.file is None
    again = load_config(None, words.overrides)
    assert again.model_dump() == config.model_dump()


def test_the_command_names_no_place(make: Make, tiny_model: Path) -> None:
    _, config = make()
    command = remake_command(config)
    assert "--task tiny.py:TinyWorld" in command
    assert f"--model.path {tiny_model.name}" in command
    assert "/" not in command


@pytest.mark.parametrize(
    ("files", "hub_id", "licence"),
    [
        ({}, None, None),
        ({"LICENSE": "                  Apache License\n   Version 2.0"}, None, "apache-2.0"),
        ({"LICENSE.txt": "MIT License\n\nCopyright"}, None, "mit"),
        ({"LICENCE": "All rights reserved"}, None, "other"),
        ({"config.json": '{"license": "gemma"}'}, None, "gemma"),
        (
            {"README.md": "---\nlicense: llama3\nbase_model: org/name\n---\n# x", "LICENSE": "MIT"},
            "org/name",
            "llama3",
        ),
        ({"README.md": "---\nlicense: [\n---\n", "config.json": "[]"}, None, None),
    ],
)
def test_the_licence_is_what_the_files_say(
    files: dict[str, str], hub_id: str | None, licence: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = base_model.look_at(str(tmp_path))
    assert (found.hub_id, found.licence) == (hub_id, licence)
    assert (licence or "No file of") in found.said


def test_the_card_names_base_and_licence(make: Make, model_copy: Path) -> None:
    head = "---\nlicense: mit\nbase_model: org/name\n---\n"
    (model_copy / "README.md").write_text(head)
    run, _ = make(model__path=str(model_copy), model__lora__rank=2)
    final, _ = save(run)
    data = final.data.to_dict()
    assert (data["license"], data["base_model"]) == ("mit", "org/name")
    assert (data["base_model_relation"], data["tags"]) == ("finetune", ["resd", "lora"])
    assert "name mit for the base" in final.text


def test_models_by_name() -> None:
    assert base_model.look_at("lab").licence == "apache-2.0"
    assert base_model.look_at("smol").hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    unknown = base_model.look_at("owner/never-loaded")
    assert (unknown.hub_id, unknown.licence) == ("owner/never-loaded", None)


def test_what_a_real_runs_card_says_works(train_words: Any, tmp_path: Path) -> None:
    """Its numbers are those of the run, and its code loads the model and asks it."""
    assert main(train_words(train__steps=1, evaluation__max_examples=2)) == 0
    run = tmp_path / "run"
    card = (run / "best" / "README.md").read_text()
    shown = re.search(r"\| mean@2 \|.* (\d\.\d+) \[[^|]*\|\n", card)
    best = json.loads((run / "done.json").read_text())["best_step"]
    (row,) = [r for r in read_metrics(run) if r["step"] == best and "eval/mean@2" in r]
    assert shown is not None
    assert float(shown[1]) == pytest.approx(row["eval/mean@2"], abs=5e-4)
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    found: dict[str, Any] = {}
    place = str(run / "best")
    exec(code[1].replace("PATH_OR_REPOSITORY", place).replace('"..."', '"set red 1"'), found)
    assert 1 <= found["output"].shape[1] - found["inputs"]["input_ids"].shape[1] <= 12
