"""Loading the student, its tokenizer and the chat format; the forward pass over responses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from resd.config import LoraConfig, ModelConfig
from resd.engines.hf import pad_token_id as pad_token_id
from resd.errors import UserError
from resd.models.smol import smol_directory

transformers.utils.logging.disable_progress_bar()

LAB_MODEL = Path(__file__).parents[1] / "tasks" / "lab" / "model"
_SMALL = 50_000_000


def model_path(path: str) -> str:
    """The place of a model: `lab` ships with the package, `smol` is SmolLM2-135M-Instruct.

    Raises:
        UserError: a directory that is not there, or lacks config, weights or tokenizer.
    """
    if path == "smol":
        return str(smol_directory())
    place = LAB_MODEL if path == "lab" else Path(path)
    if not place.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise UserError(
                f"model.path: there is no model directory {path} (and it is no hub id like "
                "owner/name)"
            )
        return path
    if not (place / "config.json").is_file():
        raise UserError(f"model.path: {path} holds no config.json; is it a Hugging Face model?")
    if not any(place.glob("tokenizer*")):
        raise UserError(
            f"model.path: {path} holds no tokenizer (tokenizer.json, tokenizer_config.json); "
            "save one there with tokenizer.save_pretrained"
        )
    if not any([*place.glob("*.safetensors"), *place.glob("*.bin"), *place.glob("*.index.json")]):
        raise UserError(f"model.path: {path} holds no weights (*.safetensors)")
    return str(place)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check what the method needs of it.

    Raises:
        UserError: it cannot be loaded, has no chat template, or no end token.
    """
    place = model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:
        raise UserError(f"model.path: no tokenizer in {path}: {_first_line(error)}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path: the tokenizer of {path} has no chat template; use an instruction-tuned "
            "model, or add a chat_template.jinja beside its tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {path} has no end token (eos_token)")
    return tokenizer


def load_model(config: ModelConfig) -> Any:
    """Load the student, with fresh adapters if LoRA is configured.

    Raises:
        UserError: it cannot be loaded.
    """
    place = model_path(config.path)
    try:
        model = _load_whole(place, _dtype(config.dtype))
    except Exception as error:
        raise UserError(
            f"model.path: {config.path} cannot be loaded: {_first_line(error)}"
        ) from None
    if config.lora is not None:
        model = _with_adapters(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.to(pick_device(config.device))
    set_threads(model, config.threads)
    return model


def _load_whole(place: str | Path, dtype: Any) -> Any:
    """Load a causal language model, all of it.

    Raises:
        ValueError: weights are missing; `transformers` would fill them with random numbers.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, output_loading_info=True)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, the first: {missing[0]}")
    return model


def _with_adapters(model: Any, lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    settings = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except Exception as error:
        raise UserError(f"model.lora does not fit the model: {_first_line(error)}") from None


def load_weights(model: Any, place: Path) -> None:
    """Put the weights of a checkpoint into a model that is already there.

    Raises:
        OSError, ValueError, RuntimeError: they cannot be read, or do not fit.
    """
    if hasattr(model, "disable_adapter"):
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(model, load_file(place / "adapter_model.safetensors"))
        return
    dtype = next(model.parameters()).dtype
    model.load_state_dict(_load_whole(place, dtype).state_dict())


def save_model(model: Any, place: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save in Hugging Face format, adapters merged into the weights; the model stays as it is.

    Args:
        model: the student.
        place: a directory.
        weights: float32 weights by name, where the model itself computes in a narrower dtype.
    """
    if not hasattr(model, "disable_adapter"):
        model.save_pretrained(place, state_dict=_with_wide(model, weights or {}))
        return
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    adapted: dict[str, Any] = {n: m for n, m in base.named_modules() if isinstance(m, LoraLayer)}
    merged: dict[str, torch.Tensor] = {}
    for key, tensor in base.state_dict().items():
        owner, inside, leaf = key.partition(".base_layer.")
        if inside:
            delta = adapted[owner].get_delta_weight("default") if leaf == "weight" else 0
            merged[f"{owner}.{leaf}"] = (tensor + delta).to(tensor.dtype)
        elif ".lora_" not in key:
            merged[key] = tensor
    base.save_pretrained(place, state_dict=merged)


def pick_device(name: str) -> torch.device:
    """The device by name; `auto` takes an accelerator where there is one."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"model.device: {name} is not usable: {_first_line(error)}") from None
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def set_threads(model: torch.nn.Module, threads: int | None) -> None:
    """Pick the number of CPU threads: threads hurt small models (design.md)."""
    if threads is None:
        small = sum(p.numel() for p in model.parameters()) < _SMALL
        threads = 1 if small else (os.cpu_count() or 1)
    torch.set_num_threads(threads)


def context_length(model_config: Any, limit: int | None) -> int:
    """Most tokens of prompt and response together."""
    own = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    return min(int(own), limit) if limit is not None else int(own)


def read_context_length(config: ModelConfig) -> int:
    """`context_length` without loading the weights."""
    try:
        return context_length(
            AutoConfig.from_pretrained(model_path(config.path)), config.max_context
        )
    except Exception as error:  # a damaged config.json fails in many ways
        raise UserError(f"model.path: {config.path}: {_first_line(error)}") from None


def read_vocabulary_size(config: ModelConfig) -> int | None:
    """Rows of the token embedding without loading the weights; None if the config is silent."""
    text = AutoConfig.from_pretrained(model_path(config.path)).get_text_config()
    return getattr(text, "vocab_size", None)


def _with_wide(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's state with the wide weights in the place of the narrow ones, tied ones too."""
    named = dict(model.named_parameters())
    wide = {named[name].data_ptr(): weight.detach() for name, weight in weights.items()}
    return {key: wide.get(value.data_ptr(), value) for key, value in model.state_dict().items()}


def compute_dtype(config: ModelConfig) -> torch.dtype | None:
    """The dtype to compute in; None for that of the weights."""
    if config.compute_dtype in (None, config.dtype):
        return None
    return getattr(torch, str(config.compute_dtype))  # type: ignore[no-any-return]


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
