"""Generation by a vLLM server that runs already (`engine.kind = "vllm_server"`).

Weights are written into a directory that both processes see, and the server reads them from there;
or adapters alone, under a new name each time. It must run in developer mode, see `vllm_http.START`.
"""

from __future__ import annotations

import math
import queue
import shutil
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resd.backend import Backend, Local, whole_tensor
from resd.config import RunConfig
from resd.engines.base import EngineKind, OnDone, Request
from resd.engines.completion import CompletionReader, check_room, diverged
from resd.engines.probe import check_copy
from resd.engines.vllm_http import Server, ServerError
from resd.engines.vllm_ready import check_server, server_of
from resd.errors import UserError, one_line
from resd.models.handover import whole_weights
from resd.models.lora import has_adapters
from resd.types import Completion

_FILE = 2 << 30  # bytes of a file of weights
# What a server takes from the model's own files where a request is silent.
_PLAIN = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "n": 1,
}
# Of a probe's log-probs: the server may compute in another dtype than the trainer.
_TOLERANCE = 0.1
# The server's word for a log-prob that is no number, or minus infinity.
_NO_LOG_PROB = -9999.0


class VLLMServerEngine:
    """Asks a server, many responses at a time.

    Args:
        model: the student; says which tokens end a response.
        tokenizer: the student's.
        server: answers.
        batch_size: most requests under way at once.
        max_context: most tokens of prompt and response together.
        place: directory that the server sees too; None for a temporary one.
        adapters: hand over adapters alone.
        backend: the processes that share the model: all of them ask, the first hands weights over.
    """

    shares_weights = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        server: Server,
        batch_size: int,
        max_context: int,
        place: Path | None = None,
        adapters: bool = False,
        backend: Backend | None = None,
    ) -> None:
        self._reader = CompletionReader(model, tokenizer)
        self._backend = backend or Local()
        self._server, self._batch_size = server, batch_size
        self._max_context, self._adapters = max_context, adapters
        self._base = str(server.get("/v1/models")["data"][0]["id"])
        self._name, self._loaded = self._base, ""
        own = place is None and self._backend.main
        self._own = tempfile.mkdtemp(prefix="resd-weights-") if own else None
        # Several runs may share a directory.
        self._place, self._id = self._backend.told(
            (Path(self._own or str(place)), uuid.uuid4().hex[:12])
        )
        self._count, self._pushes = 0, 0
        self._files: Path | None = None
        self._version = ""
        self._checked = False

    def sync(self, model: torch.nn.Module, version: str) -> None:
        """Hand over the weights of a model, or its adapter; forget what the old ones had cached.

        Raises:
            UserError: they cannot be written, the server does not take them, or it does not
                generate with them, which is tried the first time.
        """
        self._count += 1
        old, self._version = self._files, f"{self._id} {self._count}: {version}"
        self._files = self._place / f"{self._id}-{self._count}"
        if not self._backend.together(lambda: self._write(model)):
            self._files = None
        self._backend.on_main(self._push)
        self._name, self._loaded = self._backend.told((self._name, self._loaded))
        if old is not None and self._backend.main:
            shutil.rmtree(old, ignore_errors=True)
        if not self._checked:
            check_copy(self, model, "vllm_server", _TOLERANCE, self._backend)
            self._checked = True

    def rest(self) -> bool:
        """Nothing to give back: the server has a device of its own."""
        return False

    def close(self) -> None:
        """Remove what was written; the server goes on."""
        if not self._backend.main:
            return
        with suppress(UserError):
            self._unload()
        for place in (self._own, self._files):
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None
    ) -> list[Completion]:
        """One completion for each request, in order.

        Raises:
            ValueError: a prompt fills the whole context, or no weights were handed over.
            UserError: the server is gone, or the model's probabilities are not finite any more.
        """
        if not requests:
            return []
        check_room(requests, self._max_context)
        if not self._version:
            raise ValueError("the server holds no weights yet: call sync first")
        if self._server_has() not in (None, self._version):
            self._push()  # it was started anew meanwhile, or others have used it
        server = self._server.again()
        done: dict[int, Completion] = {}
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        found: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for place in range(len(requests)):
            todo.put(place)

        def work() -> None:
            while True:
                try:
                    place = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    found.put((place, self._ask(server, requests[place])))
                except BaseException as error:  # it is the caller's, who waits for it
                    found.put((place, error))

        for _ in range(min(self._batch_size, len(requests))):
            threading.Thread(target=work, daemon=True, name="resd generate").start()
        try:
            while len(done) < len(requests):
                place, answer = found.get()
                if isinstance(answer, BaseException):
                    raise answer
                done[place] = self._completion(requests[place], answer)
                if on_done is not None:
                    on_done(place, done[place])
        except BaseException:
            with suppress(queue.Empty):
                while True:
                    todo.get_nowait()
            server.hang_up()
            raise
        return [done[place] for place in range(len(requests))]

    # -- weights -------------------------------------------------------------------------------

    def _write(self, model: Any) -> bool:
        """Write the weights, or the adapter that is switched on; False if none is."""
        assert self._files is not None
        try:
            written = _write_adapter if self._adapters else _write_weights
            return written(model, self._files if self._backend.main else None)
        except Exception as error:
            raise UserError(
                f"engine.weights: the weights cannot be written to {self._place}: "
                f"{one_line(str(error))[:200]}"
            ) from None

    def _push(self) -> None:
        """Let the server take what was written last."""
        server = self._server
        if not self._adapters:
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(self._files)}}
            server.post("/collective_rpc", body)
        elif self._files is None:
            self._unload()
        else:
            # A name of its own each time: the server keeps what it has cached by name.
            self._pushes += 1
            name = f"resd-{self._files.name}-{self._backend.rank}.{self._pushes}"
            body = {"lora_name": name, "lora_path": str(self._files)}
            server.post("/v1/load_lora_adapter", body)
            self._unload()
            self._name = self._loaded = name
        self._reset()
        with suppress(ServerError):  # from 0.32 on
            server.post("/update_weight_version", {"new_version": self._version})

    def _reset(self) -> None:
        for wait in (0.0, 0.1, 0.5, 2.0, 10.0):
            time.sleep(wait)
            answer = self._server.post("/reset_prefix_cache")
            if not isinstance(answer, dict) or answer.get("success", True):
                return
        raise UserError(
            f"engine.url: the server at {self._server.url} cannot forget what old weights have "
            "cached: others use it; give the run a server of its own"
        )

    def _unload(self) -> None:
        if self._loaded:
            with suppress(ServerError):  # it may have been started anew
                self._server.post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
        self._name, self._loaded = self._base, ""

    def _server_has(self) -> str | None:
        """The version of the weights that the server holds; None if it cannot tell."""
        try:
            return str(self._server.get("/weight_info")["weight_version"])
        except (ServerError, LookupError, TypeError):
            return None

    # -- requests ------------------------------------------------------------------------------

    def _ask(self, server: Server, request: Request) -> Any:
        sampling, prompt = request.sampling, list(request.prompt_ids)
        return server.post(
            "/v1/completions",
            {
                **_PLAIN,
                "model": self._name,
                "prompt": prompt,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": min(sampling.max_new_tokens, self._max_context - len(prompt)),
                "seed": request.seed,
                "stop_token_ids": self._reader.end_ids,
                "logprobs": 0,  # of the chosen token alone
                "return_token_ids": True,
            },
        )

    def _completion(self, request: Request, answer: Any) -> Completion:
        try:
            choice = answer["choices"][0]
            ids = [int(token) for token in choice["token_ids"]]
            log_probs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            complete = choice["finish_reason"] in ("stop", "length") and len(ids) == len(log_probs)
        except (LookupError, TypeError, ValueError):
            complete = False
        if not complete:
            raise UserError(
                f"engine.url: the server at {self._server.url} answers in a way that is not "
                f"understood: {one_line(str(answer))[:200]}"
            )
        if not all(math.isfinite(value) and value > _NO_LOG_PROB for value in log_probs):
            raise diverged()
        return self._reader.read(request, ids, log_probs)


