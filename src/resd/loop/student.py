"""The student of a run: its model, the weights that the optimiser updates, and saving it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resd.backend import Backend
from resd.config import ModelConfig
from resd.loop.masters import Masters
from resd.models.head import head_of
from resd.models.lora import left_out
from resd.models.save import save_model, verify_saved
from resd.models.spread import ModelSource


class Student:
    """A model in training, in one process or spread over several.

    Args:
        config: of the model.
        tokenizer: saved beside it.
        backend: the processes that share it.
        warn: told what the user should know of the model.

    Attributes:
        model: for forward passes.
        masters: the float32 weights.
        whole_logits: its logits cannot be made a chunk at a time.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        backend: Backend,
        warn: Callable[[str], None],
    ) -> None:
        self._source = ModelSource(config)
        self._tokenizer, self._backend = tokenizer, backend
        self.model = backend.placed(self._source)
        self.masters = Masters(self.model, None if backend.casts else self._source.compute)
        fused = left_out(self.model)
        if fused:
            warn(
                f"model.lora: fused experts get no adapter ({', '.join(fused)}); "
                "name them in model.lora.target_modules to train them"
            )
        with backend.ready(self.model):
            head, why = head_of(self.model)
        self.whole_logits = head.whole
        if why:
            warn(
                f"model.path: the logits of a whole micro-batch are made at once, because {why}: "
                "the loss takes more memory (lower train.micro_batch_tokens)"
            )

    def frozen_copy(self, model: torch.nn.Module, *, offload: bool = False) -> torch.nn.Module:
        """The model as it was loaded, as `Backend.frozen` gives it."""
        frozen: torch.nn.Module = self._backend.frozen(model, self._source, offload=offload)
        return frozen

    def save(self, place: Path) -> None:
        """Save in Hugging Face format; all processes call it, and process 0 writes."""
        self._saved(place)

    def save_and_verify(self, place: Path) -> None:
        """What is saved is loaded again and compared, before the run calls itself done."""
        model = self._saved(place)
        if model is not None:
            verify_saved(model, place)

    def _saved(self, place: Path) -> Any | None:
        """What was saved, on process 0."""
        model = self._backend.gathered(self.model, self._source)
        if model is not None:
            # Where the backend casts, the model's own weights are the wide ones.
            save_model(model, place, {} if self._backend.casts else self.masters.weights)
            self._tokenizer.save_pretrained(place)
        return model
