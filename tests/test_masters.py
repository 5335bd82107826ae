"""Precision: weights move by the learning rate, and nothing is lost on the way to the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from resd.config import load_config, preset_names
from resd.loop.masters import Masters
from resd.loop.update import PolicyUpdate
from resd.methods.base import StepReport
from resd.models.load import save_model
from resd.types import TrainingSample

Samples = list[TrainingSample | None]
RATES = sorted({load_config(None, [("preset", name)]).train.lr for name in preset_names()})


def qwen(tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    return Qwen3ForCausalLM(shape).to(dtype)


def samples(number: int = 2) -> Samples:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 64, (length,), generator=generator).tolist())

    return [
        TrainingSample(ids(4), ids(6 + i), ids(8), advantage=(-1.0) ** i) for i in range(number)
    ]


def snapshot(update: PolicyUpdate) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in update.masters.weights.items()}


def moved(update: PolicyUpdate, number: int) -> tuple[float, float]:
    """Mean movement of the weights over some updates, and the share of them that moved."""
    before = snapshot(update)
    batch = samples()
    for _ in range(number):
        update.run(batch, StepReport())
    steps = torch.cat([(w - before[n]).abs().flatten() for n, w in snapshot(update).items()])
    return float(steps.float().mean()), float((steps > 0).float().mean())


# -- weights move ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", RATES)
def test_weights_move_by_every_presets_learning_rate(lr: float) -> None:
    train = {"lr": lr}
    size, share = moved(fakes.policy_update(qwen(), "grpo", train), 40)
    mixed = fakes.policy_update(qwen(), "grpo", train, compute=torch.bfloat16)
    assert {p.dtype for p in mixed.student.parameters()} == {torch.bfloat16}
    mixed_size, mixed_share = moved(mixed, 40)
    assert size > 5 * lr  # as far as 40 updates should get
    assert mixed_size > 0.5 * size
    assert mixed_share > 0.9 * share


def test_there_are_presets_with_the_papers_rate() -> None:
    assert 1e-6 in RATES


def test_the_model_computes_with_the_rounded_weights() -> None:
    update = fakes.policy_update(qwen(), "grpo", {"lr": 1e-2}, compute=torch.bfloat16)
    update.run(samples(), StepReport())
    for name, parameter in update.student.named_parameters():
        assert torch.equal(parameter, update.masters.weights[name].bfloat16())


def told(update: PolicyUpdate) -> float | None:
    """What an update says of how far it moved the weights."""
    report = StepReport()
    update.run(samples(), report)
    return report.metrics.get("train/moved")


@pytest.mark.parametrize("narrow", [False, True])
def test_movement_that_is_rounded_away_is_told_once(narrow: bool) -> None:
    model = qwen(dtype=torch.bfloat16 if narrow else torch.float32)
    update = fakes.policy_update(model, "grpo", {"lr": 1e-6})
    share = told(update)
    assert share is not None
    assert (share < 0.1) if narrow else share == pytest.approx(1.0, abs=0.1)
    assert told(update) is None


@pytest.mark.parametrize("train", [{"warmup_steps": 10}, {"weight_decay": 500.0}, {"lr": 1e-2}])
def test_healthy_movement(train: dict[str, Any]) -> None:
    for compute in (None, torch.bfloat16):
        settings = {"lr": 1e-6, "max_grad_norm": 1e-3, **train}
        share = told(fakes.policy_update(qwen(), "grpo", settings, compute))
        assert share is not None
        assert 0.5 < share < 2.0


def test_movement_is_that_of_the_first_step_that_is_taken() -> None:
    update = fakes.policy_update(qwen(), "grpo", {"lr": 1e-6})
    method: Any = update.method
    loss = method.per_token
    method.per_token = lambda micro, logits, report: loss(micro, logits, report) * float("nan")
    assert told(update) is None
    method.per_token = loss
    assert told(update) is not None


# -- masters --------------------------------------------------------------------------------------


class Small(nn.Module):
    """A trained and a frozen weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 1.0 + 2**-12))
        self.base = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("frequencies", torch.full((2,), 1.0 + 2**-12))


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    model = Small()
    masters = Masters(model, torch.bfloat16)
    for _ in range(300):
        model.weight.sum().backward()
    wide = masters.weights["weight"]
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float32
    assert wide.grad.tolist() == [300.0, 300.0]  # bfloat16 would have stopped at 256
    assert model.weight.grad is None


def test_what_is_narrowed_and_what_is_not() -> None:
    model = Small()
    masters = Masters(model, torch.bfloat16)
    assert model.weight.dtype == model.base.dtype == torch.bfloat16
    assert model.frequencies.dtype == torch.float32
    assert masters.weights.keys() == {"weight"}
    assert masters.weights["weight"].tolist() == [1.0 + 2**-12] * 2  # not rounded
    frequencies = [b for n, b in qwen().named_buffers() if "inv_freq" in n]
    model = qwen()
    Masters(model, torch.bfloat16)
    kept = [b for n, b in model.named_buffers() if "inv_freq" in n]
    assert frequencies
    assert all(torch.equal(a, b) for a, b in zip(frequencies, kept, strict=True))


