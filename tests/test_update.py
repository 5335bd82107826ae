"""The policy update: micro-batches change no gradient, what teaches nothing costs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from fakes import Calls, samples

from resd.config import METHODS
from resd.loop.update import PolicyUpdate
from resd.methods import distillation as distillation_module
from resd.methods.base import StepReport
from resd.types import TrainingSample

AGGREGATIONS = ("token_mean", "sample_mean", "released")
Make = Callable[..., PolicyUpdate]


@pytest.fixture
def make(tiny_model: Path) -> Make:
    """A policy update of a fresh copy of the tiny model, whose teacher is another model."""
    return fakes.maker(tiny_model)


def weights(update: PolicyUpdate) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in update.student.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "aggregation"),
    [
        ("resd", "sample_mean"),
        ("resd", "released"),
        ("sdpo", "token_mean"),
        ("sdpo_ss", "sample_mean"),
        ("grpo", "token_mean"),
        ("grpo", "released"),
    ],
)
def test_the_gradient_does_not_depend_on_micro_batches(
    make: Make, method: str, aggregation: str
) -> None:
    config = {"aggregation": aggregation}
    one, three, all_ = (
        fakes.gradient(make(method, {"micro_batch_tokens": size}, **config), samples())
        for size in (1, 120, 100_000)
    )
    assert one.norm() > 1e-4
    for other in (three, all_):
        assert (other - one).norm() / one.norm() < 1e-5


@pytest.mark.parametrize(
    "over", [{"alpha": 0.0}, {"alpha": 1.0, "ratio_max": 5.0}, {"top_k": None}]
)
def test_nor_with_other_divergences(make: Make, over: dict[str, Any]) -> None:
    one, all_ = (
        fakes.gradient(make("sdpo", {"micro_batch_tokens": s}, **over), samples())
        for s in (1, 100_000)
    )
    assert (all_ - one).norm() / one.norm() < 1e-5


def test_logged_numbers_do_not_depend_on_micro_batches(make: Make) -> None:
    rows = []
    for size in (1, 100_000):
        report = StepReport()
        make("resd", {"micro_batch_tokens": size}).run(samples(), report)
        rows.append(report.metrics)
    assert rows[0].pop("train/padding") == 0.0  # each sample by itself
    assert 0.0 < rows[1].pop("train/padding") < 1.0
    assert rows[0].keys() == rows[1].keys() >= {"train/loss", "train/entropy", "train/grad_norm"}
    assert all(math.isclose(rows[0][k], rows[1][k], rel_tol=1e-5) for k in rows[0])


def test_aggregations_differ(make: Make) -> None:
    """The test above would not see an aggregation that is ignored."""
    grads = [fakes.gradient(make("sdpo", aggregation=name), samples()) for name in AGGREGATIONS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (grads[i] - grads[j]).norm() / grads[i].norm() > 1e-2


def test_released_counts_what_teaches_nothing_in_its_denominator(make: Make) -> None:
    taught = [sample for sample in samples() if sample is not None]
    share = len(taught) / 16
    released = fakes.gradient(make("sdpo", aggregation="released"), samples())
    mean = fakes.gradient(make("sdpo", aggregation="sample_mean"), samples())
    assert torch.allclose(released, mean * share, rtol=1e-4, atol=1e-8)


def test_the_order_of_samples_changes_nothing_but_rounding(make: Make) -> None:
    a, b = fakes.gradient(make("resd"), samples()), fakes.gradient(make("resd"), samples()[::-1])
    assert (a - b).norm() / a.norm() < 1e-5


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", (1 * 2.0 * 5.0 + 3 * 0.5 * 7.0) / 4),
        ("sample_mean", (2.0 * 5.0 + 0.5 * 7.0) / 2),
        ("released", (2.0 * 5.0 + 0.5 * 7.0) / 3),
    ],
)
def test_aggregations_by_hand(make: Make, aggregation: str, expected: float, size: int) -> None:
    """Losses of 5 and 7 a token, of 1 and 3 tokens, weights 2 and 0.5; one teaches nothing."""
    update = make("sdpo", {"micro_batch_tokens": size}, aggregation=aggregation)
    method: Any = update.method

    def by_advantage(tokens: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        report["twice"] = 2 * tokens.advantages
        return tokens.advantages + 0.0 * tokens.log_probs

    method.per_token = by_advantage
    one = TrainingSample((1, 2), (3,), (4,), weight=2.0, advantage=5.0)
    three = TrainingSample((1,), (3, 4, 5), (4,), weight=0.5, advantage=7.0)
    report = StepReport()
    update.run([one, None, three], report)
    assert report.metrics["train/loss"] == pytest.approx(expected)
    assert report.metrics["train/taught"] == pytest.approx(2 / 3)
    mean = (
        2
        * expected
        / {"token_mean": 3.5 / 4, "sample_mean": 1.25, "released": 2.5 / 3}[aggregation]
    )
    assert report.metrics["train/twice"] == pytest.approx(mean)  # a mean, whatever the weights


# -- what teaches nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_teaches_nothing_costs_no_forward_pass(make: Make, method: str) -> None:
    update = make(method, {"micro_batch_tokens": 80})
    student = Calls(update.student)
    teacher = None
    if method != "grpo":
        at_work = getattr(update.method, "_at_work", update.method)
        with at_work.teacher.model() as module:
            teacher = Calls(module)
    batch = samples(10)
    taught = sum(sample is not None for sample in batch)
    update.run(batch, StepReport())
    assert student.rows == taught == 8
    assert teacher is None or teacher.rows == taught


def test_a_batch_that_teaches_nothing_changes_nothing(make: Make) -> None:
    update, report = make("resd"), StepReport()
    student, before = Calls(update.student), weights(update)
    assert not update.run([None, None], report)
    assert student.rows == 0
    assert same(weights(update), before)
    assert update.updates == 0
    assert report.metrics["train/taught"] == 0.0
    update.run([], report)  # early stop may leave no example at all
    assert update.updates == 0


# -- steps that are not finite --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(make: Make, bad: float) -> None:
    update, report = make("sdpo", {"micro_batch_tokens": 160, "updates_per_batch": 2}), StepReport()
    method: Any = update.method
    loss, calls = method.per_token, []

    def broken(micro: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        calls.append(1)
        factor = bad if len(calls) == 2 else 1.0
        return loss(micro, logits, report) * factor

    method.per_token = broken
    synced: list[int] = []
    method.after_update = lambda student: synced.append(1)
    before = weights(update)
    stepped: list[list[torch.Tensor]] = []
    step = update.optimizer.step

    def watched() -> None:
        stepped.append(weights(update))
        step()

    update.optimizer.step = watched  # type: ignore[method-assign]
    update.run(samples(), report)
    assert report.counts == {"skipped_not_finite": 1}
    assert len(stepped) == len(synced) == 1  # the second update was finite
    assert same(stepped[0], before)  # and started from untouched weights
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert all(torch.isfinite(parameter).all() for parameter in weights(update))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_neither_a_loss_nor_a_gradient_may_be_infinite(make: Make, what: str) -> None:
    update = make("sdpo")
    method: Any = update.method
    real = method.per_token

    def broken(tokens: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        nothing = (tokens.log_probs - tokens.log_probs.detach()).abs()
        steep = nothing.sqrt() if what == "gradient" else math.inf
        return real(tokens, logits, report) + steep

    method.per_token = broken
    report, before = StepReport(), weights(update)
    off = [s and replace(s, log_probs=(-3.0,) * len(s.response_ids)) for s in samples()]
    assert not update.run(off, report)
    assert report.counts == {"skipped_not_finite": 1}
    assert "train/loss" not in report.metrics
    assert same(weights(update), before)
    told = {"train/sampler_gap", "train/moved"}
    assert not told & set(report.metrics)
    method.per_token = real
    assert update.run(off, report)
    assert told <= set(report.metrics)


def test_the_first_update_that_is_taken_is_held_against_the_sampler(make: Make) -> None:
    update, report = make("sdpo", {"updates_per_batch": 3, "lr": 0.05}), StepReport()
    method: Any = update.method
    real, calls = method.per_token, []

    def broken(tokens: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        calls.append(1)
        return real(tokens, logits, report) * (math.nan if len(calls) == 1 else 1.0)

    method.per_token = broken
    off = [s and replace(s, log_probs=(-3.0,) * len(s.response_ids)) for s in samples(4)]
    update.run(off, report)
    alone = StepReport()
    make("sdpo", {"lr": 0.05}).run(off, alone)
    assert report.metrics["train/sampler_gap"] == alone.metrics["train/sampler_gap"]
    assert report.metrics["train/ratio"] != 1.0  # the third update is of a policy that has moved


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_every_response_token_is_seen_once_and_no_padding(make: Make, chunk: int) -> None:
    update = make("sdpo", {"micro_batch_tokens": 100_000, "chunk_tokens": chunk})
    method: Any = update.method
    loss, seen = method.per_token, []

    def watched(tokens: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        seen.append(len(logits))
        return loss(tokens, logits, report)

    method.per_token = watched
    update.run(samples(), StepReport())
    assert sum(seen) == sum(len(s.response_ids) for s in samples() if s is not None)
    assert max(seen) <= chunk


# -- several updates on one batch -----------------------------------------------------------------


def test_importance_weights_are_one_on_the_first_of_several_updates(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = distillation_module.importance_weights

    def watched(*args: Any) -> torch.Tensor:
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(distillation_module, "importance_weights", watched)
    update = make("resd", {"updates_per_batch": 3, "micro_batch_tokens": 100_000, "lr": 0.05})
    update.run(samples(), StepReport())
    assert len(seen) == 3
    assert torch.equal(seen[0], torch.ones_like(seen[0]))
    for later in seen[1:]:
        assert (later - 1).abs().max() > 1e-3
        assert later.max() <= 2.0


def test_log_probs_of_another_sampler_count_from_the_first_update_on(make: Make) -> None:
    off = [s and replace(s, log_probs=(-3.0,) * len(s.response_ids)) for s in samples()]
    plain = fakes.gradient(make("sdpo"), samples())
    assert torch.equal(fakes.gradient(make("sdpo"), off), plain)  # the trainer's own are as good
    other = fakes.gradient(make("sdpo", on_sampler=True), off)
    assert (plain - other).norm() / plain.norm() > 0.1


def test_grpos_ratio_moves_between_updates(make: Make) -> None:
    first, many = StepReport(), StepReport()
    make("grpo").run(samples(), first)
    make("grpo", {"updates_per_batch": 3, "lr": 0.05}).run(samples(), many)
    assert abs(many.metrics["train/ratio"] - first.metrics["train/ratio"]) > 1e-4


# -- schedule and state ---------------------------------------------------------------------------


def test_warm_up_is_linear_and_goes_by_updates(make: Make) -> None:
    update = make("sdpo", {"warmup_steps": 4, "lr": 1e-3, "updates_per_batch": 1})
    rates = []
    for _ in range(6):
        report = StepReport()
        update.run(samples(4), report)
        rates.append(report.metrics["train/lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_update_has_the_whole_rate(make: Make, warmup: int) -> None:
    report = StepReport()
    assert make("sdpo", {"warmup_steps": warmup, "lr": 1e-3}).run(samples(1), report)
    assert report.metrics["train/lr"] == 1e-3
    assert report.metrics["train/taught"] == 1.0


def test_gradients_are_clipped(make: Make) -> None:
    update = make("sdpo", {"max_grad_norm": 1e-3})
    report = StepReport()
    clipped = fakes.gradient(update, samples())
    assert clipped.norm() == pytest.approx(1e-3, rel=1e-3)
    make("sdpo", {"max_grad_norm": 1e-3}).run(samples(), report)
    assert report.metrics["train/grad_norm"] > 1e-3  # logged before it is clipped


@pytest.mark.parametrize("method", ["resd", "grpo"])
def test_an_update_continues_bit_for_bit_from_its_state(
    make: Make, method: str, tmp_path: Path
) -> None:
    straight = make(method)
    straight.run(samples(), StepReport())
    restore = fakes.carry_over(straight, tmp_path / "state")
    straight.run(samples(6), StepReport())
    resumed = make(method)
    restore(resumed)
    resumed.run(samples(6), StepReport())
    assert same(weights(straight), weights(resumed))


# -- the teacher ----------------------------------------------------------------------------------


def test_a_teachers_states_are_kept_up_to_a_bound() -> None:
    update = fakes.policy_update(fakes.smallest(), "grpo")
    most = (1 << 28) // update._head.width
    for tokens, kept in ((most, True), (most + 1, False)):
        halves: Any = [
            SimpleNamespace(token_ids=range(n)) for n in (tokens // 2, tokens - tokens // 2)
        ]
        assert update._fits(halves) == kept


@pytest.mark.parametrize(("kind", "lent"), [("frozen", True), ("live", False)])
def test_a_teacher_of_its_own_is_made_ready_for_its_head(
    make: Make, kind: str, lent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has just gone through a forward pass and is ready."""
    update, seen = make("sdpo", teacher={"kind": kind}), []

    def ready(model: Any) -> Any:
        seen.append(model)
        return nullcontext(model)

    monkeypatch.setattr(update._backend, "ready", ready)
    update.run(samples(2), StepReport())
    assert len(seen) == lent
    assert all(model is not update.student for model in seen)


def test_gradients_are_given_up_after_the_step(make: Make) -> None:
    update = make("sdpo", {"updates_per_batch": 2})
    assert update.run(samples(), StepReport())
    assert all(p.grad is None for p in update.student.parameters())
