"""Generation with vLLM in this process, on a copy of the weights (`engine.kind = "vllm"`).

vLLM's own API: token ids in and out, weights handed over as tensors. Log-probs are the raw ones,
before temperature and nucleus: those of the trainer's own softmax.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from resd.backend import Backend, Local
from resd.config import RunConfig
from resd.engines.base import EngineKind, OnDone, Request
from resd.engines.completion import CompletionReader, check_room, diverged
from resd.engines.probe import check_copy
from resd.engines.vllm_ready import check_here
from resd.errors import UserError, one_line
from resd.models.handover import whole_weights
from resd.models.load import compute_dtype, model_path
from resd.models.wrapped import bare
from resd.runs.seeds import random_state, set_random_state
from resd.types import Completion

# A share of a GPU that leaves room for a trainer; on a CPU bytes of KV cache.
GPU_SHARE, CPU_CACHE = 0.3, 1 << 30
# vLLM reads these when it is imported; what the user has set stays.
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are the trainer's to set
}
# The worker must live in this process: tensors are handed to it.
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class VLLMEngine:
    """An `LLM` beside the trainer's model.

    Generates nothing before the first `sync`. What vLLM changes of the process (random states,
    threads, the default process group) is put back.

    Args:
        model: the student; says the dtype and the device.
        tokenizer: the student's.
        path: where the model's config lies; weights come by `sync` alone.
        batch_size: most responses generated at once.
        max_context: most tokens of prompt and response together.
        memory: share of the device's memory; None for the default.
        sleep: give a GPU's memory back in `rest`.
        dtype: to compute in; the model's own by default.
        backend: the processes that share the model; each has an engine of its own.

    Raises:
        UserError: vLLM cannot start: what it says, and what to do.
    """

    shares_weights = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        path: str,
        batch_size: int,
        max_context: int,
        memory: float | None = None,
        sleep: bool = True,
        dtype: torch.dtype | None = None,
        backend: Backend | None = None,
    ) -> None:
        self._reader = CompletionReader(model, tokenizer)
        self._backend = backend or Local()
        self._max_context = max_context
        on_gpu = next(model.parameters()).device.type != "cpu"
        self._sleeps = sleep and on_gpu
        self._awake, self._synced, self._number = True, False, 0
        dtype = dtype or next(model.parameters()).dtype
        self._tolerance = 1e-3 if dtype == torch.float32 else 0.1
        self._checked = False
        had_group = torch.distributed.is_initialized()
        room: dict[str, Any] = {"gpu_memory_utilization": memory or GPU_SHARE}
        if not on_gpu and memory is None:
            room = {"kv_cache_memory_bytes": CPU_CACHE}
        if self._backend.world > 1:
            # The processes and their group are there already: vLLM starts none.
            room["distributed_executor_backend"] = "external_launcher"
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        with _process_kept(), _environment(_IN_PROCESS):
            vllm: Any = importlib.import_module("vllm")
            self._params: Any = vllm.SamplingParams
            try:
                llm = vllm.LLM(
                    model=path,
                    load_format="dummy",
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=max_context,
                    max_num_seqs=batch_size,
                    enforce_eager=not on_gpu,
                    enable_prefix_caching=True,
                    enable_sleep_mode=self._sleeps,
                    skip_tokenizer_init=True,
                    # Nothing of the model's own files: no top-k, no penalty.
                    generation_config="vllm",
                    logprobs_mode="raw_logprobs",
                    hf_overrides=_overrides(model),
                    seed=0,
                    **room,
                )
            except Exception as error:
                raise UserError(f"engine.kind vllm: vLLM cannot start: {_advice(error)}") from None
        self._llm: Any = llm
        self._end = weakref.finalize(self, _shut_down, llm, had_group)

    @torch.no_grad()
    def sync(self, model: torch.nn.Module, version: str) -> None:
        """Copy the weights of a model, with its adapters added in; forget what they had cached.

        Raises:
            UserError: vLLM does not generate with them; tried the first time.
        """
        with _process_kept():
            if not self._awake:
                self._llm.wake_up(tags=["weights"])
            weights = {"weights_iterator": whole_weights(model)}
            self._llm.collective_rpc("reload_weights", kwargs=weights)
            if not self._awake:
                self._llm.wake_up(tags=["kv_cache"])
            self._llm.reset_prefix_cache()
        self._awake = self._synced = True
        if not self._checked:
            check_copy(self, model, "vllm", self._tolerance, self._backend)
            self._checked = True

    def rest(self) -> bool:
        """Give the GPU's memory back until the next `sync`."""
        if not self._sleeps or not self._awake:
            return not self._awake
        with _process_kept():
            self._llm.sleep(level=2)  # the weights are thrown away: new ones follow an update
        self._awake = self._synced = False
        return True

    def close(self) -> None:
        """End vLLM, and the process group if it was vLLM that opened it."""
        self._llm = None
        self._end()

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None
    ) -> list[Completion]:
        """One completion for each request, in order.

        Raises:
            ValueError: a prompt fills the whole context, or no weights were handed over.
            UserError: the model's probabilities are not finite any more.
        """
        if not requests:
            return []
        check_room(requests, self._max_context)
        if not self._synced:
            raise ValueError("vLLM holds no weights yet: call sync first")
        with _process_kept():
            return self._run(requests, on_done)

    def _run(self, requests: Sequence[Request], on_done: OnDone | None) -> list[Completion]:
        engine = self._llm.llm_engine
        places: dict[str, int] = {}
        done: dict[int, Completion] = {}
        try:
            for place, request in enumerate(requests):
                self._number += 1
                name = str(self._number)
                places[name] = place
                prompt = {"prompt_token_ids": list(request.prompt_ids)}
                engine.add_request(name, prompt, self._sampling(request))
            while len(done) < len(requests):
                for output in engine.step():
                    if output.finished:
                        place = places.pop(output.request_id)
                        done[place] = self._completion(requests[place], output.outputs[0])
                        if on_done is not None:
                            on_done(place, done[place])
        except BaseException:
            engine.abort_request(list(places))
            raise
        return [done[place] for place in range(len(requests))]

    def _sampling(self, request: Request) -> Any:
        limit = min(request.sampling.max_new_tokens, self._max_context - len(request.prompt_ids))
        return self._params(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=limit,
            seed=request.seed,
            stop_token_ids=self._reader.end_ids,
            logprobs=0,  # of the chosen token alone
            detokenize=False,
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM broke a response off: {output.finish_reason}")
        ids = [int(token) for token in output.token_ids]
        pairs = zip(output.logprobs, ids, strict=True)
        log_probs = [float(found[token].logprob) for found, token in pairs]
        if not all(map(math.isfinite, log_probs)):
            raise diverged()
        return self._reader.read(request, ids, log_probs)


# -- the process -----------------------------------------------------------------------------------


@contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what vLLM changes of a process: random states, threads, matmul precision."""
    state = random_state()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads  # on a CPU vLLM replaces the very function
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        set_random_state(state)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _shut_down(llm: Any, had_group: bool) -> None:
    """The engine first, then the group that its worker talks in."""
    llm.llm_engine.engine_core.shutdown()
    if not had_group and torch.distributed.is_initialized():
        state = importlib.import_module("vllm.distributed.parallel_state")
        state.destroy_model_parallel()
        state.destroy_distributed_environment()
    gc.collect()


def _overrides(model: Any) -> dict[str, Any]:
    """What the model is, where its files say something else: an adapter parts tied weights."""
    base = bare(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = any(hasattr(module, "base_layer") for module in (head, embedding))
    return {"tie_word_embeddings": False} if adapted else {}


def _advice(error: Exception) -> str:
    text = one_line(str(error))[:300] or type(error).__name__
    if "memory" in text.lower() or "kv cache" in text.lower():
        return f"{text}; set engine.memory, or lower model.max_context or rollout.batch_size"
    return text


def _make(
    config: RunConfig, model: Any, tokenizer: Any, context: int, backend: Backend
) -> VLLMEngine:
    return VLLMEngine(
        model,
        tokenizer,
        model_path(config.model.path),
        batch_size=config.rollout.batch_size,
        max_context=context,
        memory=config.engine.memory,
        sleep=config.engine.sleep is not False,
        # Shards are wide whatever the model computes in.
        dtype=compute_dtype(config.model),
        backend=backend,
    )


ENGINE = EngineKind(options=("memory", "sleep"), check=check_here, make=_make)