def _write_adapter(model: Any, place: Path | None) -> bool:
    """Save the adapter that is switched on; False if none is. `place` as for `_write_weights`."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if all(layer.disable_adapters for layer in layers):
        return False
    (name,) = model.active_adapters
    state = {
        key: whole_tensor(tensor.detach())
        for key, tensor in model.state_dict().items()
        if ".lora_" in key
    }
    if place is None:
        return True
    model.save_pretrained(
        place, selected_adapters=[name], save_embedding_layers=False, state_dict=state
    )
    if name != "default":  # peft puts others into a directory of their name
        for file in (place / name).iterdir():
            file.rename(place / file.name)
    return True


def _write_weights(model: Any, place: Path | None) -> bool:
    """All weights as a checkpoint, in files that need not fit into memory together.

    Args:
        model: the student or a teacher; all processes that share it take part.
        place: a directory; None for a process that only takes part.
    """
    named = whole_weights(model)
    try:
        if place is not None:
            _write_files(named, place)
    finally:
        deque(named, maxlen=0)  # another process may still wait for this one's part
    return True


def _write_files(named: Iterator[tuple[str, torch.Tensor]], place: Path) -> None:
    from safetensors.torch import save_file

    place.mkdir(parents=True)
    held: dict[str, torch.Tensor] = {}
    files, size = 0, 0

    def flush() -> None:
        nonlocal held, files, size
        files += 1
        save_file(held, str(place / f"model-{files:05}.safetensors"))
        held, size = {}, 0

    for name, tensor in named:
        # Tied weights stand in the files under each of their names: see `whole_weights`.
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= _FILE:
            flush()
    if held:
        flush()


def _make(
    config: RunConfig, model: Any, tokenizer: Any, context: int, backend: Backend
) -> VLLMServerEngine:
    return VLLMServerEngine(
        model,
        tokenizer,
        server_of(config),
        batch_size=config.rollout.batch_size,
        max_context=context,
        place=config.engine.weights,
        adapters=bool(config.engine.adapters) and has_adapters(model),
        backend=backend,
    )


ENGINE = EngineKind(
    options=("url", "weights", "adapters", "seconds"), check=check_server, make=_make
)
