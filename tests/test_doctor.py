"""`resd doctor`: what it counts is what a model, its optimiser and its cache really hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from resd.cli import main
from resd.config import RunConfig, validate
from resd.distill import make_teacher
from resd.models.memory import CARDS, GB, Estimate, architecture, count_parameters, estimate

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def made(kind: str, place: Path, **over: Any) -> Path:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **{**SHAPE, **over}).save_pretrained(place)
    return place


def settings(place: Path, **over: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": {"path": str(place), "max_context": 256},
        "rollout": {"max_prompt_tokens": 100, "max_new_tokens": 50, "batch_size": 3},
        "train": {"micro_batch_tokens": 80},
        "method": {"name": "sdpo", "teacher": {"kind": "ema"}},
    }
    for key, value in over.items():
        part, _, name = key.partition("__")
        values[part] = {**values[part], name: value} if name else value
    return validate(values, "here")


def parts(found: Estimate) -> dict[str, int]:
    return {
        part.name: part.bytes
        for phase in (found.kept, found.update, found.generation)
        for part in phase
    }


@pytest.mark.parametrize(
    ("kind", "over"),
    [
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3_moe", {**EXPERTS, "tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": False}),
        ("gemma3_text", {}),
    ],
)
def test_what_is_kept_is_what_tensors_measure(
    kind: str, over: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, DynamicCache

    place = made(kind, tmp_path, **over)
    model = AutoModelForCausalLM.from_config(architecture(str(place)))
    optimizer = torch.optim.AdamW(model.parameters())
    cache = DynamicCache()
    model(
        input_ids=torch.zeros(3, 10, dtype=torch.long), past_key_values=cache
    ).logits.sum().backward()
    for parameter in model.parameters():  # an expert that no token met has none yet
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [t for row in optimizer.state.values() for t in row.values() if t.dim()]
    teacher = make_teacher("ema", model).state_dict().values()
    found = parts(estimate(settings(place)))
    assert found["weights"] == size(model.parameters())
    assert found["gradients"] == size(p.grad for p in model.parameters())
    assert found["optimiser"] == size(state)
    assert found["teacher"] == size({t.data_ptr(): t for t in teacher}.values())
    assert found["master copy"] == 0
    tokens = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
    assert found["cache of generation"] == tokens * 150 // 10


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_compute_dtype_teacher_and_adapters(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path, tie_word_embeddings=True)
    whole, none = count_parameters(architecture(str(place)), settings(place))
    assert none == 0
    narrow = settings(place, model__compute_dtype="bfloat16")
    found = parts(estimate(narrow))
    assert found["weights"] == whole * 2
    assert found["master copy"] == found["gradients"] == whole * 4
    assert found["optimiser"] == whole * 8
    assert found["teacher"] == whole * 6  # float32 average, bfloat16 copy
    frozen = settings(place, model__compute_dtype="bfloat16", method__teacher={"kind": "frozen"})
    assert parts(estimate(frozen))["teacher"] == whole * 2
    for method in ({"name": "grpo"}, {"name": "sdpo", "teacher": {"kind": "live"}}):
        assert parts(estimate(settings(place, method=method)))["teacher"] == 0
    lora = settings(place, model__lora={"rank": 4}, model__dtype="bfloat16")
    # 2 layers of q, k, v, o, gate, up and down.
    ends = [(64, 128), (64, 64), (64, 64), (128, 64), (64, 96), (64, 96), (96, 64)]
    adapters = 2 * 4 * sum(map(sum, ends))
    found = parts(estimate(lora))
    assert estimate(lora).trained == adapters
    assert found["weights"] == whole * 2 + adapters * 4
    assert found["gradients"] == found["teacher"] == adapters * 4
    assert found["optimiser"] == adapters * 8


def test_what_comes_and_goes(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path)
    base = estimate(settings(place))
    found = parts(base)
    # Tokens x layers x (input and norms, queries and output, keys and values, MLP) x 4.
    layer = 4 * 64 + 2 * 128 + 2 * 64 + 3 * 96 + 2 * 64
    assert found["activations"] == 150 * 2 * layer * 4
    more = estimate(settings(place, train={"micro_batch_tokens": 400}))
    assert parts(more)["activations"] == 400 * 2 * layer * 4
    experts = parts(estimate(settings(made("qwen3_moe", tmp_path / "moe", **EXPERTS))))
    assert experts["activations"] == 150 * 2 * (layer - 3 * 96 + 3 * 2 * 32) * 4
    assert found["loss head"] == 512 * 100 * (4 * 4 + 5 * 4) + 100 * 64 * 4
    grpo = parts(estimate(settings(place, method={"name": "grpo"})))
    assert grpo["loss head"] == 512 * 100 * (2 * 4 + 3 * 4) + 100 * 64 * 4
    resd = {"name": "resd", "max_teacher_tokens": 180, "reflection_tokens": 70}
    resd["curation_tokens"] = 60
    cache = parts(estimate(settings(place, method=resd)))["cache of generation"]
    assert cache == 3 * 250 * 2 * 2 * 2 * 32 * 4
    resd["reflection_tokens"] = 90  # but no more than the context
    cache = parts(estimate(settings(place, method=resd)))["cache of generation"]
    assert cache == 3 * 256 * 2 * 2 * 2 * 32 * 4
    less = parts(estimate(settings(place, model__gradient_checkpointing=True)))["activations"]
    assert less < found["activations"]
    phases = [sum(p.bytes for p in phase) for phase in (base.update, base.generation)]
    assert base.total == sum(p.bytes for p in base.kept) + max(phases)


def test_activations_are_about_what_autograd_keeps(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    place = made("qwen3", tmp_path)
    model = AutoModelForCausalLM.from_config(architecture(str(place)), attn_implementation="sdpa")
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.model(input_ids=torch.zeros(2, 150, dtype=torch.long), use_cache=False)
    assert output.last_hidden_state.requires_grad
    ratio = parts(estimate(settings(place, train={"micro_batch_tokens": 300})))["activations"]
    ratio /= sum(kept.values())
    assert 0.6 < ratio < 1.4


@pytest.mark.parametrize(
    ("path", "parameters"),
    [  # in billions, as published
        ("Qwen/Qwen3-0.6B", 0.596),
        ("Qwen/Qwen3-4B-Thinking-2507", 4.022),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507", 30.53),
        ("smol", 0.1345),
    ],
)
def test_known_models_have_their_published_size(path: str, parameters: float) -> None:
    counted, _ = count_parameters(architecture(path), settings(Path("lab")))
    assert counted / 1e9 == pytest.approx(parameters, rel=1e-3)


def test_cards() -> None:
    def needs(gigabytes: float) -> str:
        from resd.models.memory import Part

        return Estimate((Part("all", int(gigabytes * GB), ""),), (), (), 0, 0).cards()

    assert [needs(card) for card in CARDS] == [f"one GPU of {card} GB" for card in CARDS]
    assert needs(24.1) == "one GPU of 48 GB"
    assert needs(141.1) == "2 GPUs of 80 GB"
    assert needs(160.1) == "3 GPUs of 80 GB"


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--preset", "manufactoria-paper"]) == 0
    text = capsys.readouterr().out
    for words in ("4,022,468,096 parameters", "master copy", "one GPU of 141 GB"):
        assert words in text
    smaller = ["--set", "model.path=Qwen/Qwen3-0.6B", "--set", "rollout.max_new_tokens=1024"]
    assert main(["doctor", "--preset", "manufactoria-paper", *smaller, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 596_049_920
    assert found["fits_one"]
    assert found["total"] < sum(found["bytes"].values())  # two phases, never at once
    assert main(["doctor", "--set", "model.path=lab"]) == 0
    assert "not implemented" not in capsys.readouterr().out
    assert main(["doctor", "--preset", "bouncing-medium-paper"]) == 0
    assert "not implemented" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.path=owner/unknown"], "architecture of owner/unknown is not known"),
        (["--set", "train.lr"], "expected KEY=VALUE"),
        (["--preset", "nope"], "no preset 'nope'"),
        (["--set", "model.dtyp=float32"], "unknown key model.dtyp"),
        (["missing.toml"], "missing.toml does not exist"),
        (["--set", "model.path={place}"], "config.json"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{")
    assert main(["doctor", *(word.format(place=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
