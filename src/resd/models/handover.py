"""The weights of a model for an engine that keeps a copy: names and tensors as in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch

from resd.backend.tensors import whole_tensor
from resd.models.lora import each_merged_weight, has_adapters
from resd.models.wrapped import bare

Named = tuple[str, torch.Tensor]

_LAYER = re.compile(r"^.*?\.\d+\.")


def whole_weights(model: Any) -> Iterator[Named]:
    """Every weight of a model by the name that its published checkpoint gives it, layer by layer.

    Adapters are added in, the model stays as it is. Tied weights appear under every name: an engine
    that keeps packed copies would go on with an old head if it were named by its embedding alone.
    Experts that `transformers` keeps fused come one by one, as in the files.

    Weights that are spread over several processes are gathered one at a time: all of them iterate
    together.

    Args:
        model: the student or a teacher; an adapter that is switched off is left out.
    """
    base = bare(model)
    named = each_merged_weight(model) if has_adapters(model) else _state(model)
    for _, layer in groupby(named, key=lambda item: _layer(item[0])):
        yield from _as_in_files(base, ((name, whole_tensor(tensor)) for name, tensor in layer))


def _state(model: Any) -> Iterator[Named]:
    for name, tensor in model.state_dict().items():
        yield name, tensor.detach()


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return found.group() if found else ""


def _as_in_files(model: Any, layer: Iterable[Named]) -> Iterable[Named]:
    from transformers.core_model_loading import revert_weight_conversion

    named: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(layer))
    return named.items()
