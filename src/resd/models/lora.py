"""Adapters (LoRA): where they go, and the weights that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from resd.config import LoraConfig
from resd.errors import UserError
from resd.models.wrapped import text_test


def has_adapters(model: Any) -> bool:
    """Whether a model carries adapters of peft."""
    return hasattr(model, "peft_config")


def add_adapters(model: Any, lora: LoraConfig) -> Any:
    """Fresh adapters on a model.

    `all-linear` means every linear layer of the text model but its head and its routers. Names
    are matched with the ends of the modules' names; a name that only matches parameters, as the
    fused experts of a mixture are, adapts these parameters. See `left_out` for what has none.

    Raises:
        UserError: the settings do not fit the model.
    """
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    if lora.dropout:
        raise UserError(
            f"model.lora.dropout is {lora.dropout}, but the update compares log-probs with those "
            "that the response was sampled by: dropout would make their ratio noise; set it to 0"
        )
    modules, parameters = _targets(model, lora.target_modules)
    settings: dict[str, Any] = {"target_parameters": parameters} if parameters else {}
    try:
        adapted = get_peft_model(
            model,
            PeftLora(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=0.0,
                target_modules=modules,
                task_type="CAUSAL_LM",
                **settings,
            ),
        )
    except Exception as error:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"model.lora does not fit the model: {what}") from None
    return adapted


def left_out(model: Any) -> list[str]:
    """Fused experts that have no adapter, by the ends of their names (`experts.down_proj`)."""
    if not has_adapters(model):
        return []
    base, adapted = model.get_base_model(), set()
    for name, module in base.named_modules():
        for layer in _layers(module):
            adapted.add(f"{_plain(name)}.{getattr(layer, 'parameter_name', 'weight')}")
    names = [
        _plain(name)
        for name, parameter in base.named_parameters()
        if parameter.dim() == 3 and "experts" in name and ".lora_" not in name
    ]
    return sorted({".".join(name.split(".")[-2:]) for name in names if name not in adapted})


def merged_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights with their adapters merged, by the names that the plain model has.

    The model stays as it is. An adapter that is switched off, as for a frozen teacher, is left out.
    """
    return dict(each_merged_weight(model))


@torch.no_grad()
def each_merged_weight(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """`merged_weights` one after the other, so that no second model is ever there."""
    base = model.get_base_model()
    modules = dict(base.named_modules())
    for key, tensor in base.state_dict().items():
        if ".lora_" in key:
            continue
        owner, inside, rest = key.partition(".base_layer.")
        leaf = rest.rpartition("base_layer.")[2]
        if inside:
            for layer in _layers(modules[owner]):
                if getattr(layer, "parameter_name", "weight") == leaf:
                    for delta in _deltas(layer):
                        tensor = (tensor + delta.to(tensor.device)).to(tensor.dtype)
        yield (f"{owner}.{leaf}" if inside else key), tensor


def _deltas(layer: Any) -> Iterator[torch.Tensor]:
    """What the adapters that are switched on add to a layer's weight."""
    if not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A or name in layer.lora_embedding_A:
                yield layer.get_delta_weight(name)


def _layers(module: Any) -> Iterator[Any]:
    """The adapters on one module; those of fused experts wrap each other."""
    from peft.tuners.lora import LoraLayer

    while isinstance(module, LoraLayer):
        yield module
        module = module.base_layer


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")


def _targets(model: Any, wanted: str | list[str]) -> tuple[Any, list[str]]:
    """Modules and parameters to adapt.

    Raises:
        UserError: a name matches nothing, or what cannot carry an adapter.
    """
    is_text = text_test(model)
    linear = {
        n: m for n, m in model.named_modules() if is_text(n) and (_is_linear(m) or _is_embedding(m))
    }
    if wanted == "all-linear":
        head = model.get_output_embeddings()
        names = [n for n, m in linear.items() if _is_linear(m) and m is not head]
        if not names:
            raise UserError(
                "model.lora.target_modules: the model has no linear layers to adapt; name its "
                "modules instead of all-linear"
            )
        return names, []
    if isinstance(wanted, str):
        return wanted, []  # a regular expression: peft says if nothing matches
    modules, parameters = [], []
    for name in wanted:
        hits = [n for n in linear if _ends(n, name)]
        fused = [n for n, p in model.named_parameters() if _ends(n, name) and p.dim() == 3]
        other = [n for n, _ in model.named_modules() if _ends(n, name) and n not in linear]
        modules += hits
        if not hits and fused:
            parameters.append(name)
        elif not hits:
            known = sorted({n.rsplit(".", 1)[-1] for n in linear})
            what = (
                f"matches {other[0]}, which is no plain linear layer"
                if other
                else "matches no module of the model"
            )
            raise UserError(
                f"model.lora.target_modules: {name} {what}; there are {', '.join(known[:20])}"
            )
    return list(dict.fromkeys(modules)), parameters


def _is_linear(module: Any) -> bool:
    """A plain linear layer: routers inherit from it and answer with more than a product."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D) and (
        type(module).forward in (torch.nn.Linear.forward, Conv1D.forward)
    )


def _is_embedding(module: Any) -> bool:
    return isinstance(module, torch.nn.Embedding)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