def test_without_another_dtype_nothing_is_copied() -> None:
    for compute in (None, torch.float32):
        model = Small()
        masters = Masters(model, compute)
        assert masters.weights["weight"] is model.weight


def test_masters_are_published_into_the_model() -> None:
    model = Small()
    masters = Masters(model, torch.bfloat16)
    with torch.no_grad():
        masters.weights["weight"].add_(1.0)
    masters.publish()
    assert model.weight.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("tied", [True, False])
def test_wide_weights_are_saved_under_tied_names_too(tmp_path: Path, tied: bool) -> None:
    update = fakes.policy_update(qwen(tied), "grpo", {"lr": 1e-6}, compute=torch.bfloat16)
    update.run(samples(), StepReport())
    save_model(update.student, tmp_path, update.masters.weights)
    assert {p.dtype for p in update.student.parameters()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    found = dict(loaded.named_parameters())
    assert found.keys() == update.masters.weights.keys()
    for name, wide in update.masters.weights.items():
        assert torch.equal(found[name], wide)
        assert not torch.equal(wide, wide.bfloat16().float()) or "norm" in name
    head, embedding = loaded.lm_head.weight, loaded.model.embed_tokens.weight
    assert torch.equal(head, embedding) is tied


@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_an_update_with_masters_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def build() -> PolicyUpdate:
        config = {"teacher": {"kind": kind, "rate": 0.1}}
        train = {"lr": 1e-4, "updates_per_batch": 2}
        return fakes.policy_update(qwen(), "resd", train, torch.bfloat16, shake=0.02, **config)

    straight = build()
    straight.run(samples(4), StepReport())
    restore = fakes.carry_over(straight, tmp_path / "state")
    straight.run(samples(3), StepReport())
    resumed = build()
    restore(resumed)
    assert resumed.updates == 2
    resumed.run(samples(3), StepReport())
    a, b = snapshot(straight), snapshot(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name, tensor in straight.method.tensors().items():
        assert torch.equal(tensor, resumed.method.tensors()[name])


# -- the teacher beside masters -------------------------------------------------------------------


def teacher_of(update: PolicyUpdate) -> Any:
    method: Any = update.method
    return method.teacher


def test_an_average_starts_at_the_wide_weights_and_follows_them() -> None:
    config = {"teacher": {"kind": "ema", "rate": 0.25}}
    for compute in (None, torch.bfloat16):
        update = fakes.policy_update(qwen(), "resd", {"lr": 1e-5}, compute, **config)
        start = snapshot(update)
        tensors = update.method.tensors()
        assert all(torch.equal(tensors[name], wide) for name, wide in start.items())
        update.run(samples(), StepReport())
        for name, wide in snapshot(update).items():
            expected = start[name] + 0.25 * (wide - start[name])
            assert not torch.equal(wide, start[name])
            torch.testing.assert_close(tensors[name], expected, rtol=1e-7, atol=1e-9)
        with teacher_of(update).model() as model:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, tensors[name].to(parameter.dtype))


def test_a_full_precision_average_takes_no_second_copy() -> None:
    update = fakes.policy_update(qwen(), "resd", teacher={"kind": "ema", "rate": 0.25})
    with teacher_of(update).model() as model:
        held = {p.data_ptr() for p in model.parameters()}
    named = {n for n, _ in update.student.named_parameters()}
    assert {t.data_ptr() for n, t in update.method.tensors().items() if n in named} == held


@pytest.mark.parametrize("kind", ["frozen", "live"])
def test_frozen_does_not_move_and_live_is_the_student(kind: str) -> None:
    update = fakes.policy_update(qwen(), "resd", {"lr": 1e-2}, shake=0.02, teacher={"kind": kind})
    with teacher_of(update).model() as model:
        assert (model is update.student) is (kind == "live")
        before = copy.deepcopy(model.state_dict())
    update.run(samples(), StepReport())
    with teacher_of(update).model() as model:
        after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before) is (kind == "frozen")


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_the_teacher_of_a_batch_is_asked_once_if_it_does_not_move(
    monkeypatch: pytest.MonkeyPatch, compute: torch.dtype | None
) -> None:
    def rows(kind: str) -> tuple[int, dict[str, torch.Tensor]]:
        train = {"updates_per_batch": 3, "micro_batch_tokens": 80}
        update = fakes.policy_update(
            qwen(), "resd", train, compute, shake=0.02, teacher={"kind": kind, "rate": 0.5}
        )
        seen: list[int] = []
        lend: Callable[[], Any] = teacher_of(update).model
        with lend() as model:
            model.register_forward_hook(
                lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])),
                with_kwargs=True,
            )
        update.run(samples(5), StepReport())
        return sum(seen), snapshot(update)

    once, kept = rows("frozen")
    assert once == 5
    assert rows("ema")[0] == 3 * 5
    assert rows("live")[0] == 3 * 5 * 2  # the student's own passes are among them
    # Where there is no room to keep its answer, the outcome is the same.
    monkeypatch.setattr("resd.loop.update._KEPT_NUMBERS", 100)
    again, asked = rows("frozen")
    assert again == 3 * 5
    assert all(torch.equal(kept[name], asked[name]) for name in kept)
