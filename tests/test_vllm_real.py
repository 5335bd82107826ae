"""The engines on a real vLLM (`.ci/vllm`): what they generate is what the HF engine generates."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from two import torchrun

from resd.api import resume_run, start_run
from resd.cli import main
from resd.config import LoraConfig, ModelConfig, load_config
from resd.engines import Completion, HFEngine, Request, Sampling
from resd.engines.vllm import VLLMEngine
from resd.engines.vllm_http import Server
from resd.engines.vllm_server import VLLMServerEngine
from resd.errors import UserError
from resd.measure import measure
from resd.models.load import load_model, load_tokenizer
from resd.runs import read_metrics

pytest.importorskip("vllm", reason="needs vLLM: run .ci/vllm")
pytestmark = pytest.mark.slow

CONTEXT = 128
GREEDY = [
    Request(tuple((7 * i + 3 * j + 5) % 300 for j in range(5 + i)), Sampling(0.0, 1.0, 12), i)
    for i in range(16)
]
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def stand_in(place: Path, kind: str = "qwen3", **over: Any) -> Path:
    """A random model of a family, with the lab's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny.save_model(place, hidden=64, heads=2)
    tokenizer = load_tokenizer(str(place))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**SHAPE, **ids, **over})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


def loaded(place: Path, lora: LoraConfig | None = None) -> Any:
    return load_model(ModelConfig(path=str(place), device="cpu", lora=lora, threads=1))


@torch.no_grad()
def shaken(model: Any, seed: int = 1, by: float = 0.05) -> Any:
    """Another policy, of the same model: every trained weight moves."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return model


def gap(engine: Any, model: Any, tokenizer: Any, asked: list[Request] = GREEDY) -> float:
    """The largest difference of a log-prob from the HF engine's; infinite for other tokens."""
    found = engine.generate(asked)
    wanted = HFEngine(model, tokenizer, 8, CONTEXT).generate(asked)
    return apart(found, wanted)


