"""Text models that ship inside an image-text model (Gemma 3, Qwen3.5, Mistral Small, Llama 4)."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from resd.errors import UserError

# What such a model needs beside its weights, to take images again after the run.
_COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def bare(model: Any) -> Any:
    """The model under any adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(base: Any) -> list[Any]:
    """The layers of a bare model's decoder, by whatever name its family gives the list.

    Empty where there is no such list.
    """
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    for name in ("layers", "h", "blocks"):
        found = getattr(decoder, name, None)
        if isinstance(found, torch.nn.ModuleList):
            return list(found)
    return []


def is_wrapped(model: Any) -> bool:
    """Whether the text model stands inside a model that takes more than text."""
    return model.config.get_text_config() is not model.config


def text_test(model: Any) -> Callable[[str], bool]:
    """A function that says of a module or parameter, by name, whether text goes through it."""
    if not is_wrapped(model):
        return lambda name: True
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    wanted = {id(module) for module in parts if module is not None and module is not model}
    places = [name for name, module in model.named_modules() if id(module) in wanted]
    return lambda name: any(name == place or name.startswith(f"{place}.") for place in places)


def freeze_the_rest(model: Any) -> None:
    """Freeze what no text goes through: it gets no gradient, and is saved as it was."""
    is_text = text_test(model)
    for name, parameter in model.named_parameters():
        if not is_text(name):
            parameter.requires_grad_(False)


def forward_extras(model: Any, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a wrapped model asks for beside the token ids [B, T]: that none is of an image.

    Gemma 3 refuses a forward pass in training mode without it. Give it to every forward pass.
    """
    base = bare(model)
    if not is_wrapped(base):
        return {}
    names = inspect.signature(base.forward).parameters
    kinds = [name for name in ("token_type_ids", "mm_token_type_ids") if name in names]
    return {name: torch.zeros_like(token_ids) for name in kinds}


@torch.no_grad()
def check_text(model: Any) -> None:
    """Send a few tokens through a wrapped model.

    Raises:
        UserError: it takes no text without images, in this version of transformers.
    """
    if not is_wrapped(model):
        return
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    try:
        model(input_ids=ids, use_cache=False, **forward_extras(model, ids))
    except Exception as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"model.path: {type(model).__name__} fails on text without images in transformers "
            f"{transformers.__version__} ({what}); save its text model by itself: "
            "AutoModelForCausalLM.from_pretrained(PATH).save_pretrained(NEW), and the tokenizer"
        ) from None


def copy_companions(model: Any, place: Path) -> None:
    """Put the files of the image and video side beside a wrapped model that is saved."""
    if not is_wrapped(model):
        return
    source = Path(str(getattr(model.config, "_name_or_path", "")))
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)
