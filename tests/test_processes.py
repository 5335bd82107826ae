"""Two processes are one: same tokens, same playbook, same metrics, whatever the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from resd.cli import main

HERE = Path(__file__).parent
# Numbers that are rounding errors themselves.
NOISE = ("train/sampler_gap",)

RUNS: dict[str, dict[str, Any]] = {
    "resd": {"method__teacher__kind": "ema", "method__teacher__rate": 0.1},
    "resd, reflector frozen": {"method__teacher__kind": "frozen", "method__reflector": "teacher"},
    "sdpo": {"method__teacher__kind": "live", "method__rollouts": 3},
    "sdpo_ss": {"method__teacher__kind": "frozen"},
    "grpo": {"train__micro_batch_tokens": 70},
    "resd, lora ema": {"model__lora__rank": 4, "method__teacher__rate": 0.1, "train__lr": 0.05},
    "resd, lora frozen": {"model__lora__rank": 4, "method__teacher__kind": "frozen"},
    "sdpo, untied": {"method__teacher__kind": "ema", "method__teacher__rate": 0.1},
    "resd, one example": {"train__batch_size": 1, "train__inner_iterations": 1},
}


def torchrun(place: Path, commands: Sequence[Sequence[str]], number: int = 2) -> list[list[int]]:
    """Exit codes of command lines in each process."""
    plans = place / f"plans{number}.json"
    plans.write_text(json.dumps(commands))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(number), str(HERE / "processes.py"), str(plans)),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    files = [Path(f"{plans}.{rank}") for rank in range(number)]
    assert all(file.is_file() for file in files), done.stdout[-2000:] + done.stderr[-4000:]
    codes = [json.loads(file.read_text()) for file in files]
    assert all(len(row) == len(commands) for row in codes), done.stderr[-4000:]
    return codes


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
        return words(name, place / name, untied if "untied" in name else tiny_model)

    codes = torchrun(two, [command(name, two) for name in RUNS])
    assert codes == [[0] * len(RUNS)] * 2
    for name in RUNS:
        assert main(command(name, one)) == 0
    return one, two


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one(name: str, runs: tuple[Path, Path]) -> None:
    one, two = (place / name for place in runs)
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    for file in sorted((one / "traces").iterdir()):
        assert file.read_text() == (two / "traces" / file.name).read_text()
    if "resd" in name:
        assert (one / "playbook.json").read_text() == (two / "playbook.json").read_text()
    last = [tiny.tensors_of(max((run / "checkpoints").iterdir()) / "tensors") for run in (one, two)]
    assert last[0].keys() == last[1].keys()
    for key, tensor in last[0].items():
        assert (tensor - last[1][key]).abs().max() <= 1e-5 * tensor.abs().max() + 1e-7, key
