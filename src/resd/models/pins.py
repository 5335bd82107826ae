"""What a model's own files may say and a run must not obey.

Everything here runs once, when the student is loaded: the config before, the model after.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from resd.engines.tokens import as_ids, embedding_rows

_DROPS = ("dropout", "pdrop", "drop_prob", "layerdrop", "drop_path")
# Outputs that nobody reads, some of them huge; a tuple instead of named outputs.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_OUTPUTS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
}


def pin_config(config: Any) -> None:
    """No dropout, cache on, plain outputs: in the config and in those inside it."""
    for part in _parts(config):
        for name, value in list(vars(part).items()):
            if _is_rate(name, value):
                setattr(part, name, type(value)(0))
        for name, wanted in {**_OUTPUTS, "use_cache": True}.items():
            if getattr(part, name, wanted) != wanted:
                setattr(part, name, wanted)
        # Sampling rules of old checkpoints; transformers refuses to save or to obey them here.
        declared = inspect.signature(type(part).__init__).parameters
        for name in vars(GenerationConfig()):
            ours = name in _OUTPUTS or name == "use_cache" or name.endswith("token_id")
            if name in vars(part) and name[0] != "_" and name not in declared and not ours:
                delattr(part, name)


def pin_model(model: torch.nn.Module) -> None:
    """One policy: nothing random in a forward pass, no sampling rule of the model's own.

    Log-probs of the update must be those of the sampler; dropout, and the noise that some routers
    add in training mode, would make the ratio between them noise.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        noisy = False
        for name, value in list(vars(module).items()):
            if _is_rate(name, value):
                setattr(module, name, type(value)(0))
            noisy = noisy or ("jitter" in name and value is not None)
        if noisy:
            # Not set to zero: the same number may be a threshold of the routing (PhiMoE).
            module.register_forward_pre_hook(_as_in_evaluation)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        head.register_forward_pre_hook(_in_one_piece)
    pin_generation(model)


def read_generation(place: str | Path) -> GenerationConfig:
    """The token ids of a generation config; whatever else it holds, valid or not, is not read."""
    try:
        file = cached_file(str(place), "generation_config.json")
        content = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is no JSON
        content = {}
    content = content if isinstance(content, dict) else {}
    return GenerationConfig(use_cache=True, **{name: content.get(name) for name in _TOKENS})


def pin_generation(model: Any) -> None:
    """Keep the token ids of the generation config; drop whatever could change the sampling.

    `generate` fills what a caller leaves open from the model's own generation config: a
    repetition penalty, suppressed tokens, a forced end. And `transformers` refuses to save a
    combination that it has read (`do_sample` false with a temperature).
    """
    own = getattr(model, "generation_config", None)
    rows = embedding_rows(model)
    ids: dict[str, Any] = {}
    for name in _TOKENS:
        found = as_ids(getattr(own, name, None))
        found += [] if found else as_ids(getattr(model.config.get_text_config(), name, None))
        kept = list(dict.fromkeys(i for i in found if 0 <= i < rows))
        ids[name] = None if not kept else kept[0] if len(kept) == 1 else kept
    for name in ("bos_token_id", "pad_token_id"):
        ids[name] = ids[name][0] if isinstance(ids[name], list) else ids[name]
    model.generation_config = GenerationConfig(use_cache=True, **ids)


def _as_in_evaluation(module: torch.nn.Module, inputs: Any) -> None:
    module.training = False


def _in_one_piece(module: torch.nn.Module, inputs: Any) -> Any:
    """Hidden states that were cut out of longer ones: in bfloat16 a CPU is 100 times slower."""
    return tuple(i.contiguous() if isinstance(i, torch.Tensor) else i for i in inputs)


def _is_rate(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value > 0 and any(word in name for word in _DROPS)


def _parts(config: Any) -> Iterator[Any]:
    """A config and the configs inside it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _parts(value)
