"""A model for several processes: its shape everywhere, its weights in one, in as little memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch

from resd.config import ModelConfig
from resd.models.load import (
    checkpoint_gradients,
    compute_dtype,
    load_model,
    model_path,
    pinned_attention,
    read_config,
    set_threads,
)
from resd.models.pins import pin_config, pin_model, read_generation
from resd.models.sizes import on_meta
from resd.models.wrapped import bare

_NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}


class ModelSource:
    """A model by its configuration, as `resd.backend.Source` asks for it.

    Args:
        config: of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.compute = compute_dtype(config)

    def whole(self, *, on_host: bool = False) -> Any:
        """What `load_model` gives, if need be on the CPU."""
        update = {"device": "cpu"} if on_host else {}
        return load_model(self._config.model_copy(update=update))

    def empty(self) -> Any:
        """As `empty_model`."""
        return empty_model(self._config)

    def stored(self) -> Any:
        """As `stored_model`."""
        return stored_model(self._config)


def empty_model(config: ModelConfig) -> Any:
    """What `load_model` gives, on the meta device: every module and no number."""
    place = model_path(config.path)
    own = read_config(place)
    pin_config(own)
    dtype = getattr(own, "dtype", None) if config.dtype == "auto" else config.dtype
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, str(dtype or "float32").removeprefix("torch."))
    model = on_meta(own, config, dtype=dtype, **pinned_attention(own, config.attention))
    base = bare(model)
    base.generation_config = read_generation(place)
    pin_model(base)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    set_threads(model, config.threads)
    return model


def stored_model(config: ModelConfig) -> Any:
    """The model on the CPU, in the dtype of its files, so that it takes no more than they do."""
    update: dict[str, Any] = {"device": "cpu"}
    if config.dtype == "float32" and config.lora is None:
        narrow = _narrow(model_path(config.path))
        if narrow is not None:
            update["dtype"] = str(narrow).removeprefix("torch.")
    return load_model(config.model_copy(update=update))


def _narrow(place: str) -> torch.dtype | None:
    """The dtype of all weights of a directory, if it is a narrow one; by the files' own heads."""
    found = set()
    for file in sorted(Path(place).glob("*.safetensors")):
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            content = json.loads(stream.read(size))
        found |= {v["dtype"] for k, v in content.items() if k != "__metadata__"}
    return _NARROW.get(found.pop()) if len(found) == 1 else None
