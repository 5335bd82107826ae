"""Two processes are one: same tokens, same playbook, same metrics, whatever the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import tiny
import torch
from fake_server import FakeServer
from safetensors.torch import load_file
from two import start, torchrun

from resd.cli import main

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
# Numbers that are rounding errors themselves.
NOISE = ("train/sampler_gap",)

# An odd number of anchors: at times one of the processes has none.
ANCHORED: dict[str, Any] = {
    "method__teacher__kind": "frozen",
    "method__anchors__weight": 2.0,
    "method__anchors__number": 9,
    "method__anchors__max_new_tokens": 8,
}
GRPO_ANCHORED = {k: v for k, v in ANCHORED.items() if "teacher" not in k}
RUNS: dict[str, dict[str, Any]] = {
    "resd": {"method__teacher__kind": "ema", "method__teacher__rate": 0.1},
    "resd, reflector frozen": {"method__teacher__kind": "frozen", "method__reflector": "teacher"},
    "sdpo": {"method__teacher__kind": "live", "method__rollouts": 3},
    "sdpo_ss": {"method__teacher__kind": "frozen"},
    "grpo": {"train__micro_batch_tokens": 70},
    "handoff": {"method__switch__rule": "schedule", "method__switch__after": 1},
    "resd, lora ema": {"model__lora__rank": 4, "method__teacher__rate": 0.1, "train__lr": 0.05},
    "resd, lora frozen": {"model__lora__rank": 4, "method__teacher__kind": "frozen"},
    "sdpo, untied": {"method__teacher__kind": "ema", "method__teacher__rate": 0.1},
    "resd, offload ema": {"method__teacher__kind": "ema", "method__teacher__rate": 0.1},
    "sdpo, offload frozen": {"method__teacher__kind": "frozen"},
    # Near the initial model gradients are small and AdamW magnifies their rounding, by the rate.
    "resd, anchors": {
        **ANCHORED,
        "train__micro_batch_tokens": 60,
        "method__anchors__batch": 5,
        "train__lr": 2e-3,
    },
    "grpo, anchors": {**GRPO_ANCHORED, "method__anchors__batch": 1},
    "sdpo, lora anchors": {**ANCHORED, "model__lora__rank": 4, "train__lr": 0.05},
    "resd, one example": {"train__batch_size": 1, "train__inner_iterations": 1},
}


# Broken off by one process and gone on with by two, and the other way round.
BROKEN = ("resd", "resd, lora ema")


def words(name: str, output: Path, model: Path, **more: Any) -> list[str]:
    method = name.partition(",")[0]
    settings = tiny.settings(model, output, method, train__steps=3, **{**RUNS[name], **more})
    return ["train", *tiny.arguments(settings)]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in NOISE and k[:5] != "time/"} for r in lines]


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = tmp_path_factory.mktemp("untied") / "m"
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=False)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, untied: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Every run by one process, and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")

    def command(name: str, place: Path) -> list[str]:
        # One process has no other memory than the host's.
        offload = {"method__teacher__offload": True} if "offload" in name and place is two else {}
        model = untied if "untied" in name else tiny_model
        return words(name, place / name, model, **offload)

    # Two runs of two steps, to be gone on with by the other number of processes.
    short = {name: command(name, place) for name, place in ((BROKEN[0], one), (BROKEN[1], two))}
    resumed = {}
    for place, (name, row) in zip((one, two), short.items(), strict=True):
        row[row.index("--output") + 1] = str(place / f"{name} resumed")
        row[row.index("--train.steps") + 1] = "2"
        resumed[name] = ["train", "--resume", row[row.index("--output") + 1], "--train.steps", "3"]
    assert main(short[BROKEN[0]]) == 0
    plans = [*(command(name, two) for name in RUNS), short[BROKEN[1]], resumed[BROKEN[0]]]
    codes = torchrun(two, plans)
    assert codes == [[0] * len(plans)] * 2
    for name in RUNS:
        assert main(command(name, one)) == 0
    assert main(resumed[BROKEN[1]]) == 0
    return one, two


def same_run(one: Path, two: Path) -> None:
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    tiny.same_traces(one, two)
    if (one / "playbook.json").exists():
        assert (one / "playbook.json").read_text() == (two / "playbook.json").read_text()
    last = [tiny.tensors_of(max((run / "checkpoints").iterdir()) / "tensors") for run in (one, two)]
    assert last[0].keys() == last[1].keys()
    for key, tensor in last[0].items():
        assert (tensor - last[1][key]).abs().max() <= 1e-5 * tensor.abs().max() + 1e-7, key
    a, b = (load_file(run / "final" / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    assert all((a[k] - b[k]).abs().max() <= 1e-5 * a[k].abs().max() + 1e-7 for k in a)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(name: str, runs: tuple[Path, Path]) -> None:
    config = (runs[1] / name / "config.toml").read_text()
    assert ("offload = true" in config) is ("offload" in name)
    same_run(runs[0] / name, runs[1] / name)


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_goes_on_with_another_number_of_processes(
    number: int, runs: tuple[Path, Path]
) -> None:
    name = BROKEN[number]
    same_run(runs[0] / name, runs[number] / f"{name} resumed")


# -- engines that keep a copy of the weights -------------------------------------------------------


@pytest.mark.parametrize("adapters", [False, True])
def test_two_processes_ask_one_server(adapters: bool, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    server = FakeServer(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    server.weights.load(base.state_dict().items())
    over = {"engine__kind": "vllm_server", "engine__url": server.url, "model__max_context": 512}
    over |= {"method__reflector": "teacher", "method__teacher__kind": "frozen"}
    if adapters:
        server.lora = True
        over |= {"engine__adapters": True, "model__lora__rank": 4, "train__lr": 0.05}
    places = [tmp_path / "one", tmp_path / "two"]
    commands = [words("resd", place, tiny_model, **over) for place in places]
    try:
        assert main(commands[0]) == 0
        calls = [path for path, _ in server.calls]
        assert torchrun(tmp_path, commands[1:]) == [[0], [0]]
    finally:
        server.close()
    assert [path for path, _ in server.calls[len(calls) :]] == calls  # one of them hands over
    assert ("/collective_rpc" in calls) is not adapters
    same_run(*places)


def test_two_processes_have_an_engine_each(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, tmp_path)
    over = {"engine__kind": "vllm", "model__max_context": 512, "model__lora__rank": 4}
    places = [tmp_path / "one", tmp_path / "two"]
    commands = [words("resd", place, tiny_model, train__lr=0.05, **over) for place in places]
    assert main(commands[0]) == 0
    codes = torchrun(tmp_path, commands[1:], FAKE_VLLM=str(tmp_path))
    assert codes == [[0], [0]]
    same_run(*places)


# -- when something goes wrong ---------------------------------------------------------------------


WORLD = """
import os
import shutil
import time
import tiny