def apart(found: list[Completion], wanted: list[Completion]) -> float:
    plain = [(c.token_ids, c.text, c.answer, c.finish_reason) for c in found]
    if plain != [(c.token_ids, c.text, c.answer, c.finish_reason) for c in wanted]:
        return float("inf")
    pairs = zip(found, wanted, strict=True)
    return max(
        abs(a - b)
        for mine, theirs in pairs
        for a, b in zip(mine.log_probs or (), theirs.log_probs or (), strict=True)
    )


Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines in this process, and ends them."""
    made: list[VLLMEngine] = []

    def go(place: Path, model: Any) -> VLLMEngine:
        tokenizer = load_tokenizer(str(place))
        made.append(VLLMEngine(model, tokenizer, str(place), 8, CONTEXT))
        return made[-1]

    yield go
    for engine in made:
        engine.close()
    assert not torch.distributed.is_initialized()


FAMILIES: dict[str, tuple[str, dict[str, Any], LoraConfig | None]] = {
    "tied": ("qwen3", {"tie_word_embeddings": True}, None),
    "untied": ("qwen3", {"tie_word_embeddings": False}, None),
    "llama": ("llama", {"tie_word_embeddings": True}, None),
    "lora": ("qwen3", {"tie_word_embeddings": True}, LoraConfig(rank=4)),
    "lora on a tied head": (
        "qwen3",
        {"tie_word_embeddings": True},
        LoraConfig(rank=4, target_modules=["q_proj", "lm_head"]),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_and_log_probs_are_those_of_the_hf_engine(
    family: str, tmp_path: Path, start: Start
) -> None:
    kind, over, lora = FAMILIES[family]
    place = stand_in(tmp_path / "model", kind, **over)
    model, tokenizer = loaded(place, lora), load_tokenizer(str(place))
    engine = start(place, model)
    engine.sync(model, "0")
    assert gap(engine, model, tokenizer) < 1e-5
    before = copy.deepcopy(shaken(model).state_dict())
    assert gap(engine, model, tokenizer) > 1e-3  # it has a copy
    engine.sync(model, "1")
    assert gap(engine, model, tokenizer) < 1e-5
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    if lora is not None:  # as a frozen teacher hands them over
        with model.disable_adapter():
            engine.sync(model, "teacher")
            assert gap(engine, model, tokenizer) < 1e-5
        assert gap(engine, model, tokenizer) > 1e-3


def test_experts_are_taken_over_or_refused(tmp_path: Path, start: Start) -> None:
    """vLLM 0.32 on a CPU loads fused experts, but leaves new ones in the wrong layout."""
    place = stand_in(tmp_path / "model", "qwen3_moe", **EXPERTS)
    model, tokenizer = loaded(place), load_tokenizer(str(place))
    engine = start(place, model)
    try:
        engine.sync(model, "0")
    except UserError as error:
        assert "use engine.kind hf" in str(error)
    else:
        assert gap(engine, model, tokenizer) < 1e-5


def test_one_engine_in_a_process_that_stays_as_it_was(tmp_path: Path, start: Start) -> None:
    place = stand_in(tmp_path / "model")
    model, tokenizer = loaded(place), load_tokenizer(str(place))
    torch.set_num_threads(1)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)

    def state() -> Any:
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.set_num_threads,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
        )

    before = state()
    engine = start(place, model)
    engine.sync(model, "0")
    sampled = [
        Request(request.prompt_ids, Sampling(1.0, 0.9, 12), 1000 + i)
        for i, request in enumerate([*GREEDY, *GREEDY[:4]])
    ]
    done: list[int] = []
    made = engine.generate(sampled, lambda i, completion: done.append(i))
    assert state() == before
    assert sorted(done) == list(range(20))
    # Prompts of which a half was seen before, in another order, in other company: the same.
    mixed = list(range(20))
    random.Random(0).shuffle(mixed)
    again: dict[int, Completion] = {}
    for part in (mixed[:3], mixed[3:4], mixed[4:]):
        for i, completion in zip(part, engine.generate([sampled[i] for i in part]), strict=True):
            again[i] = completion
    assert apart([again[i] for i in range(20)], made) < 1e-5
    assert [made[i].token_ids for i in range(4)] != [made[16 + i].token_ids for i in range(4)]
    # The log-probs are those of the model, not of the nucleus.
    for request, completion in zip(sampled, made, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, ids[0, len(request.prompt_ids) :, None])[:, 0]
        assert torch.allclose(own, torch.tensor(completion.log_probs), atol=1e-5)
    # An end token ends a response, is part of its ids and of no text.
    first = made[0].token_ids[0]
    engine._reader.end_ids = [first]
    (ended,) = engine.generate(sampled[:1])
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((first,), "", "stop")
    engine._reader.end_ids = [tokenizer.eos_token_id]
    # An error on the way leaves an engine that works.
    with pytest.raises(ZeroDivisionError):
        engine.generate(sampled, lambda i, completion: 1 // 0)
    engine.sync(model, "1")
    assert apart(engine.generate(sampled), made) < 1e-5
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    engine.sync(model, "2")
    with pytest.raises(Exception, match="no finite probabilities"):
        engine.generate(GREEDY[:2])


# -- whole runs ------------------------------------------------------------------------------------


def settings(model: Path, output: Path, **over: Any) -> list[tuple[str, Any]]:
    plain = {"train__steps": 3, "train__inner_iterations": 1, "model__device": "cpu"}
    values = tiny.settings(model, output, **{**plain, "engine__kind": "vllm", **over})
    return list(values.items())


def rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run) if "train/sampler_gap" in row]


def final(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(run / "final" / "model.safetensors"))


def test_three_steps_and_a_resume(tmp_path: Path) -> None:
    place = stand_in(tmp_path / "model")
    whole = start_run(load_config(None, settings(place, tmp_path / "whole", method="resd")))
    assert [row["step"] for row in rows(whole)] == [1, 2, 3]
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows(whole))
    moved = (
        final(whole)["model.embed_tokens.weight"]
        - loaded(place).state_dict()["model.embed_tokens.weight"]
    )
    assert moved.abs().max() > 1e-3
    part = start_run(
        load_config(None, settings(place, tmp_path / "part", method="resd", train__steps=2))
    )
    resume_run(part, steps=3)
    assert all(
        torch.allclose(value, final(part)[name], atol=1e-6) for name, value in final(whole).items()
    )
    assert not torch.distributed.is_initialized()
    result, _ = measure(str(whole), [("evaluation.samples", 2)])
    last = [row for row in read_metrics(whole) if "eval/mean@2" in row][-1]
    assert result.row()["eval/mean@2"] == pytest.approx(last["eval/mean@2"], abs=0.5)


def test_a_teacher_that_reflects_by_its_own_weights(tmp_path: Path) -> None:
    place = stand_in(tmp_path / "model")
    over = {"method__reflector": "teacher", "method__teacher__kind": "frozen"}
    lora = {"model__lora__rank": 4, "train__lr": 1e-2}
    run = start_run(
        load_config(None, settings(place, tmp_path / "run", method="resd", **over, **lora))
    )
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows(run))


def test_two_processes_have_an_engine_each(tmp_path: Path) -> None:
    place = stand_in(tmp_path / "model")
    one = start_run(load_config(None, settings(place, tmp_path / "one", method="resd")))
    words = ["train", *tiny.arguments(dict(settings(place, tmp_path / "two", method="resd")))]
    assert torchrun(tmp_path, [words], seconds=500) == [[0], [0]]
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows(tmp_path / "two"))
    tiny.same_traces(one, tmp_path / "two")
    other = final(tmp_path / "two")
    assert all(torch.allclose(value, other[name], atol=1e-5) for name, value in final(one).items())


# -- a server --------------------------------------------------------------------------------------


class Running:
    """A server in a process of its own."""

    def __init__(self, model: Path, *words: str, log: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
            "--max-model-len", str(CONTEXT), "--max-num-seqs", "8", "--enforce-eager", *words,
        ]  # fmt: skip
        self._environment = {
            **os.environ,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            **environment,
        }
        self._log = log.open("ab")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=self._log
        )
        until = time.monotonic() + 400
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(1)
        raise AssertionError(f"the server did not start: see {self._log.name}")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Running]]:
    place = stand_in(tmp_path_factory.mktemp("served") / "model")
    running = Running(place, log=place.parent / "log")
    yield place, running
    running.stop()


def test_a_server_generates_as_the_hf_engine(
    served: tuple[Path, Running], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, running = served
    model, tokenizer = loaded(place), load_tokenizer(str(place))
    engine = VLLMServerEngine(model, tokenizer, Server(running.url, 60), 8, CONTEXT)
    for version in range(3):
        engine.sync(shaken(model, version), str(version))
        assert gap(engine, model, tokenizer) < 1e-5
    sampled = [Request(r.prompt_ids, Sampling(1.0, 0.9, 12), 50 + r.seed) for r in GREEDY]
    done: list[int] = []
    made = engine.generate(sampled, lambda i, completion: done.append(i))
    assert sorted(done) == list(range(16))
    assert apart(engine.generate(sampled[::-1])[::-1], made) < 1e-5
    # A server that was started anew has the weights of its files; it gets the run's again.
    running.stop()
    running.start()
    assert gap(engine, model, tokenizer) < 1e-5
    engine.close()
    over = {
        "engine__kind": "vllm_server",
        "engine__url": running.url,
        "model__max_context": CONTEXT,
    }
    run = start_run(load_config(None, settings(place, tmp_path / "run", method="sdpo", **over)))
    assert len(rows(run)) == 3
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows(run))
    words = [
        f"--{key}={value}" for key, value in settings(place, tmp_path / "x", method="sdpo", **over)
    ]
    assert main(["train", *words, "--model.max_context=200"]) == 2
    assert "--max-model-len 200" in capsys.readouterr().err


def test_adapters_by_themselves(tmp_path: Path) -> None:
    place = stand_in(tmp_path / "model")
    switch = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    words = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
    running = Running(place, *words, log=tmp_path / "log", **switch)
    try:
        model, tokenizer = loaded(place, LoraConfig(rank=4)), load_tokenizer(str(place))
        engine = VLLMServerEngine(
            model, tokenizer, Server(running.url, 60), 8, CONTEXT, adapters=True
        )
        for version in range(3):
            engine.sync(shaken(model, version), str(version))
            assert gap(engine, model, tokenizer) < 1e-5
        with model.disable_adapter():
            engine.sync(model, "teacher")
            assert gap(engine, model, tokenizer) < 1e-5
        engine.sync(model, "student")
        assert gap(engine, model, tokenizer) < 1e-5
        known = json.load(urllib.request.urlopen(f"{running.url}/v1/models"))["data"]
        assert len(known) == 2  # the old ones are gone
        engine.close()
        known = json.load(urllib.request.urlopen(f"{running.url}/v1/models"))["data"]
        assert len(known) == 1
    finally:
        running.stop()
