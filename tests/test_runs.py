"""The run directory: who may open it, what it holds, and what is said of a damaged one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from resd.cli import main
from resd.config import RunConfig, load_config
from resd.errors import UserError
from resd.runs import RunDirectory, read_metrics
from resd.runs.directory import check_new, is_new
from resd.runs.seeds import derive, random_state, seed_everything, set_random_state

Words = Callable[..., list[str]]


@pytest.fixture
def config() -> RunConfig:
    return load_config(None, [("model.path", "m")])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("resd: ")
    return error.strip()


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; copy it before changing it."""
    place = tmp_path_factory.mktemp("finished") / "run"
    values = tiny.settings(tiny_model, place, train__steps=2, evaluation__every=1)
    assert main(["train", *tiny.arguments(values)]) == 0
    return place


@pytest.fixture
def broken_off(finished: Path, tmp_path: Path) -> Path:
    """A run that could be resumed."""
    place = tmp_path / "broken"
    shutil.copytree(finished, place)
    (place / "done.json").unlink()
    return place


# -- what a run leaves ----------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.toml",
        "metrics.jsonl",
        "playbook.json",
        "playbook.md",
        "traces",
        "checkpoints",
        "evaluated",
        "best",
        "final",
        "done.json",
    }
    assert not [p for p in finished.rglob(".*") if p.name not in (".lock", ".metadata")]
    steps = [row["step"] for row in read_metrics(finished)]
    assert steps == [0, 1, 1, 2, 2]
    assert sorted(p.name for p in (finished / "traces").iterdir()) == [
        *(f"evaluation-00000{step}.jsonl.gz" for step in (0, 1, 2)),
        "step-000001.jsonl.gz",
        "step-000002.jsonl.gz",
    ]


