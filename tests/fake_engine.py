"""An engine like one in another process: it has weights of its own, copied at sync."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch

from resd.engines import Completion, HFEngine, Request


class CopyingEngine:
    """Samples from a copy of the weights; can be stale, off, or made to write reflections.

    Args:
        setup: of the run.
        shares: what it says of itself.
        offset: added to the log-probs that it reports.
        stale: sync is ignored after the first time.
        unfinished: every how manieth completion ends inside its thinking; 0 for none.
        writes: answer prompts for JSON with a lesson instead of the model's own tokens.
    """

    def __init__(
        self,
        setup: Any,
        *,
        shares: bool = False,
        offset: float = 0.0,
        stale: bool = False,
        unfinished: int = 0,
        writes: bool = False,
    ) -> None:
        self.shares_weights = shares
        self.versions: list[str] = []
        self.calls: list[list[Request]] = []
        self.answers: list[Completion] = []
        self.held: list[dict[str, torch.Tensor]] = []  # the weights at each call
        self._setup, self._offset, self._stale = setup, offset, stale
        self._unfinished, self._writes = unfinished, writes
        self._model: Any = None

    def sync(self, model: torch.nn.Module, version: str) -> None:
        self.versions.append(version)
        if self._model is None or not self._stale:
            self._model = copy.deepcopy(model)

    def rest(self) -> bool:
        return False

    def close(self) -> None: ...

    def generate(self, requests: Sequence[Request], on_done: Any = None) -> list[Completion]:
        setup = self._setup
        real = HFEngine(
            self._model, setup.tokenizer, setup.config.rollout.batch_size, setup.context
        )
        self.calls.append(list(requests))
        self.held.append({k: v.clone() for k, v in self._model.state_dict().items()})
        done = [self._changed(r, c) for r, c in zip(requests, real.generate(requests), strict=True)]
        self.answers += done
        for i, completion in enumerate(done if on_done else ()):
            on_done(i, completion)
        return done

    def _changed(self, request: Request, completion: Completion) -> Completion:
        ids, text, answer = completion.token_ids, completion.text, completion.answer
        log_probs: Any = [value + self._offset for value in completion.log_probs or ()]
        if self._writes:
            prompt = self._setup.tokenizer.decode(request.prompt_ids)
            if '"operations"' in prompt:
                operation = {"op": "ADD", "section": "code", "content": f"lesson {request.seed}"}
                text = answer = json.dumps({"operations": [operation]})
            elif '"what_to_do"' in prompt:
                text = answer = json.dumps({"what_went_wrong": "all", "what_to_do": "the rest"})
        if self._unfinished and request.seed % self._unfinished == 0:
            answer = None
        return Completion(ids, text, completion.finish_reason, tuple(log_probs), answer)
