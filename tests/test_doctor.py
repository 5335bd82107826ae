"""`resd doctor`: what it counts is what a model, its optimiser and its cache really hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ARCHITECTURES

from resd.cli import main
from resd.config import RunConfig, validate
from resd.distill import make_teacher
from resd.errors import UserError
from resd.models.check import check_memory
from resd.models.memory import CARDS, GB, Estimate, Memory
from resd.models.moments import Part
from resd.models.sizes import Sizes, architecture, skeleton

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
        values[part] = {**values.get(part, {}), name: value} if name else value
    return validate(values, "here")


def parts(run: RunConfig, processes: int = 1, moment: str = "generation") -> dict[str, int]:
    """What is kept, and what comes on top at one moment."""
    found = Memory(run).estimate(processes)
    coming = (*found.moments["optimiser step"], *found.moments[moment])
    return {part.name: part.bytes for part in (*found.kept, *coming)}


def sizes(run: RunConfig) -> Sizes:
    return Memory(run).sizes


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
    found = parts(settings(place))
    assert found["weights"] == size(model.parameters())
    assert found["gradients"] == size(p.grad for p in model.parameters())
    assert found["optimiser"] == size(state)
    assert found["teacher"] == size({t.data_ptr(): t for t in teacher}.values())
    assert "master copy" not in found
    layers = [(layer.keys.numel() + layer.values.numel()) * 4 for layer in cache.layers]
    assert found["cache"] == (sum(layers) + layers[0]) * 150 // 10  # one layer's is copied


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_compute_dtype_teacher_and_adapters(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path, tie_word_embeddings=True)
    whole = sizes(settings(place)).bare
    narrow = settings(place, model__compute_dtype="bfloat16")
    found = parts(narrow)
    assert found["weights"] == whole * 2
    assert found["master copy"] == found["gradients"] == whole * 4
    assert found["optimiser"] == whole * 8
    assert found["teacher"] == whole * 6  # float32 average, bfloat16 copy
    frozen = settings(place, model__compute_dtype="bfloat16", method__teacher={"kind": "frozen"})
    assert parts(frozen)["teacher"] == whole * 2
    for method in ({"name": "grpo"}, {"name": "sdpo", "teacher": {"kind": "live"}}):
        assert parts(settings(place, method=method))["teacher"] == 0
    lora = settings(place, model__lora={"rank": 4}, model__dtype="bfloat16")
    # 2 layers of q, k, v, o, gate, up and down.
    ends = [(64, 128), (64, 64), (64, 64), (128, 64), (64, 96), (64, 96), (96, 64)]
    adapters = 2 * 4 * sum(map(sum, ends))
    found = parts(lora)
    assert sizes(lora).trained == adapters
    assert found["weights"] == whole * 2 + adapters * 4
    assert found["gradients"] == found["teacher"] == adapters * 4
    assert found["optimiser"] == adapters * 8


def test_a_checkpoint_written_in_the_background_is_a_copy_of_what_moves(tmp_path: Path) -> None:
    """On a CPU beside the step that goes on, else in host memory."""
    place = made("qwen3", tmp_path, tie_word_embeddings=True)
    run = settings(place, model__compute_dtype="bfloat16")
    whole = sizes(run).bare
    kinds = {
        "frozen": (whole * 4 * 3, {"name": "sdpo", "teacher": {"kind": "frozen"}}),
        "live": (whole * 4 * 3, {"name": "sdpo", "teacher": {"kind": "live"}}),
        "ema": (whole * 4 * 4, {"name": "sdpo", "teacher": {"kind": "ema"}}),
        "rebased": (
            whole * 4 * 4,
            {"name": "sdpo", "teacher": {"kind": "frozen", "at_boundary": "rebase"}},
        ),
    }
    for size, method in kinds.values():
        each = settings(place, model__compute_dtype="bfloat16", method=method)
        here = Memory(each).estimate(1, "cpu")
        assert [part.bytes for part in here.moments["checkpoint"]] == [size]
        assert "copy for a checkpoint" not in {part.name for part in here.host}
        shared = Memory(each).estimate(2, "cpu").moments["checkpoint"]
        assert [part.bytes for part in shared] == [size // 2]
        for number in (1, 2):  # all processes' share the host
            card = Memory(each).estimate(number, "cuda")
            assert "checkpoint" not in card.moments
            assert {p.name: p.bytes for p in card.host}["copy for a checkpoint"] == size
    waits = settings(place, checkpoint={"background": False})
    for device in ("cpu", "cuda"):
        found = Memory(waits).estimate(1, device)
        assert "checkpoint" not in found.moments
        assert "copy for a checkpoint" not in {part.name for part in found.host}


def test_a_teacher_that_is_rebased_is_a_model_of_its_own(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path, tie_word_embeddings=True)
    rebased = {"name": "sdpo", "teacher": {"kind": "frozen", "at_boundary": "rebase"}}
    run = settings(place, model__compute_dtype="bfloat16", method=rebased)
    assert parts(run)["teacher"] == sizes(run).bare * 6  # float32 average, bfloat16 copy
    adapted = settings(place, model__lora={"rank": 4}, method=rebased)
    assert parts(adapted)["teacher"] == sizes(adapted).trained * 4
    frozen = {"name": "sdpo", "teacher": {"kind": "frozen"}}
    assert parts(settings(place, model__lora={"rank": 4}, method=frozen))["teacher"] == 0


def test_processes_share_all_but_what_generates(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path, tie_word_embeddings=True)
    run = settings(place, model__compute_dtype="bfloat16")
    whole = sizes(run).bare
    found = parts(run, 4)
    assert found["weights"] == found["gradients"] == found["teacher"] == whole
    assert found["optimiser"] == whole * 2
    assert found["generation copy"] == whole * 2
    assert parts(run, 8)["generation copy"] == whole * 2
    away = settings(
        place, model__compute_dtype="bfloat16", method__teacher={"kind": "ema", "offload": True}
    )
    assert parts(away, 4)["teacher"] == 0
    assert {p.name: p.bytes for p in Memory(away).estimate(4).host}["teacher"] == whole * 4
    # Embedding and norm of student and teacher, two layers of the student.
    rows = 100 * 64 + 64
    layer = (whole - rows) // 2
    assert parts(run, 4, "loss")["unsharded"] == (2 * rows + 2 * layer) * 2
    adapted = settings(place, model__lora={"rank": 4})
    assert parts(adapted, 4, "loss")["unsharded"] < (rows + 2 * layer) * 4 * 1.5


def test_what_comes_and_goes(tmp_path: Path) -> None:
    place = made("qwen3", tmp_path)
    base = settings(place)
    more = parts(settings(place, train={"micro_batch_tokens": 400}), moment="loss")
    assert more["activations"] == parts(base, moment="loss")["activations"] / 150 * 400
    # No more than the samples of a batch.
    most = parts(
        settings(place, train={"micro_batch_tokens": 10**6, "batch_size": 4}), moment="loss"
    )
    assert most["activations"] == parts(base, moment="loss")["activations"] * 4
    resd = {"name": "resd", "max_teacher_tokens": 180, "reflection_tokens": 70}
    resd["curation_tokens"] = 60
    layer = 2 * 2 * 32 * 4  # bytes a token
    assert parts(settings(place, method=resd))["cache"] == 3 * 250 * 3 * layer
    resd["reflection_tokens"] = 90  # but no more than the context
    assert parts(settings(place, method=resd))["cache"] == 3 * 256 * 3 * layer
    # No more reflections than rollouts.
    few = settings(place, method=resd, train={"batch_size": 1, "inner_iterations": 1})
    assert parts(few)["cache"] == 3 * 150 * 3 * layer
    less = parts(settings(place, model__gradient_checkpointing=True), moment="loss")
    assert less["activations"] < parts(base, moment="loss")["activations"]
    found = Memory(base).estimate()
    tops = [sum(p.bytes for p in moment) for moment in found.moments.values()]
    assert found.total == sum(p.bytes for p in found.kept) + max(tops)


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    over = {"sliding_window": 40, "layer_types": kinds}
    found = sizes(settings(made("gemma3_text", tmp_path, **over)))
    assert found.cache(150) == (40 + 150) * 2 * 2 * 32


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
    run = settings(Path("lab"))
    counted = Sizes.of(run.model, skeleton(architecture(path), run.model)).bare
    assert counted / 1e9 == pytest.approx(parameters, rel=1e-3)


def needing(gigabytes: float) -> Estimate:
    part = Part("weights", int(gigabytes * GB), "", "a setting")
    moments = {"loss": (Part("head", GB, "", "another"),), "optimiser step": ()}
    return Estimate((part,), moments, (), 0, 0)


def test_cards() -> None:
    assert [needing(card - 1).card() for card in CARDS] == list(CARDS)
    assert needing(23.1).card() == 48
    assert needing(140.1).card() is None
    assert needing(2).advice() == "a setting, another"


def test_too_little_memory_is_refused_or_warned_of(tmp_path: Path) -> None:
    memory = Memory(settings(made("qwen3", tmp_path)))
    assert check_memory(memory, needing(10), "cuda", 11 * GB) == []
    (warning,) = check_memory(memory, needing(10), "cuda", 11 * GB - 1)
    assert "may need 11.0 GB" in warning
    assert "lower it with a setting" in warning
    with pytest.raises(UserError, match=r"need 10.0 GB, the cuda has 10.0 GB.*check_memory false"):
        check_memory(memory, needing(10), "cuda", 10 * GB - 1)
    memory.run.model.check_memory = False
    assert len(check_memory(memory, needing(10), "cuda", 10 * GB - 1)) == 1


def test_vllm_takes_its_share_of_a_card(tmp_path: Path) -> None:
    """While it generates, beside what is there all the time; without sleep beside all."""
    part, coming = Part("weights", 10 * GB, ""), {"loss": (Part("head", 8 * GB, ""),)}

    def beside(*vllm: Any) -> list[bool]:
        found = Estimate((part,), coming, (), 0, 0, 1, *vllm)
        return [found.fits(room * GB) for room in (17, 18, 19, 20, 21, 35, 36)]

    assert beside() == [False, *[True] * 6]
    assert beside(0.5, True, 2 * GB) == [*[False] * 3, *[True] * 4]
    assert beside(0.5, False, 2 * GB) == [*[False] * 6, True]
    assert beside(0.5, True, 18 * GB) == [*[False] * 6, True]
    place = made("qwen3", tmp_path)
    own = Memory(settings(place)).estimate()
    found = Memory(settings(place, engine__kind="vllm")).estimate()
    assert (found.beside, found.sleeps, found.copy) == (0.3, True, found.parameters * 4)
    assert found.base == own.base
    assert own.moments.keys() - found.moments.keys() == {"prompts", "generation"}
    awake = {"engine__kind": "vllm", "engine__memory": 0.4, "engine__sleep": False}
    found = Memory(settings(place, **awake)).estimate()
    assert (found.beside, found.sleeps) == (0.4, False)
    assert "40% (engine.memory) all the time, 0.0 GB of it its weights" in found.vllm
    host = Memory(settings(place, engine__kind="vllm")).estimate(device="cpu")
    assert (host.beside, host.vllm) == (0.0, "")
    assert host.base == own.base + found.copy + (1 << 30)
    shared = settings(place, engine__kind="vllm", engine__memory=0.4)
    assert not Memory(shared).estimate(device="cpu").sleeps


def test_processes_are_looked_for_that_hold_vllm_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def each(number: int) -> Estimate:
        return Estimate((Part("weights", 200 * GB // number, ""),), {}, (), 0, 0, number, 0.5)

    memory = Memory(settings(made("qwen3", tmp_path)))
    monkeypatch.setattr(memory, "estimate", each)
    plan = memory.plan()
    assert plan is not None
    assert (plan.estimate.processes, plan.card) == (8, 80)


def test_what_is_said_of_vllm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    vllm = ["--set", "engine.kind=vllm", "--set", "engine.memory=0.5"]
    assert main(["doctor", "--preset", "manufactoria-paper", *vllm]) == 0
    text = capsys.readouterr().out
    assert "of a GPU 50% (engine.memory) while it generates, 8.0 GB of it its weights" in text
    assert "choice of a token" not in text
    assert main(["doctor", "--preset", "manufactoria-paper", *vllm, "--markdown"]) == 0
    assert "| vLLM beside it, of the card: 50%" in capsys.readouterr().out
    awake = {"engine__kind": "vllm", "engine__sleep": False}
    memory = Memory(settings(made("qwen3", tmp_path), **awake))
    (warning,) = check_memory(memory, memory.estimate(), "cuda", memory.estimate().total)
    assert "vLLM takes 30% (engine.memory) all the time" in warning


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--preset", "manufactoria-paper"]) == 0
    text = capsys.readouterr().out
    for words in ("4,022,468,096 parameters", "master copy", "one GPU of 141 GB", "--calibrate"):
        assert words in text
    smaller = ["--set", "model.path=Qwen/Qwen3-0.6B", "--set", "rollout.max_new_tokens=1024"]
    assert main(["doctor", "--preset", "manufactoria-paper", *smaller, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 596_049_920
    assert found["total"] == sum(found["kept"].values()) + max(
        sum(moment.values()) for moment in found["moments"].values()
    )
    assert found["tokens"]["rollouts"] == 32 * 1024
    assert main(["doctor", "--preset", "manufactoria-paper", "--processes", "8"]) == 0
    text = capsys.readouterr().out
    assert "each of 8 processes" in text
    assert "generation copy" in text


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_of_the_table_has_an_estimate(name: str, tmp_path: Path) -> None:
    import transformers

    config, model, fields = ARCHITECTURES[name]
    getattr(transformers, config)(**fields, architectures=[model]).save_pretrained(tmp_path)
    for over in ({}, {"model__lora": {"rank": 2}}):
        found = Memory(settings(tmp_path, **over)).estimate(2)
        assert found.total > found.base > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.path=owner/unknown"], "architecture of owner/unknown is not known"),
        (["--set", "train.lr"], "expected KEY=VALUE"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--set", "model.attention=spda"], "did you mean sdpa"),
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


def test_a_file_stays_mapped_on_a_cpu_while_weights_are_narrowed(tmp_path: Path) -> None:
    run = settings(
        made("qwen3", tmp_path), model__lora={"rank": 1}, model__compute_dtype="bfloat16"
    )
    memory = Memory(run)
    for device, number in (("cpu", 6), ("cuda", 4)):
        found = memory.estimate(device=device)
        assert found.base + found.at("loading") == memory.sizes.bare * number
