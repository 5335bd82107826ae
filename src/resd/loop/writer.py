"""What a model writes about its rollouts: reflections, curations, tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from resd.engines import Request, Sampling
from resd.loop.recorder import Recorder
from resd.loop.rollouts import Sampler
from resd.methods.base import Written
from resd.runs.seeds import derive
from resd.types import ChatMessage, Completion

# Nucleus of reflections and curations, as of rollouts (paper: App. G).
_TOP_P = 0.95
Encode = Callable[[Sequence[ChatMessage]], Sequence[int]]


def writing_requests(
    encode: Encode, what: str, wanted: Sequence[Written], max_new_tokens: int, temperature: float
) -> list[Request]:
    """A request for each text; `what` is part of its seed.

    Args:
        encode: chat messages to token ids, with the assistant header.
        what: `reflection`, `curation`, ...
        wanted: prompts, and the rollouts that they are about.
        max_new_tokens: most tokens of a text.
        temperature: of the sampling; 0 is greedy.
    """
    sampling = Sampling(temperature, _TOP_P, max_new_tokens)
    return [
        Request(tuple(encode(item.prompt)), sampling, derive(item.about.seed, what))
        for item in wanted
    ]


class ModelWriter:
    """Writes by the weights that produced the rollouts, or by a teacher's.

    Args:
        sampler: generates.
        encode: chat messages to token ids, with the assistant header.
        recorder: keeps what is written for the traces.
    """

    def __init__(self, sampler: Sampler, encode: Encode, recorder: Recorder) -> None:
        self._sampler, self._encode, self._recorder = sampler, encode, recorder

    def __call__(
        self,
        what: str,
        wanted: Sequence[Written],
        max_new_tokens: int,
        temperature: float,
        teacher: Any = None,
    ) -> list[Completion]:
        """One completion for each prompt; `what` is traced, and part of the seeds."""
        requests = writing_requests(self._encode, what, wanted, max_new_tokens, temperature)
        if teacher is None:
            outputs = self._sampler.generate(requests, what=what)
        else:
            with teacher.model() as weights:
                outputs = self._sampler.generate(requests, weights, what)
        self._recorder.written(what, wanted, outputs)
        return outputs
