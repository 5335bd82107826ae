"""Stand-ins of model families: chat templates and marks on the lab's tokenizer; tiny models."""

from __future__ import annotations

from typing import Any

LAB_TOKENS = "<|user|> <|assistant|> <|system|>"


def tokenizer(template: str, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> Any:
    """The lab's tokenizer with more tokens (special ones and plain ones) and another template."""
    from transformers import AutoTokenizer

    from resd.models.load import LAB_MODEL

    made = AutoTokenizer.from_pretrained(LAB_MODEL)
    made.add_tokens(list(special), special_tokens=True)
    made.add_tokens(list(plain), special_tokens=False)
    made.chat_template = template
    return made


def turns(before: str, after: str, generation: str, thoughts: str = "") -> str:
    """A chat template: marks around each turn (ROLE stands for its role), and the header."""
    opening = before.replace("ROLE", "' + m['role'] + '")
    return (
        "{% for m in messages %}{{ '"
        + opening
        + "' }}"
        + (
            "{% if m['reasoning_content'] %}{{ '"
            + thoughts.replace("THOUGHT", "' + m['reasoning_content'] + '")
            + "' }}{% endif %}"
            if thoughts
            else ""
        )
        + "{{ m['content'] }}{{ '"
        + after
        + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + generation + "' }}{% endif %}"
    )


CHATML = turns("<|im_start|>ROLE\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


# -- tiny models of the architectures in docs/models.md -------------------------------------------

ROWS = 712  # the lab's vocabulary and some tokens for images
_TEXT = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 512, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
_EYES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_SIGHT = {
    "image_token_id": 704, "video_token_id": 705, "vision_start_token_id": 706,
    "vision_end_token_id": 707,
}  # fmt: skip
_QWEN_EYES = {
    "hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 32,
}  # fmt: skip
_M_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_LINEAR = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _no_head_dim() -> dict[str, Any]:
    return {k: v for k, v in _TEXT.items() if k != "head_dim"}


# Name in the table: config class, model class, fields.
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_TEXT, "tie_word_embeddings": True}),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_TEXT, **_EXPERTS}),
    "Qwen3.5 (text)": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**_TEXT, **_LINEAR}),
    "Llama": ("LlamaConfig", "LlamaForCausalLM", _TEXT),
    "SmolLM2": ("LlamaConfig", "LlamaForCausalLM", {**_TEXT, "tie_word_embeddings": True}),
    "Mistral": ("MistralConfig", "MistralForCausalLM", {**_TEXT, "sliding_window": 8}),
    "Gemma 2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_TEXT, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
    "Gemma 3 (text)": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_TEXT, "sliding_window": 8}),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "GPT-2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": ROWS,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 512,
            "eos_token_id": 1,
            "bos_token_id": None,
        },
    ),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_TEXT, "num_local_experts": 4}),
    "OLMoE": ("OlmoeConfig", "OlmoeForCausalLM", {**_no_head_dim(), **_EXPERTS}),
    "Granite-MoE": (
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {**_no_head_dim(), "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "PhiMoE": ("PhimoeConfig", "PhimoeForCausalLM", {**_TEXT, "num_local_experts": 4}),
    "Gemma 3": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_TEXT, "sliding_window": 8},
            "vision_config": _EYES,
            "image_token_index": 704,
            "boi_token_index": 705,
            "eoi_token_index": 706,
            "mm_tokens_per_image": 4,
        },
    ),
    "Mistral Small 3": (
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {**_TEXT, "model_type": "mistral"},
            "vision_config": {**_EYES, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": 704,
        },
    ),
    "Qwen3.5": (
        "Qwen3_5Config",
        "Qwen3_5ForConditionalGeneration",
        {"text_config": {**_TEXT, **_LINEAR}, "vision_config": _QWEN_EYES, **_SIGHT},
    ),
    "Qwen2.5-VL": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**_TEXT, "rope_parameters": _M_ROPE},
            "vision_config": _QWEN_EYES,
            **_SIGHT,
        },
    ),
    "Qwen3-VL": (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**_TEXT, "rope_parameters": _M_ROPE},
            "vision_config": {**_QWEN_EYES, "deepstack_visual_indexes": [0]},
            **_SIGHT,
        },
    ),
    "Gemma 4": (
        "Gemma4Config",
        "Gemma4ForConditionalGeneration",
        {
            "text_config": {
                **_TEXT,
                "sliding_window": 8,
                "vocab_size_per_layer_input": ROWS,
                "hidden_size_per_layer_input": 8,
            },
            "vision_config": None,
            "audio_config": None,
        },
    ),
    "Llama 4": (
        "Llama4Config",
        "Llama4ForConditionalGeneration",
        {
            "text_config": {**_TEXT, "intermediate_size_mlp": 64, "num_local_experts": 2},
            "vision_config": {
                **_EYES,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
        },
    ),
}


def build(name: str) -> Any:
    """A tiny random model of an architecture, as the installed transformers makes it."""
    import torch
    import transformers

    config, model, fields = ARCHITECTURES[name]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**fields))
    with torch.no_grad():
        for parameter in made.parameters():  # large enough for every weight to count
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made
