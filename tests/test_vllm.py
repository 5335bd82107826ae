"""The vLLM engine on a vLLM that is none: what it is given, in which order, and what it leaves."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_vllm
import numpy as np
import pytest
import torch

from resd.config import LoraConfig, ModelConfig
from resd.engines import HFEngine, Request, Sampling
from resd.engines.vllm import VLLMEngine
from resd.errors import UserError
from resd.models.handover import whole_weights
from resd.models.load import load_model, load_tokenizer
from resd.models.lora import merged_weights
from resd.runs import read_metrics

CONTEXT = 32
ASKED = [
    Request(tuple((7 * i + 3 * j + 5) % 300 for j in range(3 + i)), Sampling(0.8, 0.9, 6), 90 + i)
    for i in range(5)
]


@pytest.fixture
def llms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[fake_vllm.LLM]:
    return fake_vllm.install(monkeypatch, tmp_path).made


def loaded(place: Path, lora: LoraConfig | None = None, compute: Any = None) -> Any:
    model = load_model(ModelConfig(path=str(place), device="cpu", threads=1, lora=lora))
    return model if compute is None else model.to(compute)


@torch.no_grad()
def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def started(place: Path, model: Any, **over: Any) -> VLLMEngine:
    return VLLMEngine(model, load_tokenizer(str(place)), str(place), 3, CONTEXT, **over)


def wanted(place: Path, model: Any) -> Any:
    return HFEngine(model, load_tokenizer(str(place)), 1, CONTEXT).generate(ASKED)


def same(found: Any, expected: Any) -> None:
    """Equal up to rounding: adding an adapter's change up first is another sum."""
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_what_vllm_is_told(
    tiny_model: Path, llms: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    started(tiny_model, loaded(tiny_model))
    started(tiny_model, loaded(tiny_model, compute=torch.bfloat16), memory=0.5)
    plain = {
        "model": str(tiny_model),
        "load_format": "dummy",
        "dtype": "float32",
        "max_model_len": CONTEXT,
        "max_num_seqs": 3,
        "enforce_eager": True,
        "enable_prefix_caching": True,
        "enable_sleep_mode": False,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "hf_overrides": {},
        "seed": 0,
    }
    assert llms[0].words == {**plain, "kv_cache_memory_bytes": 1 << 30}
    assert llms[1].words == {**plain, "dtype": "bfloat16", "gpu_memory_utilization": 0.5}
    several = SimpleNamespace(world=2)
    started(tiny_model, loaded(tiny_model), dtype=torch.bfloat16, backend=several)
    wide = {**plain, "dtype": "bfloat16", "kv_cache_memory_bytes": 1 << 30}
    assert llms[2].words == {**wide, "distributed_executor_backend": "external_launcher"}
    # The weights are handed to a worker in this process, whatever the user set; the rest is his.
    assert llms[0].environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert llms[0].environment["VLLM_LOGGING_LEVEL"] == "INFO"


def test_the_same_completions_as_the_hf_engine(tiny_model: Path, llms: list[Any]) -> None:
    model = loaded(tiny_model)
    engine = started(tiny_model, model)
    done: list[int] = []
    for version in range(2):
        engine.sync(shaken(model), str(version))
        made = engine.generate(ASKED, lambda i, completion: done.append(i))
        assert made == wanted(tiny_model, model)
    assert done == [4, 3, 2, 1, 0] * 2  # as they were finished
    (llm,) = llms
    assert llm.events == ["reload_weights", "reset"] * 2
    params = llm.params[-5:]
    assert [p.seed for p in params] == [90, 91, 92, 93, 94]
    assert {(p.temperature, p.top_p, p.max_tokens, p.logprobs) for p in params} == {
        (0.8, 0.9, 6, 0)
    }
    assert {tuple(p.stop_token_ids) for p in params} == {tuple(engine._reader.end_ids)}
    assert engine.generate([]) == []
    long = Request(tuple(range(CONTEXT - 2)), Sampling(1.0, 1.0, 6), 0)
    assert len(engine.generate([long])[0].token_ids) <= 2 == llm.params[-1].max_tokens
    with pytest.raises(ValueError, match="whole context"):
        engine.generate([Request(tuple(range(CONTEXT)), Sampling(1.0, 1.0, 6), 0)])


def test_names_and_values_that_are_handed_over(tiny_model: Path, llms: list[Any]) -> None:
    model = loaded(tiny_model)
    assert model.config.tie_word_embeddings
    engine = started(tiny_model, model)
    engine.sync(model, "0")
    assert sorted(llms[0].weights.names) == sorted(model.state_dict())
    assert "lm_head.weight" in llms[0].weights.names


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head", "embed_tokens"]])
def test_adapters_are_merged_into_what_is_handed_over(
    tiny_model: Path, llms: list[Any], targets: Any
) -> None:
    plain = loaded(tiny_model)
    model = shaken(loaded(tiny_model, LoraConfig(rank=2, target_modules=targets)))
    before = copy.deepcopy(model.state_dict())
    engine = started(tiny_model, model)
    parted = {"tie_word_embeddings": False} if targets != "all-linear" else {}
    assert llms[0].words["hf_overrides"] == parted
    engine.sync(model, "0")
    assert sorted(llms[0].weights.names) == sorted(plain.state_dict())
    merged = merged_weights(model)
    assert all(torch.equal(value, merged[name]) for name, value in llms[0].held[0].items())
    assert not torch.equal(
        llms[0].held[0]["model.layers.0.self_attn.q_proj.weight"],
        plain.state_dict()["model.layers.0.self_attn.q_proj.weight"],
    )
    same(engine.generate(ASKED), wanted(tiny_model, model))
    # A frozen teacher is the student with its adapter off.
    with model.disable_adapter():
        engine.sync(model, "teacher")
        same(engine.generate(ASKED), wanted(tiny_model, plain))
    assert all(
        torch.equal(value, plain.state_dict()[name]) for name, value in llms[0].held[1].items()
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_adapter_that_is_switched_on_is_the_one_that_is_merged(tiny_model: Path) -> None:
    from peft import LoraConfig as PeftLora

    model = shaken(loaded(tiny_model, LoraConfig(rank=2)))
    first = dict(whole_weights(model))
    model.add_adapter("teacher", PeftLora(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert all(torch.equal(v, first[k]) for k, v in whole_weights(model))
    model.set_adapter("teacher")
    second = dict(whole_weights(model))
    key = "model.layers.0.self_attn.q_proj.weight"
    module = model.get_base_model().model.layers[0].self_attn.q_proj
    delta = module.get_delta_weight("teacher")
    assert torch.allclose(second[key], module.base_layer.weight + delta)
    assert not torch.allclose(second[key], first[key])


def test_experts_are_named_one_by_one() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=64, num_key_value_heads=1, intermediate_size=48, **shape, **experts
    )
    model = AutoModelForCausalLM.from_config(config)
    named = dict(whole_weights(model))
    fused = model.model.layers[1].mlp.experts
    for number in range(4):
        name = f"model.layers.1.mlp.experts.{number}"
        gate, up = fused.gate_up_proj[number].chunk(2)
        assert torch.equal(named[f"{name}.gate_proj.weight"], gate)
        assert torch.equal(named[f"{name}.up_proj.weight"], up)
        assert torch.equal(named[f"{name}.down_proj.weight"], fused.down_proj[number])
    assert not any("gate_up" in name for name in named)


def test_the_process_is_as_it_was(tiny_model: Path, llms: list[Any]) -> None:
    def state() -> Any:
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            torch.get_rng_state().tolist(),
            torch.set_num_threads,
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
        )

    model, tokenizer = loaded(tiny_model), load_tokenizer(str(tiny_model))
    before = state()
    engine = VLLMEngine(model, tokenizer, str(tiny_model), 3, CONTEXT)
    assert state() == before
    engine.sync(model, "0")
    assert state() == before
    engine.generate(ASKED)
    assert state() == before
    engine.close()
    engine.close()
    assert llms[0].events[-1:] == ["shutdown"]
    assert llms[0].events.count("shutdown") == 1


def test_a_stop_on_the_way_leaves_nothing_behind(tiny_model: Path, llms: list[Any]) -> None:
    model = loaded(tiny_model)
    engine = started(tiny_model, model)
    engine.sync(model, "0")

    def stop(number: int, completion: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(ASKED, stop)
    assert llms[0].events[-1] == ("abort", 3)
    assert engine.generate(ASKED) == wanted(tiny_model, model)


def test_memory_is_given_back_on_a_gpu_only(tiny_model: Path, llms: list[Any]) -> None:
    model = loaded(tiny_model)
    engine = started(tiny_model, model)
    with pytest.raises(ValueError, match="sync first"):
        engine.generate(ASKED)
    engine.sync(model, "0")
    assert not engine.rest()
    assert engine.generate(ASKED) == wanted(tiny_model, model)
    engine._sleeps = True  # as on a GPU
    assert engine.rest()
    assert engine.rest()  # once
    with pytest.raises(ValueError, match="sync first"):
        engine.generate(ASKED)
    engine.sync(model, "1")
    assert llms[0].events[2:] == [
        ("sleep", 2),
        ("wake up", "weights"),
        "reload_weights",
        ("wake up", "kv_cache"),
        "reset",
    ]


def test_weights_that_are_not_taken_over_are_noticed(
    tiny_model: Path, llms: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake_vllm.Weights.load

    def without_head(self: Any, named: Any) -> None:
        real(self, [(name, tensor) for name, tensor in named if name != "lm_head.weight"])

    monkeypatch.setattr(fake_vllm.Weights, "load", without_head)
    model = loaded(tiny_model)
    with pytest.raises(UserError, match=r"use engine\.kind hf"):
        started(tiny_model, model).sync(model, "0")


def test_probabilities_that_are_not_finite(
    tiny_model: Path, llms: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_model)
    engine = started(tiny_model, model)
    engine.sync(model, "0")
    answer = ([4, 5], [-1.0, float("nan")], "length")
    monkeypatch.setattr(fake_vllm.Weights, "answer", lambda *args: answer)
    with pytest.raises(UserError, match="no finite probabilities"):
        engine.generate(ASKED)


# -- runs ------------------------------------------------------------------------------------------


Words = Callable[..., list[str]]


def test_a_run(
    train_words: Words, llms: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resd.cli import main

    sleeps: list[Any] = []
    real = VLLMEngine.rest
    monkeypatch.setattr(
        VLLMEngine, "rest", lambda self: (sleeps.append(len(llms[0].events)), real(self))[1]
    )
    assert main(train_words(engine__kind="vllm", method__reflector="student")) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "train/sampler_gap" in row]
    assert len(rows) == 4
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows)
    (llm,) = llms
    assert llm.events == ["reload_weights", "reset"] * 5 + ["shutdown"]
    assert sleeps == [2, 4, 6, 8]  # before each update
    assert main(["eval", str(tmp_path / "run"), "--samples", "1"]) == 0
    assert llms[1].events == ["reload_weights", "reset", "shutdown"]


def test_an_engine_that_cannot_start(
    train_words: Words,
    llms: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from resd.cli import main

    def broken(self: Any, **words: Any) -> None:
        raise ValueError("No available memory for the cache blocks.\nTry more.")

    monkeypatch.setattr(fake_vllm.LLM, "__init__", broken)
    assert main(train_words(engine__kind="vllm")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "vLLM cannot start: No available memory" in error
    assert "engine.memory" in error
    assert not (tmp_path / "run").exists()
