"""The playbook in TRL's own SDPOTrainer, as docs/trl.md has it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")
pytest.importorskip("trl.experimental.sdpo")

from transformers import TrainerCallback

from resd.bridge import trl as bridge
from resd.config import ResdConfig
from resd.errors import UserError

DOCS = Path(__file__).resolve().parents[1] / "docs" / "trl.md"
START = "trainer.train()\n"


class Writers:
    """Whose weights write: what the engine was given, each time."""

    def __init__(self, engine):
        self.models, self._sync = [], engine.sync
        engine.sync = self

    def __call__(self, model, version):
        self.models.append(model)
        self._sync(model, version)


class Seen(TrainerCallback):
    """What TRL's teacher is given: the prompts of every batch, and which of them teach."""

    def __init__(self):
        self.prompts, self.teaches = [], []

    def on_teacher_context_built(self, processing_class=None, **given):
        self.prompts.append(processing_class.batch_decode(given["teacher_input_ids"]))
        self.teaches.append(given["self_distillation_mask"].tolist())


def script(changes=None):
    """The program of docs/trl.md, up to where it trains; its names, and what its teacher sees."""
    program = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    assert len(program.splitlines()) <= 40
    setup, start, rest = program.partition(START)
    assert start and rest
    for old, new in (changes or {}).items():
        assert setup.count(old) == 1
        setup = setup.replace(old, new)
    names = {"__name__": "script"}
    exec(setup, names)
    seen = Seen()
    names["trainer"].add_callback(seen)
    return SimpleNamespace(**names, seen=seen, rest=start + rest, names=names)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The program of docs/trl.md, run to its end in a directory of its own."""
    place = tmp_path_factory.mktemp("trl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = script()
        run.writers = Writers(run.context._engine)
        exec(run.rest, run.names)
    run.place = place
    return run


def lessons_in(prompt, playbook):
    return [entry.content for entry in playbook.shown() if f"{entry.content}\n" in prompt]


def test_lessons_reach_the_teacher_of_trl(trained):
    playbook = trained.context.playbook
    assert playbook.updates == len(trained.seen.prompts) == 3
    shown = [entry.content for entry in playbook.shown()]
    assert shown
    assert trained.task.score_playbook(shown)["precision"] == 1.0
    for prompt in trained.seen.prompts[-1]:
        assert lessons_in(prompt, playbook)
        # Playbook, question, trial, feedback and reflection, as the task's template has them.
        notes, _, rest = prompt.partition("set the ")
        assert "notes:" in notes and "tried: " in rest and "result: " in rest and "lesson: " in rest
    assert trained.seen.teaches[-1] == [1.0] * 16


def test_the_reflector_is_whose_the_config_says(trained):
    teacher = trained.trainer.teacher_model
    assert teacher is not trained.trainer.model
    assert trained.writers.models and all(model is teacher for model in trained.writers.models)
    assert trained.context._write("reflection", [], 8, 0.0) == []
    assert trained.writers.models.pop() is trained.trainer.model


def test_each_response_has_a_seed_that_comes_again(trained, monkeypatch):
    batches = []
    sample = trained.context._method.samples
    record = lambda batch, *rest: batches.append(batch) or sample(batch, *rest)  # noqa: E731
    monkeypatch.setattr(trained.context._method, "samples", record)
    for _ in range(2):
        trained.trainer.evaluate(trained.trainer.train_dataset.select(range(3)))
        trained.seen.prompts.pop()
    first, again = ([rollout.seed for rollout in batch] for batch in batches)
    assert first == again and len(set(first)) == 3


def test_the_student_never_sees_the_playbook(trained):
    trial = trained.seen.prompts[-1][0].split("<|assistant|>")[1]
    assert "notes:" not in trial
    prompts = trained.trainer._tokenizer.batch_decode(
        trained.trainer._buffered_inputs[0]["prompt_ids"]
    )
    assert len(prompts) == 16 and not any("notes:" in prompt for prompt in prompts)


def test_playbook_stands_in_the_output_directory(trained):
    for place in (trained.place / "out", trained.place / "out" / "checkpoint-3"):
        assert json.loads((place / "playbook.json").read_text())["updates"] == 3
        assert trained.context.playbook.shown()[0].content in (place / "playbook.md").read_text()


def test_trl_goes_on_with_the_playbook_as_if_it_had_not_stopped(trained, monkeypatch):
    monkeypatch.chdir(trained.place)
    again = script()
    assert len(again.context.playbook) == 0
    again.trainer.train(resume_from_checkpoint="out/checkpoint-2")
    assert again.seen.prompts == trained.seen.prompts[2:]
    assert again.context.state_dict() == trained.context.state_dict()
    assert again.trainer.state.log_history[2] == pytest.approx(trained.trainer.state.log_history[2])


def test_evaluation_shows_the_playbook_and_does_not_write_it(trained):
    before = trained.context.state_dict()
    rows = trained.trainer.train_dataset.select(range(4))
    trained.trainer.evaluate(rows)
    prompts = trained.seen.prompts.pop()
    assert trained.context.state_dict() == before
    assert lessons_in(prompts[0], trained.context.playbook)
    assert "lesson: " not in prompts[0] and "tried: " in prompts[0]


def fails(completions, **columns):
    """A reward function that says nothing."""
    return [0.0] * len(completions)


def hums(completions, **columns):
    hums.feedback = ["hums too low"] * len(completions)
    return [0.0] * len(completions)


def glows(completions, **columns):
    glows.feedback = ["", "glows too much"]
    return [0.0] * len(completions)


def told(trained, monkeypatch, functions, column=("from the column", None)):
    """What the teacher reads of two completions under `result:`, with these reward functions."""
    trainer = trained.trainer
    monkeypatch.setattr(trainer, "reward_funcs", list(functions))
    monkeypatch.setattr(trainer, "reward_func_names", [f.__name__ for f in functions])
    monkeypatch.setattr(trainer, "reward_processing_classes", [None] * len(functions))
    monkeypatch.setattr(trainer, "reward_weights", trainer.reward_weights.new_ones(len(functions)))
    rows = trainer.train_dataset.select(range(2)).add_column("privileged_context", list(column))
    trainer.evaluate(rows)
    prompts, teaches = trained.seen.prompts.pop(), trained.seen.teaches.pop()
    found = [re.search(r"result: ([\s\S]*?)<", prompt) for prompt in prompts]
    return [match and match.group(1) for match in found], teaches


def test_feedback_comes_from_the_reward_functions_else_from_the_column(trained, monkeypatch):
    assert told(trained, monkeypatch, [fails]) == (["from the column", None], [1.0, 0.0])
    assert told(trained, monkeypatch, [hums])[0] == ["hums too low"] * 2
    # A list that was read is gone: what is not said again is not told again.
    assert hums.feedback is None
    assert told(trained, monkeypatch, [fails, glows])[0] == ["from the column", "glows too much"]
    both = told(trained, monkeypatch, [hums, glows])[0]
    assert both == ["hums: hums too low", "hums: hums too low\n\nglows: glows too much"]


def test_feedback_of_another_length_is_refused(trained, monkeypatch):
    with pytest.raises(UserError, match="glows: its feedback must be a list of 3 texts"):
        rows = trained.trainer.train_dataset.select(range(3))
        monkeypatch.setattr(trained.trainer, "reward_funcs", [glows])
        monkeypatch.setattr(trained.trainer, "reward_func_names", ["glows"])
        trained.trainer.evaluate(rows)


def test_a_passed_response_is_shown_as_the_solution(trained, monkeypatch):
    trainer = trained.trainer
    monkeypatch.setattr(trainer.args, "success_reward_threshold", 0.0)
    trainer.evaluate(trainer.train_dataset.select(range(2)))
    prompts = trained.seen.prompts.pop()
    assert all("solved: " in prompt and "tried: " not in prompt for prompt in prompts)
    assert trained.context.last_metrics["self_distillation/success_group_fraction"] == 1.0


REFUSALS = {
    "version": "works with TRL 1.16, found 1.17.1: pip install 'trl==1.16.*'",
    "vllm": "never run with use_vllm",
    "fsdp": "never run with fsdp_enabled",
    "template": "not tools",
    "own template": "SDPOConfig: reprompt_template would have no effect",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_was_never_tried_is_refused_in_one_line(trained, monkeypatch, what):
    trainer = trained.trainer
    match what:
        case "version":
            monkeypatch.setattr("resd.bridge.check.version", lambda name: "1.17.1")
        case "vllm":
            monkeypatch.setattr(trainer, "use_vllm", True)
        case "fsdp":
            monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
        case "template":
            monkeypatch.setattr(trainer, "chat_template_kwargs", {"tools": []})
        case "own template":
            monkeypatch.setattr(trainer.args, "reprompt_template", "{prompt}")
    with pytest.raises(UserError) as refused:
        bridge.PlaybookContext(trainer)
    assert REFUSALS[what] in str(refused.value) and "\n" not in str(refused.value)


def test_settings_without_effect_and_without_room_are_refused(trained):
    with pytest.raises(UserError, match="alpha, teacher would have no effect"):
        bridge.PlaybookContext(trained.trainer, ResdConfig(alpha=0.0, teacher={"kind": "live"}))
    with pytest.raises(UserError, match="lower max_completion_length"):
        bridge.PlaybookContext(trained.trainer, ResdConfig(reflection_tokens=100_000))
    with pytest.raises(UserError, match=r"templates: .*does not exist"):
        bridge.PlaybookContext(trained.trainer, CONFIG, templates=["no/such/directory"])
    with pytest.raises(UserError, match=r"is for trl.* got object"):
        bridge.PlaybookContext(object())


CONFIG = ResdConfig(reflection_tokens=64, curation_tokens=48, max_teacher_tokens=512)


def test_prompts_that_are_no_chat_are_refused(trained, monkeypatch):
    monkeypatch.setattr(trained.trainer, "train_dataset", [{"prompt": "plain text"}])
    with pytest.raises(UserError, match=r"dataset column prompt: .*list of chat messages"):
        bridge.PlaybookContext(trained.trainer, CONFIG)


def test_a_checkpoint_without_a_playbook_is_told_of(trained):
    keeper = bridge._Keeper(trained.context)
    state = SimpleNamespace(stateful_callbacks={}, global_step=7)
    with pytest.warns(UserWarning, match="checkpoint of step 7 holds no playbook"):
        keeper.on_train_begin(None, state, None)


@pytest.mark.slow
def test_two_processes_learn_the_same(tmp_path):
    program = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    told = (
        "import os, pathlib\npathlib.Path(os.environ['RANK']).write_text(str(context.state_dict()))"
    )
    halved = program.replace("train_batch_size=16", "train_batch_size=8")
    (tmp_path / "program.py").write_text(f"{halved}{told}\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "program.py"]
    subprocess.run(launch, cwd=tmp_path, check=True, timeout=300)
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second and "'updates': 3" in first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "ema", "live"])
def test_adapters_and_every_teacher_of_trl(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = script(
        {
            'kind="base"': f'kind="{kind}"',
            "Dataset.from_list(rows))": "Dataset.from_list(rows), peft_config=LoraConfig())",
            "from datasets import": "from peft import LoraConfig\nfrom datasets import",
            "learning_rate=1e-3": "learning_rate=1e-2",
        }
    )
    exec(run.rest, run.names)
    assert run.context.playbook.shown()
    assert "notes:" in run.seen.prompts[-1][0]
