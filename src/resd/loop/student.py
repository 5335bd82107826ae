"""The student of a run: its model, the weights that the optimiser updates, and saving it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resd.backend import Backend
from resd.config import ModelConfig
from resd.loop.masters import Masters
from resd.models.head import head_of
from resd.models.load import compute_dtype, load_model
from resd.models.lora import left_out
from resd.models.save import save_model, verify_saved
from resd.models.spread import empty_model, stored_model


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
        self._config, self._tokenizer, self._backend = config, tokenizer, backend
        self.model = self._loaded()
        self.masters = Masters(self.model, compute_dtype(config) if backend.world == 1 else None)
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
        """The model as it was loaded, in eval mode and without gradients.

        Args:
            model: the student.
            offload: keep it in the host's memory, as `Backend.shard` says.
        """
        if self._backend.world == 1:
            return copy.deepcopy(model).requires_grad_(False).eval()
        # What is sharded cannot be copied, and not all of it is here.
        frozen: torch.nn.Module = self._loaded(frozen=True, offload=offload)
        return frozen.eval()

    def save(self, place: Path) -> None:
        """Save in Hugging Face format; all processes call it, and process 0 writes."""
        whole = self._gathered()
        if whole is not None:
            self._write(*whole, place)

    def save_and_verify(self, place: Path) -> None:
        """What is saved is loaded again and compared, before the run calls itself done."""
        whole = self._gathered()
        if whole is not None:
            self._write(*whole, place)
            verify_saved(whole[0], place)

    def _write(self, model: Any, weights: Any, place: Path) -> None:
        save_model(model, place, weights)
        self._tokenizer.save_pretrained(place)

    def _gathered(self) -> tuple[Any, Any] | None:
        """A model of one process with the weights of now, and its float32 weights by name."""
        if self._backend.world == 1:
            return self.model, self.masters.weights
        model = named = None
        if self._backend.main:
            model = load_model(self._config.model_copy(update={"device": "cpu"}))
            named = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self._backend.tensors(self.model):
                if named is not None:
                    named[name].copy_(tensor)
        return None if model is None else (model, {})

    def _loaded(self, *, frozen: bool = False, offload: bool = False) -> Any:
        if self._backend.world == 1:
            return load_model(self._config)
        source = self._backend.on_main_alone(lambda: stored_model(self._config))
        model = empty_model(self._config)
        if frozen:
            model.requires_grad_(False)
        return self._backend.shard(model, compute_dtype(self._config), source, offload=offload)
