"""Loading the student and its tokenizer; whatever their files say that a run must not obey."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from resd.config import ModelConfig
from resd.engines.tokens import end_of_turn
from resd.engines.tokens import pad_token_id as pad_token_id
from resd.errors import UserError
from resd.models.lora import add_adapters, has_adapters
from resd.models.pins import pin_config, pin_model, read_generation
from resd.models.save import save_model as save_model
from resd.models.smol import smol_directory
from resd.models.wrapped import check_text, freeze_the_rest

transformers.utils.logging.disable_progress_bar()

LAB_MODEL = Path(__file__).parents[1] / "tasks" / "lab" / "model"
_SMALL = 50_000_000
_CLEANERS = (
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
)


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
    """Load a tokenizer, check what the method needs of it, and pin what must not vary.

    `decode` gives the text of the tokens and nothing else, and a padding token that the model
    does not know gives way to an end token.

    Raises:
        UserError: it cannot be loaded, has no chat template, or no end token that the model knows.
    """
    place = model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"model.path: no tokenizer in {path}: {_first_line(error)}") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path: the tokenizer of {path} has no chat template; use an instruction-tuned "
            "model, or add a chat_template.jinja beside its tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {path} has no end token (eos_token)")
    for name in _CLEANERS:
        if getattr(tokenizer, name, False):
            setattr(tokenizer, name, False)
    rows = _rows(place)
    turn = end_of_turn(tokenizer)
    ends = [i for i in (tokenizer.eos_token_id, turn) if i is not None and i < rows]
    if not ends:
        raise UserError(
            f"model.path: the end token of {path} ({tokenizer.eos_token!r}, token "
            f"{tokenizer.eos_token_id}) lies beyond the model's {rows} tokens: no response could "
            "end; resize the model's embedding, or set an eos_token that it knows"
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        # The usual recipe of a padding token without resizing the model.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    return tokenizer


def load_model(config: ModelConfig) -> Any:
    """Load the student, with fresh adapters if LoRA is configured.

    It comes as its own architecture, in the dtype of the config, without dropout or any other
    randomness, with a generation config that holds token ids alone, and with whatever no text
    goes through (a vision tower) frozen.

    Raises:
        UserError: it cannot be loaded, or cannot be trained.
    """
    place = model_path(config.path)
    try:
        model = load_whole(place, _dtype(config.dtype), config.attention)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model.path: {config.path} cannot be loaded: {_first_line(error)}"
        ) from None
    freeze_the_rest(model)
    if config.lora is not None:
        model = add_adapters(model, config.lora)
    if config.gradient_checkpointing:
        checkpoint_gradients(model)
    model.to(pick_device(config.device))
    set_threads(model, config.threads)
    return model


def load_whole(place: str | Path, dtype: Any, attention: str | None = None) -> Any:
    """Load a causal language model, all of it, as the architecture that its config names.

    Args:
        place: a directory, or a hub id.
        dtype: of the weights.
        attention: an implementation by name; by default the model's own.

    Raises:
        UserError: it is of a kind that cannot be trained.
        ValueError: weights are missing; `transformers` would fill them with random numbers.
    """
    config = read_config(place)
    check_kind(config, place)
    pin_config(config)
    loaded: Any = architecture_of(config).from_pretrained(
        place,
        config=config,
        dtype=dtype,
        generation_config=read_generation(place),
        output_loading_info=True,
        **pinned_attention(config, attention),
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, the first: {missing[0]}")
    pin_model(model)
    check_text(model)
    return model


def check_kind(config: Any, place: str | Path) -> None:
    """Refuse a model that cannot be trained, by its config.

    Raises:
        UserError: it is an encoder-decoder, or quantised.
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"model.path: {place} is an encoder-decoder model ({config.model_type}); only "
            "decoder-only language models can be trained"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"model.path: the weights of {place} are quantised ({method or 'quantization_config'})"
            "; training needs plain ones: take the model's bfloat16 checkpoint, or dequantise it"
        )


def architecture_of(config: Any) -> Any:
    """The class that the config names; the generic one may drop the model around a text model."""
    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.can_generate():
            return found
    return AutoModelForCausalLM


def pinned_attention(config: Any, wanted: str | None) -> dict[str, str]:
    """The attention that is asked for, or that computes what the config says: `sdpa` knows no cap.

    Raises:
        UserError: what is asked for does not compute what the config says.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if capped and wanted == "sdpa":
        raise UserError(
            "model.attention: sdpa computes no soft cap on attention, which this model has; leave "
            "model.attention out, or set it to eager"
        )
    if wanted is not None:
        return {"attn_implementation": wanted}
    return {"attn_implementation": "eager"} if capped else {}


def checkpoint_gradients(model: Any) -> None:
    """Keep the inputs of the layers alone for the backward pass.

    Raises:
        UserError: the architecture cannot.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"model.gradient_checkpointing: {_first_line(error)}") from None
    if has_adapters(model):
        # The frozen embedding gives the first layer an input without gradient.
        model.enable_input_require_grads()


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


def read_model_config(config: ModelConfig) -> Any:
    """A model's config, without loading the weights."""
    try:
        return read_config(model_path(config.path))
    except Exception as error:  # a damaged config.json fails in many ways
        raise UserError(f"model.path: {config.path}: {_first_line(error)}") from None


def read_context_length(config: ModelConfig) -> int:
    """`context_length` without loading the weights."""
    return context_length(read_model_config(config), config.max_context)


def read_vocabulary_size(config: ModelConfig) -> int | None:
    """Rows of the token embedding without loading the weights; None if the config is silent."""
    text = read_config(model_path(config.path)).get_text_config()
    return getattr(text, "vocab_size", None)


def compute_dtype(config: ModelConfig) -> torch.dtype | None:
    """The dtype to compute in; None for that of the weights."""
    if config.compute_dtype in (None, config.dtype):
        return None
    return getattr(torch, str(config.compute_dtype))  # type: ignore[no-any-return]


def read_config(place: str | Path) -> Any:
    """The config of a model directory."""
    # Code of the model's own is never run; unasked, transformers would ask on the terminal.
    return AutoConfig.from_pretrained(place, trust_remote_code=False)


def _rows(place: str) -> int:
    """Tokens that the model knows, by its config; any number if the config is silent."""
    try:
        return int(read_config(place).get_text_config().vocab_size)
    except Exception:  # what is wrong with the config is said by who needs more of it
        return 1 << 62


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