if os.environ.get("RANK") == "0" and "late" in {mode!r}:
    removed = shutil.rmtree

    def rmtree(*args, **kwargs):  # time enough for the other process to make the directory itself
        removed(*args, **kwargs)
        time.sleep(1.0)

    shutil.rmtree = rmtree

class World(tiny.TinyWorld):
    def examples(self, split):
        if os.environ.get("RANK") == "1" and "broken" in {mode!r}:
            raise ValueError("the disk of this machine is gone")
        return super().examples(split)

    def evaluate(self, example, response):
        mine = os.environ.get("RANK") == "1" and "dies" in {mode!r}
        if mine and response and example.id.startswith("train"):
            os._exit(9)
        return super().evaluate(example, response)
"""


def in_world(mode: str, place: Path) -> str:
    """A task whose processes meet with something."""
    world = place / "world.py"
    world.write_text(f"import sys\nsys.path.insert(0, {str(HERE)!r})\n" + WORLD.format(mode=mode))
    return f"{world}:World"


def test_no_shard_is_written_before_there_is_room(tiny_model: Path, tmp_path: Path) -> None:
    """Process 0 makes the directory of a checkpoint; another that came first made it fail."""
    settings = tiny.settings(
        tiny_model, tmp_path / "run", task=in_world("late", tmp_path), train__steps=1
    )
    settings["rollout.env_mode"] = "thread"
    done = start(["train", *tiny.arguments(settings)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/done.json").is_file()


@pytest.mark.parametrize("mode", ["broken", "dies"])
def test_an_error_in_one_process_ends_all(mode: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = tiny.settings(tiny_model, tmp_path / "run", task=in_world(mode, tmp_path))
    settings["rollout.env_mode"] = "thread"  # dies: the process itself
    done = start(["train", *tiny.arguments(settings)])
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("resd: ")]
    assert len(ours) == 1, done.stderr
    if mode == "broken":
        assert "process 1 of 2" in ours[0] and "the disk of this machine is gone" in ours[0]
        assert not (tmp_path / "run").exists()
    else:
        assert "another process has ended" in ours[0]
        assert "--resume" in ours[0]
        assert any((tmp_path / "run" / "checkpoints").iterdir())