@pytest.mark.parametrize("which", ["final", "best"])
@pytest.mark.parametrize("lora", [False, True])
def test_models_load_by_auto_class(
    lora: bool, which: str, finished: Path, train_words: Words, tmp_path: Path
) -> None:
    """Adapters are merged: what a run leaves needs neither peft nor the base model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished
    if lora:
        run = tmp_path / "run"
        words = train_words(train__steps=1, model__lora__rank=2, train__lr=0.1)
        assert main(words) == 0
    assert not (run / which / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(run / which)
    assert AutoTokenizer.from_pretrained(run / which).chat_template
    assert model(input_ids=torch.tensor([[5, 6]])).logits.isfinite().all()
    assert main(["eval", str(run), "--which", which, "--samples", "1"]) == 0


def test_saving_merged_adapters_keeps_the_function_and_the_model(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from resd.config import LoraConfig, ModelConfig
    from resd.models.load import load_model, save_model

    model = load_model(ModelConfig(path=str(tiny_model), lora=LoraConfig(rank=2)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "merged")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    plain = load_model(ModelConfig(path=str(tiny_model)))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted, found, base = (m.eval()(input_ids=ids).logits for m in (model, merged, plain))
    assert torch.allclose(wanted, found, atol=1e-4)
    assert not torch.allclose(wanted, base, atol=1e-2)


# -- who may open it ------------------------------------------------------------------------------


def test_two_runs_at_once_on_one_directory(
    broken_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = "import sys; from resd.runs import RunDirectory; from pathlib import Path\n"
    holder += "run = RunDirectory.open(Path(sys.argv[1])); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(broken_off)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        assert main(["train", "--resume", str(broken_off)]) == 2
        assert "in use by another process" in one_line(capsys)
        other.kill()
    assert main(["train", "--resume", str(broken_off)]) == 0  # the lock died with its owner


def test_a_new_run_is_locked_from_the_start(tmp_path: Path, config: RunConfig) -> None:
    run = RunDirectory.create(tmp_path / "a", config)
    with pytest.raises(UserError, match="in use"):
        RunDirectory.open(tmp_path / "a")
    for name in ("config.toml", "identity.json"):
        (tmp_path / "a" / name).unlink()
    with pytest.raises(UserError, match="in use"):  # even where the directory looks empty
        RunDirectory.create(tmp_path / "a", config)
    run.close()


def test_training_into_a_directory_with_something_in_it(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert main(train_words()) == 2
    assert "not empty" in one_line(capsys)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_training_into_a_run_names_the_way_on(
    finished: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny.arguments(tiny.settings(tiny_model, finished))]) == 2
    assert f"--resume {finished}" in one_line(capsys)


def test_what_a_crash_at_birth_leaves_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.toml.tmp").write_text("half")
    assert is_new(tmp_path)
    check_new(tmp_path)
    (tmp_path / "config.toml").touch()
    assert not is_new(tmp_path)


def test_an_output_that_is_a_file(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("x")
    assert main(train_words()) == 2
    assert "is a file" in one_line(capsys)


def test_an_output_that_cannot_be_made(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(train_words(output=tmp_path / "file" / "run")) == 2
    assert "output" in one_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_rights(
    train_words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    assert main(train_words()) == 2
    assert "Permission denied" in one_line(capsys)


# -- resuming what cannot be ----------------------------------------------------------------------


def test_resuming_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "no config.toml" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []
    assert main(["train", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "no run directory" in one_line(capsys)


def test_resuming_a_complete_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(finished)]) == 2
    assert f"complete; its model is in {finished / 'final'}" in one_line(capsys)


def test_resuming_with_other_settings(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(finished), "--seed", "3"]) == 2
    line = one_line(capsys)
    assert "takes no other setting" in line
    assert "--accept seed" in line


def test_resuming_with_a_damaged_configuration(
    broken_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken_off / "config.toml").write_text("[train\n")
    assert main(["train", "--resume", str(broken_off)]) == 2
    assert "config.toml is not valid TOML" in one_line(capsys)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "truncated random.pt": ("random.pt", truncate),
    "empty random.pt": ("random.pt", lambda file: file.write_bytes(b"")),
    "garbage in random.pt": ("random.pt", lambda file: file.write_bytes(b"garbage" * 99)),
    "no random.pt": ("random.pt", Path.unlink),
    "truncated state.json": ("state.json", truncate),
    "garbage in state.json": ("state.json", lambda file: file.write_bytes(b"\xff\xfe{")),
    "state.json of another shape": ("state.json", lambda file: file.write_text("[1]")),
    "state.json without its playbook": (
        "state.json",
        lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"method": {}})),
    ),
    "no state.json": ("state.json", Path.unlink),
    "truncated weights": ("tensors/__0_0.distcp", truncate),
    "no weights": ("tensors/.metadata", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    broken_off: Path, damage: str
) -> None:
    newest = broken_off / "checkpoints" / "step-000002"
    file, spoil = DAMAGES[damage]
    spoil(newest / file)
    metrics = (broken_off / "metrics.jsonl").read_bytes()
    run, _ = RunDirectory.open(broken_off)
    said: list[str] = []
    run.set_damaged_aside(said.append)
    (line,) = said
    assert str(newest) in line
    assert file in line
    assert "goes on from step 1" in line
    assert [number for number, _ in run.checkpoints()] == [0, 1][-len(run.checkpoints()) :]
    assert (newest.parent / "damaged-step-000002" / "checksums.json").is_file()
    assert (broken_off / "metrics.jsonl").read_bytes() == metrics
    run.close()


def test_an_evaluated_student_that_was_deleted_costs_no_run(
    broken_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(broken_off / "evaluated")
    assert main(["train", "--resume", str(broken_off)]) == 0
    assert (broken_off / "best" / "model.safetensors").is_file()


# -- writes ---------------------------------------------------------------------------------------


def test_every_purpose_has_a_seed_of_its_own() -> None:
    seeds = {derive(s, what, n) for s in range(5) for what in ("a", "b") for n in range(50)}
    assert len(seeds) == 500


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    def draw() -> tuple[Any, ...]:
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.rand(1).item(),
        )

    seed_everything(3)
    draw()
    state = random_state()
    wanted = [draw() for _ in range(3)]
    set_random_state(state)
    assert [draw() for _ in range(3)] == wanted


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    seed_everything(2**63 - 1)
    torch.save(random_state(), tmp_path / "s.pt")
    wanted = torch.rand(3)
    set_random_state(torch.load(tmp_path / "s.pt", weights_only=True))
    assert torch.equal(torch.rand(3), wanted)


def test_checkpoints_stay_within_their_budget_and_the_newest_in_any_case(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", RunConfig())

    def fill(size: int) -> Callable[[Path], None]:
        return lambda place: (place / "weights").write_bytes(b"x" * size) and None

    for step, size in enumerate((1000, 1000, 1000, 1000)):
        run.save_checkpoint(step, 3, fill(size), budget=2500)
    assert [number for number, _ in run.checkpoints()] == [2, 3]
    run.save_checkpoint(4, 3, fill(9000), budget=2500)
    assert [number for number, _ in run.checkpoints()] == [4]
    run.close()
