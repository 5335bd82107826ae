"""How much memory a run needs, part by part, from the model's architecture alone.

What is there for the whole run (weights, gradients, optimiser, teacher) is exact: the model is
built without storage and its parameters are counted. What comes and goes (activations, logits, the
cache of generation) is taken at its largest, for the longest sequences that the settings allow.
Formulas stand beside each part; b is bytes a number of the compute dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from resd.config import DistillConfig, ResdConfig, RunConfig
from resd.errors import UserError
from resd.models.load import LAB_MODEL

GB = 10**9
# Memory of common cards. A card of 80 GB has some 85 * 10^9 bytes: the rest is CUDA's own.
CARDS = (24, 48, 80, 141)

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
    "smol": {
        "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the memory: bytes, and how they come about."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class Estimate:
    """The memory of a run.

    Attributes:
        kept: what is there all the time.
        update: what comes on top during the policy update.
        generation: what comes on top during generation; never at the same time as `update`.
        parameters: of the model, without adapters.
        trained: of those that are trained.
    """

    kept: tuple[Part, ...]
    update: tuple[Part, ...]
    generation: tuple[Part, ...]
    parameters: int
    trained: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        peaks = (sum(part.bytes for part in phase) for phase in (self.update, self.generation))
        return sum(part.bytes for part in self.kept) + max(peaks)

    def cards(self) -> str:
        """The smallest common card that holds it all, or how many of 80 GB hold as much."""
        for card in CARDS:
            if self.total <= card * GB:
                return f"one GPU of {card} GB"
        return f"{math.ceil(self.total / (80 * GB))} GPUs of 80 GB"

    @property
    def fits_one(self) -> bool:
        """Whether one common card holds it all; a run is one process on one card today."""
        return self.total <= CARDS[-1] * GB


def architecture(path: str) -> PretrainedConfig:
    """The configuration of a model: of a directory's config.json, or as published.

    Raises:
        UserError: it is neither.
    """
    place = LAB_MODEL if path == "lab" else Path(path)
    if (place / "config.json").is_file():
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(str(place))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"model.path: config.json in {path} cannot be read: {said}") from None
        return config
    if path not in _KNOWN:
        known = ", ".join(sorted(_KNOWN))
        raise UserError(
            f"model.path: the architecture of {path} is not known here; name a directory that "
            f"holds its config.json, or one of: lab, {known}"
        )
    kind, values = _KNOWN[path]["model_type"], dict(_KNOWN[path])
    del values["model_type"]
    made: PretrainedConfig = AutoConfig.for_model(kind, **values)
    return made


def count_parameters(config: PretrainedConfig, run: RunConfig) -> tuple[int, int]:
    """Parameters of the bare model and of its adapters (0 without LoRA); tied ones once.

    Raises:
        UserError: the model cannot be built from its configuration, or takes no such adapters.
    """
    from resd.models.lora import add_adapters

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"model.path: no model can be made of {run.model.path}: {said}") from None
    bare = sum(parameter.numel() for parameter in model.parameters())
    if run.model.lora is None:
        return bare, 0
    with torch.device("meta"):
        adapted = add_adapters(model, run.model.lora)
    return bare, sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def estimate(run: RunConfig) -> Estimate:
    """The memory of a run on one device.

    Raises:
        UserError: the model's architecture is not known.
    """
    config = architecture(run.model.path)
    text = config.get_text_config()
    bare, adapters = count_parameters(config, run)
    trained = adapters or bare
    stored = "bfloat16" if run.model.dtype == "bfloat16" else "float32"
    if run.model.dtype == "auto":
        stored = str(getattr(config, "dtype", None) or stored).removeprefix("torch.")
    b = _size(run.model.compute_dtype or stored)
    b_trained = 4 if adapters else _size(stored)  # peft keeps adapters in float32
    narrow = run.model.compute_dtype not in (None, stored) and b < b_trained
    computes = b if narrow else b_trained
    kept = [
        Part("weights", (bare if adapters else 0) * b + trained * computes, "parameters x b"),
        Part("master copy", trained * b_trained * narrow, "trained x 4, if b is less"),
        Part("gradients", trained * b_trained, f"trained x {b_trained}"),
        Part("optimiser", trained * b_trained * 2, f"trained x 2 x {b_trained} (AdamW)"),
        Part("teacher", *_teacher(run, trained, computes, adapters > 0)),
    ]
    tokens = _training_tokens(run, text)
    return Estimate(
        tuple(kept),
        (_activations(run, text, tokens, b), _head(run, text, not adapters, b)),
        (_cache(run, text, b),),
        bare,
        trained,
    )


def _size(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


def _teacher(run: RunConfig, trained: int, b: int, adapters: bool) -> tuple[int, str]:
    method = run.method
    if not isinstance(method, DistillConfig) or method.teacher.kind == "live":
        return 0, "none of its own"
    if method.teacher.kind == "frozen":
        return (0, "the student, adapters off") if adapters else (trained * b, "parameters x b")
    average = trained * 4
    if adapters or b == 4:
        return average, "average: trained x 4"
    return average + trained * b, "average: trained x 4, and its copy x b"


def _longest(run: RunConfig, config: Any) -> int:
    window = getattr(config, "max_position_embeddings", None) or 1 << 62
    return min(run.model.max_context or window, window)


def _training_tokens(run: RunConfig, config: Any) -> int:
    """Tokens of the longest sequences of a forward pass."""
    prompt = run.rollout.max_prompt_tokens
    tokens = min(prompt + run.rollout.max_new_tokens, _longest(run, config))
    return max(tokens, run.train.micro_batch_tokens)


def _activations(run: RunConfig, config: Any, tokens: int, b: int) -> Part:
    """Of one layer, and of all layers their input (with checkpointing) or the same again.

    In a layer: its input and two norms of it (kept in float32 too), queries, keys, values, the
    output of attention, and three numbers for each of the MLP's (or the routed experts') units. No
    matrix of tokens x tokens is kept: attention is fused.
    """
    hidden, layers, heads, kv, head = _shape(config)
    units = config.intermediate_size
    experts = getattr(config, "num_experts_per_tok", None)
    if experts:
        units = experts * (getattr(config, "moe_intermediate_size", None) or units)
    attention = 2 * heads * head + 2 * kv * head
    layer = tokens * ((4 * hidden + attention + 3 * units) * b + 2 * hidden * 4)
    if run.model.gradient_checkpointing:
        size = layers * tokens * hidden * b + layer
        return Part("activations", size, f"{tokens} tokens: layers x hidden x b, and one layer")
    return Part("activations", layers * layer, f"{tokens} tokens: all layers whole")


def _head(run: RunConfig, config: Any, trained: bool, b: int) -> Part:
    """Logits of a chunk of tokens, and the gradient of the head in float32.

    The student's, their gradient, and three float32 copies (widened, softmax, log-probs); with a
    teacher its own and two more.
    """
    copies = (4 * b + 5 * 4) if isinstance(run.method, DistillConfig) else (2 * b + 3 * 4)
    size = run.train.chunk_tokens * config.vocab_size * copies
    formula = f"chunk x vocabulary x {copies}"
    if trained:
        size += config.vocab_size * config.hidden_size * 4
        formula += ", and the head's gradient x 4"
    return Part("loss head", size, formula)


def _cache(run: RunConfig, config: Any, b: int) -> Part:
    _, layers, _, kv, head = _shape(config)
    tokens = run.rollout.max_prompt_tokens + run.rollout.max_new_tokens
    method = run.method
    if isinstance(method, ResdConfig):
        written = max(method.reflection_tokens, method.curation_tokens)
        tokens = max(tokens, method.max_teacher_tokens + written)
    tokens = min(tokens, _longest(run, config))
    rows = run.rollout.batch_size
    size = rows * tokens * 2 * layers * kv * head * b
    formula = f"{rows} rows x {tokens} tokens x layers x 2 x key-value heads x head x b"
    return Part("cache of generation", size, formula)


def _shape(config: Any) -> tuple[int, int, int, int, int]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or hidden // heads
    return hidden, config.num_hidden_layers, heads, kv, head


def first_line(run: RunConfig) -> str:
    """What a preset's first line says of its memory."""
    needed = estimate(run)
    size = needed.total / GB
    shown = f"{size:.0f}" if size >= 10 else f"{size:.1f}"
    rest = "" if needed.fits_one else "; one process uses one GPU so far"
    return f"# Memory (resd doctor): {shown} GB, {needed.cards()}{rest}."
