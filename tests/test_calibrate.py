"""One step measured: on the run's own model, or on a stand-in that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig

from resd.config import RunConfig, load_config
from resd.loop import calibrate
from resd.loop.calibrate import Calibration, _missing, _stand_in
from resd.loop.stream import Stream

EXPERTS = "Qwen/Qwen3-30B-A3B-Thinking-2507"


def config(model: str | Path, method: str = "sdpo", **over: Any) -> RunConfig:
    values = tiny.settings(Path(model), Path("nowhere/run"), method, **over)
    return load_config(None, list(values.items()))


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_one_step_is_measured(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one; a GPU also tells its name and its peak, from the step alone."""
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    batch, prepare = Stream.batch, calibrate.prepare
    monkeypatch.setattr(calibrate, "pick_device", lambda name: torch.device(kind))
    monkeypatch.setattr(Stream, "batch", lambda self, n: (calls.append(n), batch(self, n))[1])
    monkeypatch.setattr(calibrate, "prepare", lambda used: (calls.append(used), prepare(used))[1])
    for name, value in (
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 7),
        ("get_device_name", "A card"),
    ):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, n=name, v=value: (calls.append(n), v)[1]
        )
    found = calibrate.calibrate(config(tiny_model, trackers=["wandb"], train__batch_size=2))
    used, *rest = calls
    assert (used.trackers, used.traces.keep) == ([], False)
    gpu = ["reset_peak_memory_stats", 1, "max_memory_allocated", "get_device_name"]
    assert rest == (gpu if kind == "cuda" else [1])
    assert (found.device, found.peak) == (("A card", 7) if kind == "cuda" else (kind, None))
    assert (found.row["step"], found.steps, found.stand_in) == (1, 4, "")
    assert found.row["time/step_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_said() -> None:
    row = {"time/step_s": 36.0, "time/generate_s": 30.0}
    own = str(Calibration({**row, "rollout/length": 12.4}, 250, "A card", peak=2_500_000_000))
    assert own.splitlines() == [
        "measured on A card: one step took 36.00 s (generate 30.00), responses of 12 tokens",
        "its peak on the device: 2.50 GB",
        "250 steps like it take 2.5 hours, without evaluations and checkpoints; the first step is "
        "slower than later ones, and responses may grow.",
    ]
    other = str(Calibration(row, 250, "cpu", "it is far away"))
    assert other.splitlines()[0].endswith("responses of 0 tokens")
    assert "in its place (it is far away), with at most 4 prompts and 32 tokens" in other
    assert "nothing is known of the run's time" in other
    assert "hours" not in other and "peak" not in other


def test_a_whole_step_of_a_stand_in() -> None:
    found = calibrate.calibrate(config(EXPERTS, "resd", train__batch_size=1))
    assert found.stand_in == f"the weights of {EXPERTS} are not on this machine"
    assert found.row["step"] == 1


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", ""])
def test_where_the_weights_may_be(
    file: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(place: str, name: str, *, local_files_only: bool) -> str:
        assert (place, local_files_only) == (EXPERTS, True)
        if name != file:
            raise OSError(name)
        return name

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached)
    assert bool(_missing(config(EXPERTS))) == (file == "")
    assert _missing(config("lab")) == _missing(config("smol")) == ""
    assert _missing(config(tiny_model)) == ""
    assert "no_such_directory" in _missing(config("./no_such_directory"))


@pytest.mark.parametrize("method", ["sdpo", "resd"])
@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("Qwen/Qwen3-4B-Thinking-2507", {"model_type": "qwen3", "intermediate_size": 64}),
        (
            EXPERTS,
            {
                "model_type": "qwen3_moe",
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
            },
        ),
    ],
)
def test_what_stands_in(path: str, own: dict[str, Any], method: str, tmp_path: Path) -> None:
    """Of the same kind and tiny; the configuration of the run stays as it is."""
    large = {"rollout__max_new_tokens": 999, "train__batch_size": 99}
    tokens = {"method__reflection_tokens": 999, "method__curation_tokens": 999}
    wanted = config(path, method, **large, **(tokens if method == "resd" else {}))
    before = wanted.model_dump()
    made = _stand_in(wanted, tmp_path)
    assert wanted.model_dump() == before
    assert (made.model.path, made.model.max_context) == (str(tmp_path), None)
    assert (made.rollout.max_new_tokens, made.train.batch_size) == (32, 4)
    assert made.rollout.max_prompt_tokens == 16384
    if method == "resd":
        spoken: Any = made.method
        assert spoken.reflection_tokens == spoken.curation_tokens == 32
    found = AutoConfig.from_pretrained(tmp_path)
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 32768,
    }
    assert {key: getattr(found, key) for key in shape | own} == shape | own
    assert (tmp_path / "tokenizer.json").is_file()
    few = config(path, rollout__max_new_tokens=3, train__batch_size=2)
    small = _stand_in(few, tmp_path)
    assert (small.rollout.max_new_tokens, small.train.batch_size) == (3, 2)
