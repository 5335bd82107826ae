"""What a model consists of, counted without its weights: it is built on the meta device."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from resd.config import ModelConfig
from resd.errors import UserError
from resd.models.load import LAB_MODEL, architecture_of, check_kind, pinned_attention
from resd.models.lora import add_adapters
from resd.models.wrapped import bare, decoder_layers, freeze_the_rest

_QWEN3: dict[str, Any] = {"vocab_size": 151_936, "head_dim": 128}
# As published, for models that the presets name; a directory with a config.json needs no entry.
_KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3", **_QWEN3, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "tie_word_embeddings": True, "max_position_embeddings": 40_960,
    },
    "Qwen/Qwen3-4B-Thinking-2507": {
        "model_type": "qwen3", **_QWEN3, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": True, "max_position_embeddings": 262_144,
    },
    "Qwen/Qwen3-30B-A3B-Thinking-2507": {
        "model_type": "qwen3_moe", **_QWEN3, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "tie_word_embeddings": False, "max_position_embeddings": 262_144,
    },
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": {
        "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 32_768,
    },
    "smol": {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters (tied ones count once), widths of a layer, bytes a number.

    Attributes:
        bare: parameters of the model without adapters.
        trained: of what gets a gradient: the adapters', or all that text goes through.
        largest_layer: of the decoder's largest layer, adapters too.
        outside: of what is in no layer of the decoder: embedding, norm, head.
        largest: of the largest tensor that is trained.
        adapters: whether what is trained are adapters.
        merged: of the weights that adapters are merged into.
        adapted: numbers a token that go into the adapters of one layer.
        ranks: numbers a token inside the adapters of one layer.
        stored: bytes a number as loaded.
        b: bytes a number of the model while it computes.
        trained_b: of what is trained, while it computes.
        wide: of what is trained, for the optimiser.
        hidden: width of the residual stream.
        queries: heads x head width.
        keys: key-value heads x head width.
        heads: of attention.
        units: of the MLP, of one expert where there are several.
        experts: that a token goes through; 0 without experts.
        layers: of the decoder.
        vocabulary: rows of the head.
        norms: of the hidden width in a layer.
        normed: whether queries and keys have norms of their own.
        attention: the implementation.
        window: most tokens of a sequence.
        cached: numbers a token in the cache, as (tokens at most or None, numbers).
    """

    bare: int
    trained: int
    largest_layer: int
    outside: int
    largest: int
    adapters: bool
    merged: int
    adapted: int
    ranks: int
    stored: int
    b: int
    trained_b: int
    wide: int
    hidden: int
    queries: int
    keys: int
    heads: int
    units: int
    experts: int
    layers: int
    vocabulary: int
    norms: int
    normed: bool
    attention: str
    window: int
    cached: tuple[tuple[int | None, int], ...]

    def cache(self, tokens: int) -> int:
        """Numbers in the cache of one sequence."""
        return sum(number * min(tokens, most or tokens) for most, number in self.cached)

    @classmethod
    def of(cls, run: ModelConfig, model: Any) -> Sizes:
        """Measure a model, adapted or not; it may be a skeleton."""
        base = bare(model)
        config = base.config.get_text_config()
        stored: str = run.dtype
        if stored == "auto":
            stored = str(getattr(base.config, "dtype", None) or "float32").removeprefix("torch.")
        compute = run.compute_dtype if run.compute_dtype not in (None, run.dtype) else None
        b, adapters = _bytes(compute or stored), base is not model
        return cls(
            **_counts(model, base),
            **_widths(base, config),
            adapters=adapters,
            stored=_bytes(stored),
            b=b,
            # peft keeps adapters in float32, unless the model computes in a dtype of its own.
            trained_b=(_bytes(compute) if compute else 4) if adapters else b,
            wide=4 if adapters else _bytes(stored),
            attention=run.attention or str(getattr(config, "_attn_implementation", None)),
            window=min(
                run.max_context or 1 << 62, _number(config, "max_position_embeddings") or 1 << 62
            ),
        )


def _bytes(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def architecture(path: str) -> PretrainedConfig:
    """The configuration of a model: of a directory's config.json, as published, or as cached.

    Raises:
        UserError: it is none of these.
    """
    place = LAB_MODEL if path == "lab" else Path(path)
    if (place / "config.json").is_file():
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(str(place))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"model.path: config.json in {path} cannot be read: {said}") from None
        return config
    if path in _KNOWN:
        kind, values = _KNOWN[path]["model_type"], dict(_KNOWN[path])
        del values["model_type"]
        made: PretrainedConfig = AutoConfig.for_model(kind, **values)
        return made
    if path.count("/") == 1 and not place.exists():
        try:
            cached: PretrainedConfig = AutoConfig.from_pretrained(
                path, trust_remote_code=False, local_files_only=True
            )
            return cached
        except Exception:  # not there: what follows says so
            pass
    known = ", ".join(sorted(_KNOWN))
    raise UserError(
        f"model.path: the architecture of {path} is not known here; name a directory that "
        f"holds its config.json, or one of: lab, {known}"
    )


