"""A vLLM that is none: takes what the real one takes, remembers it, generates by transformers.

It keeps what makes the real one treacherous: weights of its own, a head that is a copy even where
it is tied, a prefix cache that outlives its weights, completions in an order of its own, and a
process that is not as it was.
"""

from __future__ import annotations

import os
import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from resd.engines import HFEngine, Request, Sampling
from resd.models.load import load_tokenizer


class SamplingParams:
    def __init__(self, **words: Any) -> None:
        self.__dict__.update(words)


class Weights:
    """A copy of a model, as a directory says it is shaped, filled with what is handed over."""

    def __init__(self, place: str, dtype: str = "float32") -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(place)
        config.tie_word_embeddings = False
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        self.model.eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():  # nothing that was there before, as with load_format "dummy"
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.tokenizer = load_tokenizer(place)
        self.names: list[str] = []
        self._cache: dict[tuple[int, ...], Any] = {}

    def load(self, named: Any) -> None:
        own = self.model.state_dict()
        self.names = []
        for name, tensor in named:
            assert own[name].shape == tensor.shape
            own[name].copy_(tensor)
            self.names.append(name)

    def forget(self) -> None:
        self._cache.clear()

    def answer(self, prompt: tuple[int, ...], words: Any) -> Any:
        """Ids, log-probs and finish reason; the first token as its prefix is cached."""
        sampling = Sampling(words["temperature"], words["top_p"], words["max_tokens"])
        engine = HFEngine(self.model, self.tokenizer, 1, 10_000)
        engine._reader.end_ids = list(words["stop_token_ids"])
        (made,) = engine.generate([Request(prompt, sampling, words["seed"])])
        first = self._cache.setdefault((*prompt, words["seed"]), made)
        ids = [first.token_ids[0], *made.token_ids[1:]]
        log_probs = [first.log_probs[0], *made.log_probs[1:]]
        return ids, log_probs, made.finish_reason


class LLM:
    made: ClassVar[list[LLM]] = []

    def __init__(self, **words: Any) -> None:
        self.words = words
        self.environment = dict(os.environ)
        self.weights = Weights(words["model"], words["dtype"])
        self.events: list[Any] = []
        self.params: list[SamplingParams] = []
        self.held: list[dict[str, torch.Tensor]] = []
        self.llm_engine = self
        self.engine_core = SimpleNamespace(shutdown=lambda: self.events.append("shutdown"))
        self._asked: list[Any] = []
        LLM.made.append(self)
        random.seed(words["seed"]), np.random.seed(words["seed"]), torch.manual_seed(words["seed"])
        torch.set_num_threads = lambda number: None  # type: ignore[assignment]
        torch.set_float32_matmul_precision("high")

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        torch.rand(3)
        self.weights.load(kwargs["weights_iterator"])
        self.held.append({k: v.clone() for k, v in self.weights.model.state_dict().items()})
        self.events.append(method)

    def reset_prefix_cache(self) -> None:
        self.weights.forget()
        self.events.append("reset")

    def sleep(self, level: int) -> None:
        self.events.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(("wake up", *tags))

    def add_request(self, name: str, prompt: Any, params: SamplingParams) -> None:
        self.params.append(params)
        self._asked.append((name, tuple(prompt["prompt_token_ids"]), params))

    def step(self) -> list[Any]:
        """The last request first; what is not finished is told too."""
        random.random(), np.random.rand(), torch.rand(2)
        name, prompt, params = self._asked.pop()
        ids, log_probs, reason = self.weights.answer(prompt, vars(params))
        rows = [{t: SimpleNamespace(logprob=p)} for t, p in zip(ids, log_probs, strict=True)]
        done = SimpleNamespace(token_ids=ids, logprobs=rows, finish_reason=reason)
        going = [SimpleNamespace(request_id=asked[0], finished=False) for asked in self._asked]
        return [*going, SimpleNamespace(request_id=name, finished=True, outputs=[done])]

    def abort_request(self, names: list[str]) -> None:
        self.events.append(("abort", len(names)))
        self._asked = [asked for asked in self._asked if asked[0] not in names]


def install(monkeypatch: pytest.MonkeyPatch, place: Path, version: str = "0.32.0") -> type[LLM]:
    """Let `import vllm` find this; returns the class, whose `made` holds every LLM made."""
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    about = place / "site" / f"vllm-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(place / "site"))
    LLM.made = []
    return LLM
