"""From command to trained model, with the model that ships."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from resd.cli import main
from resd.models.load import LAB_MODEL
from resd.runs.traces import read_traces, trace_files

EXAMPLES = Path(__file__).parent.parent / "examples"


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def accuracies(run):
    return [row["eval/mean@4"] for row in rows(run) if "eval/mean@4" in row]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "lab"
    words = ["--train.steps", "16", "--evaluation.every", "8", "--output", str(path)]
    assert main(["train", *words]) == 0
    return path


def test_a_model_learns_a_language_that_it_has_never_seen(run):
    first, *_, last = accuracies(run)
    assert first <= 0.01
    assert last >= 0.4
    steps = [row for row in rows(run) if "playbook/precision" in row]
    assert steps[-1]["playbook/recall"] >= 0.6
    assert steps[-1]["playbook/precision"] >= 0.8


def test_the_reflections_are_the_models_own(run):
    """Prompts and outputs are traced; lessons that no reflection stated are not in the playbook."""
    written = []
    for _, file in trace_files(run):
        for record in read_traces(file):
            if record["kind"] == "reflection":
                assert record["prompt"][0]["content"].startswith("reflect")
                written.append(record["output"])
    entries = json.loads((run / "playbook.json").read_text())["entries"]
    assert entries
    for entry in entries:
        assert any(entry["content"] in output for output in written)


def test_the_final_model_loads_and_answers_without_any_context(run):
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    message = [{"role": "user", "content": "set the lamp in the hall to 3"}]
    ids = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**ids, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(answer.split()) == 5
    base = AutoModelForCausalLM.from_pretrained(LAB_MODEL, dtype=torch.float32)
    changed = [
        not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True)
    ]
    assert all(changed)


def test_eval_playbook_and_tasks_commands(run, tmp_path, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["eval/mean@4"] == pytest.approx(accuracies(run)[-1], abs=0.1)
    assert main(["eval", "lab", "--samples", "2", "--output", str(tmp_path / "answers")]) == 0
    assert re.match(r"mean@2 0\.00", capsys.readouterr().out)
    assert main(["playbook", "show", str(run)]) == 0
    assert "close: end" in capsys.readouterr().out
    assert main(["tasks"]) == 0
    assert "lab" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    words = ["--train.steps", "16", "--evaluation.every", "8", "--output", str(tmp_path / "b")]
    assert main(["train", *words]) == 0
    for a, b in zip(rows(run), rows(tmp_path / "b"), strict=True):
        timeless = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in (a, b)]
        assert timeless[0] == timeless[1]


def test_a_task_of_ones_own_is_learnt(tmp_path):
    task = f"{EXAMPLES / 'my_house.py'}:House"
    words = ["--preset", "lab", "--task", task, "--train.steps", "12", "--evaluation.every", "0"]
    assert main(["train", *words, "--output", str(tmp_path / "run")]) == 0
    lessons = (tmp_path / "run" / "playbook.md").read_text()
    assert "open: ahoy" in lessons
    assert "close: amen" in lessons


def test_the_readmes_task_is_the_one_that_is_tested():
    readme = (EXAMPLES.parent / "README.md").read_text()
    source = (EXAMPLES / "my_house.py").read_text()
    assert source.strip() in readme
    assert len(source.splitlines()) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdpo", "sdpo_ss", "grpo"])
def test_the_baselines_run(method, tmp_path):
    words = ["--method.name", method, "--train.steps", "4", "--output", str(tmp_path / "run")]
    assert main(["train", *words]) == 0
    assert (tmp_path / "run" / "done.json").is_file()


@pytest.mark.slow
def test_the_base_model_passes_its_gates(capsys):
    assert main(["lab", "gates", "--number", "300"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_the_minimal_example_learns(capsys, monkeypatch):
    file = EXAMPLES / "resd_minimal.py"
    assert len(file.read_text().splitlines()) <= 300
    monkeypatch.setattr(sys, "argv", [str(file), "0"])
    runpy.run_path(str(file), run_name="__main__")
    found = re.findall(r"step\s+(\d+)\s+mean@4 ([\d.]+)", capsys.readouterr().out)
    assert float(found[0][1]) <= 0.01
    assert float(found[-1][1]) >= 0.4
