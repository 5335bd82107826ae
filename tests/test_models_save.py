"""Adapters, merging, saving, and the look at what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build

from resd.config import LoraConfig, ModelConfig
from resd.errors import UserError
from resd.models.batch import response_logits
from resd.models.load import LAB_MODEL, load_model
from resd.models.lora import left_out
from resd.models.save import save_model, verify_saved

PROMPTS, RESPONSES = [[5, 6, 7], [9, 8]], [[11, 12], [13, 14, 15]]


def student(name: str, place: Path, **over: Any) -> Any:
    from transformers import AutoTokenizer

    if not place.exists():
        build(name).save_pretrained(place)
        AutoTokenizer.from_pretrained(LAB_MODEL).save_pretrained(place)
    return load_model(ModelConfig(path=str(place), device="cpu", **over))


def adapted(name: str, place: Path, targets: Any = "all-linear", **over: Any) -> Any:
    model = student(name, place, lora=LoraConfig(rank=4, target_modules=targets), **over)
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return response_logits(model, PROMPTS, RESPONSES, 0)[:, -2:].log_softmax(-1)


# -- where adapters go ----------------------------------------------------------------------------

EXPERTS = ["q_proj", "experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("SmolLM2", "all-linear"),
        ("SmolLM2", r".*\.(q|v)_proj"),
        ("SmolLM2", ["lm_head"]),  # tied to the embedding
        ("SmolLM2", ["embed_tokens"]),
        ("SmolLM2", ["embed_tokens", "lm_head", "q_proj"]),
        ("Gemma 3", ["lm_head", "v_proj"]),
        ("GPT-2", ["c_attn", "wte"]),
        ("Qwen3-MoE", EXPERTS),
        ("Mixtral", EXPERTS),
        ("gpt-oss", EXPERTS),
        ("PhiMoE", "all-linear"),
    ],
)
def test_the_saved_model_computes_what_the_student_does(
    name: str, targets: Any, tmp_path: Path
) -> None:
    model = adapted(name, tmp_path / "m", targets)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wanted = log_probs(model.eval())
    save_model(model, tmp_path / "s")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert verify_saved(model, tmp_path / "s") < 1e-3
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if name == "Gemma 3" else AutoModelForCausalLM
    saved = auto.from_pretrained(tmp_path / "s", dtype=torch.float32).eval()
    assert torch.allclose(log_probs(saved), wanted, atol=1e-3)
    assert not torch.allclose(log_probs(student(name, tmp_path / "m").eval()), wanted, atol=1e-2)


def test_fused_experts_and_routers_are_left_alone_unless_they_are_named(tmp_path: Path) -> None:
    model = adapted("Qwen3-MoE", tmp_path / "m")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and not any("mlp" in name for name in trained)
    assert left_out(model) == ["experts.down_proj", "experts.gate_up_proj"]
    named = adapted("Qwen3-MoE", tmp_path / "m", ["q_proj", "experts.down_proj"])
    assert left_out(named) == ["experts.gate_up_proj"]
    assert left_out(adapted("SmolLM2", tmp_path / "d")) == []
    assert left_out(student("Qwen3-MoE", tmp_path / "m")) == []
    log_probs_of = response_logits(named, PROMPTS, RESPONSES, 0)[:, -2:].log_softmax(-1)
    log_probs_of[..., 3].sum().backward()
    reached = [n for n, p in named.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("experts" in name for name in reached)


@pytest.mark.parametrize(
    ("name", "targets", "says"),
    [
        ("SmolLM2", ["q_prj"], "q_prj matches no module of the model; there are .*q_proj"),
        ("SmolLM2", ["proj"], "proj matches no module"),
        ("SmolLM2", ["q_proj", "k_prj"], "k_prj matches no module"),
        ("SmolLM2", ["self_attn"], "matches model.layers.0.self_attn, which is no plain linear"),
        ("SmolLM2", "nothing", "does not fit the model"),
        ("PhiMoE", ["router"], "mlp.router, which is no plain linear layer"),
        ("Gemma 3", ["fc1"], "fc1 matches"),  # of the vision tower
    ],
)
def test_targets_that_fit_nothing_are_refused(
    name: str, targets: Any, says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"model\.lora.*{says}"):
        adapted(name, tmp_path / "m", targets)


@pytest.mark.parametrize("targets", ["all-linear", ["embed_tokens", "q_proj"]])
def test_gradient_checkpointing_gives_adapters_the_same_gradients(
    targets: Any, tmp_path: Path
) -> None:
    found = []
    for checkpointing in (False, True):
        model = adapted("Qwen3", tmp_path / "m", targets, gradient_checkpointing=checkpointing)
        logits = response_logits(model.train(), PROMPTS, RESPONSES, 0)[:, -2:]
        logits.log_softmax(-1)[..., 3].sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-5), name


def test_checkpointing_is_really_on(tmp_path: Path) -> None:
    model = student("Qwen3", tmp_path / "m", gradient_checkpointing=True).train()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *a: calls.append(1))
    response_logits(model, PROMPTS, RESPONSES, 0).sum().backward()
    assert len(calls) == 2


# -- dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float16)],
)
def test_the_weights_have_the_dtype_of_the_config(
    dtype: str, wanted: torch.dtype, tmp_path: Path
) -> None:
    model = student("SmolLM2", tmp_path / "m").half()
    model.save_pretrained(tmp_path / "m")
    loaded = student("SmolLM2", tmp_path / "m", dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {wanted}
    save_model(loaded, tmp_path / "s")
    assert json.loads((tmp_path / "s" / "config.json").read_text())["dtype"] == (
        str(wanted).removeprefix("torch.")
    )
    assert verify_saved(loaded, tmp_path / "s") == 0


def test_merging_in_bfloat16_is_within_its_rounding(tmp_path: Path) -> None:
    model = adapted("Qwen3-MoE", tmp_path / "m", EXPERTS, dtype="bfloat16")
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.mul_(0.1)
    save_model(model, tmp_path / "s")
    assert verify_saved(model, tmp_path / "s") < 0.3


# -- what is saved is read again ------------------------------------------------------------------


def weights_file(place: Path) -> Path:
    return next(place.glob("*.safetensors"))


def edit(file: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def flip(weights: dict[str, torch.Tensor]) -> None:
    weights[max(weights)].view(-1)[0] += 1e-3


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights[max(weights)]


DAMAGE = {
    "a weight": (lambda s: edit(weights_file(s), flip), "1 of .* weights differ, the first: model"),
    "a missing weight": (lambda s: edit(weights_file(s), drop), "cannot be loaded again: 1 of its"),
    "an adapter": (lambda s: edit(weights_file(s / "adapter"), flip), "weights differ.*lora_"),
    "no file": (lambda s: weights_file(s).unlink(), "cannot be loaded again"),
    "half a file": (
        lambda s: weights_file(s).write_bytes(weights_file(s).read_bytes()[:999]),
        "cannot be loaded again",
    ),
    "the config": (
        lambda s: (s / "config.json").write_text(
            (s / "config.json").read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 9')
        ),
        "log-probs of a probe differ by",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_what_was_saved_is_named(kind: str, tmp_path: Path) -> None:
    damage, says = DAMAGE[kind]
    model = adapted("Llama", tmp_path / "m")
    save_model(model, tmp_path / "s")
    verify_saved(model, tmp_path / "s", PROMPTS, RESPONSES)
    damage(tmp_path / "s")
    with pytest.raises(UserError, match=says):
        verify_saved(model, tmp_path / "s", PROMPTS, RESPONSES)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    model = student("Llama", tmp_path / "m")
    student("Mistral", tmp_path / "o")
    with pytest.raises(UserError, match="loads as MistralForCausalLM; it was a LlamaForCausalLM"):
        verify_saved(model, tmp_path / "o")


def test_looking_leaves_the_student_as_it_was(tmp_path: Path) -> None:
    model = student("Llama", tmp_path / "m").train()
    state = torch.random.get_rng_state()
    save_model(model, tmp_path / "s")
    verify_saved(model, tmp_path / "s")
    assert model.training and torch.equal(torch.random.get_rng_state(), state)


def test_the_saved_generation_config_is_clean(tmp_path: Path) -> None:
    model = student("Llama", tmp_path / "m")
    model.generation_config.temperature = 0.5  # without do_sample: transformers would not save it
    save_model(model, tmp_path / "s")
    assert model.generation_config.temperature == 0.5
    saved = json.loads((tmp_path / "s" / "generation_config.json").read_text())
    assert saved.get("temperature") is None


def test_adapters_that_part_tied_embeddings_are_said_in_the_config(tmp_path: Path) -> None:
    for targets, tied in ((["lm_head"], False), (["q_proj"], True)):
        save_model(adapted("SmolLM2", tmp_path / "m", targets), tmp_path / "s")
        config = json.loads((tmp_path / "s" / "config.json").read_text())
        assert config["tie_word_embeddings"] is tied


def test_the_model_around_a_text_model_is_never_dropped(tmp_path: Path) -> None:
    try:
        build("Llama 4")
    except AttributeError:
        pytest.skip("this transformers cannot build it")
    try:
        model = student("Llama 4", tmp_path / "m")
    except UserError as error:
        assert "fails on text without images" in str(error)
    else:
        assert type(model).__name__ == "Llama4ForConditionalGeneration"


def test_a_wrapped_model_keeps_the_files_of_its_other_side(tmp_path: Path) -> None:
    student("Gemma 3", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text('{"size": 28}')
    model = student("Gemma 3", tmp_path / "m")
    save_model(model, tmp_path / "s")
    assert (tmp_path / "s" / "preprocessor_config.json").read_text() == '{"size": 28}'
    assert json.loads((tmp_path / "s" / "config.json").read_text())["architectures"] == [
        "Gemma3ForConditionalGeneration"
    ]