def skeleton(config: PretrainedConfig, run: ModelConfig) -> Any:
    """The model without storage, with its adapters, its frozen parts frozen.

    Raises:
        UserError: it cannot be built, takes no such adapters, or no such attention.
    """
    check_kind(config, run.path)
    attention = pinned_attention(config, run.attention)
    if (run.attention or "").startswith("flash"):
        attention = {}  # it may be installed on another machine alone
    try:
        return on_meta(config, run, **attention)
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"model.path: no model can be made of {run.path}: {said}") from None


def on_meta(config: PretrainedConfig, run: ModelConfig, **settings: Any) -> Any:
    """A model as `skeleton` says, of these settings, without its checks."""
    kind = architecture_of(config)
    make = getattr(kind, "_from_config", None) or kind.from_config
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the model is loaded
        model: Any = make(config, **settings)
        model.tie_weights()  # not every release of transformers does so without storage
        freeze_the_rest(model)
        return model if run.lora is None else add_adapters(model, run.lora)


def _counts(model: Any, base: Any) -> dict[str, Any]:
    named = dict(model.named_parameters())
    adapters = {n: p for n, p in named.items() if ".lora_" in n}
    into = [p for n, p in adapters.items() if ".lora_A." in n]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(base)]
    whole, number = sum(p.numel() for p in named.values()), max(1, len(layers))
    trained = [p.numel() for p in named.values() if p.requires_grad]
    return {
        "bare": whole - sum(p.numel() for p in adapters.values()),
        "trained": sum(trained),
        "largest_layer": max(layers, default=0),
        "outside": whole - sum(layers),
        "largest": max(trained, default=0),
        "merged": sum(p.numel() for n, p in named.items() if ".base_layer." in n),
        "adapted": math.ceil(sum(p.shape[-1] for p in into) / number),
        "ranks": math.ceil(sum(p.shape[0] for p in into) / number),
    }


def _widths(base: Any, config: Any) -> dict[str, Any]:
    hidden, heads = _need(config, "hidden_size"), _need(config, "num_attention_heads")
    layers, head = _need(config, "num_hidden_layers"), _number(config, "head_dim")
    head = head or hidden // heads
    keys = (_number(config, "num_key_value_heads") or heads) * head
    experts = _number(config, "num_experts_per_tok", "top_k_experts") or 0
    units = _number(config, "intermediate_size", "n_inner") or 4 * hidden
    if experts:
        units = _number(config, "moe_intermediate_size") or units
        experts += math.ceil((_number(config, "shared_expert_intermediate_size") or 0) / units)
    found = decoder_layers(base)
    named = dict(found[0].named_modules()) if found else {}
    norms = [m for m in named.values() if "Norm" in type(m).__name__ and _width(m) == hidden]
    return {
        "hidden": hidden,
        "queries": heads * head,
        "keys": keys,
        "heads": heads,
        "units": units,
        "experts": experts,
        "layers": layers,
        "vocabulary": _need(config, "vocab_size"),
        "norms": len(norms) or 2,
        "normed": any(name.endswith("q_norm") for name in named),
        "cached": _cached(config, layers, 2 * keys),
    }


def _cached(config: Any, layers: int, numbers: int) -> tuple[tuple[int | None, int], ...]:
    """A layer that looks back over a window keeps no more; a linear one keeps nothing by token."""
    window = _number(config, "sliding_window")
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return ((window, numbers * layers),)
    full = sum(kind == "full_attention" for kind in kinds)
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    return ((None, numbers * full), (window, numbers * sliding))


def _width(module: Any) -> int | None:
    weight = getattr(module, "weight", None)
    return None if weight is None else int(weight.shape[-1])


def _need(config: Any, name: str) -> int:
    value = _number(config, name)
    if value is None:
        raise UserError(f"model.path: its config.json has no {name}: no memory can be estimated")
    return value


def _number(config: Any, *names: str) -> int | None:
    """The first number that a config has by one of these names; the largest where layers differ."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:  # transformers refuses to give one value where layers have several
            value = [getattr(layer, name, None) for layer in config.per_layer_config]
        if isinstance(value, list | tuple):
            value = max((v for v in value if isinstance(v, int)), default=None)
        if isinstance(value, int) and value > 0:
            return value
    return None
