"""The policy that is updated is the one that was sampled from, or the run says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from fakes import Calls, Samples, samples

from resd.loop.update import PolicyUpdate, _without_dropout
from resd.methods.base import StepReport
from resd.models.batch import response_logits

Make = Callable[..., PolicyUpdate]


@pytest.fixture
def make(tiny_model: Path) -> Make:
    """A policy update of a fresh copy of the tiny model."""
    return fakes.maker(tiny_model)


def gpt2(checkpointing: bool = False) -> Any:
    """A model whose files switch dropout on: embeddings, attention and residuals, 10 % each."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2))
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["resd", "grpo"])
def test_no_dropout_in_the_policy_update(method: str, checkpointing: bool) -> None:
    """While the weights stand still every ratio is 1."""
    model = gpt2(checkpointing)
    batch = with_log_probs(model, samples(4))
    blocks = Calls(model.transformer.h[0].attn)
    train = {"updates_per_batch": 3, "micro_batch_tokens": 100_000}
    update = fakes.policy_update(model, method, train)
    seen: list[torch.Tensor] = []
    made: Any = update.method
    real = made.per_token

    def watched(micro: Any, logits: torch.Tensor, report: Any) -> torch.Tensor:
        seen.append((micro.log_probs - micro.old_log_probs).detach())
        return real(micro, logits, report)

    made.per_token = watched
    update.optimizer.step = lambda: None  # type: ignore[method-assign,assignment,return-value]
    report = StepReport()
    update.run(batch, report)
    assert len(seen) == 3
    assert all(torch.equal(gap, torch.zeros_like(gap)) for gap in seen)
    assert report.metrics["train/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert report.metrics["train/sampler_gap"] < 1e-5
    passes = 3 * 2 if checkpointing else 3
    assert blocks.calls == passes  # it really was checkpointed


def with_log_probs(model: Any, batch: Samples, off: float = 0.0) -> Samples:
    """The samples with the log-probs that a right sampler of this model reports."""
    model.eval()
    found: Samples = []
    for sample in batch:
        if sample is not None:
            ids = sample.response_ids
            with torch.no_grad():
                logits = response_logits(model, [sample.prompt_ids], [ids], 0)[0]
            own = logits.float().log_softmax(-1)[range(len(ids)), list(ids)]
            sample = replace(sample, log_probs=tuple((own - off).tolist()))
        found.append(sample)
    model.train()
    return found


@pytest.mark.parametrize("on_sampler", [False, True])
def test_how_far_the_sampler_is_off_is_told(make: Make, on_sampler: bool) -> None:
    for off in (0.0, 0.3, -0.3, math.inf):
        update = make("sdpo", {"lr": 1e-6}, on_sampler=on_sampler)
        report = StepReport()
        update.run(with_log_probs(update.student, samples(), off), report)
        assert report.metrics["train/sampler_gap"] == pytest.approx(abs(off), abs=1e-3)
        if math.isfinite(off):
            ratio = math.exp(off) if on_sampler else 1.0
            assert report.metrics["train/ratio"] == pytest.approx(ratio, abs=1e-3)


def test_the_gap_to_the_sampler_is_of_the_first_update_of_a_batch(make: Make) -> None:
    """Later ones are of a policy that has moved; a token it could not score has no gap."""
    update = make("sdpo", {"updates_per_batch": 3, "lr": 0.05}, on_sampler=True)
    batch = with_log_probs(update.student, samples(), 0.25)
    batch = [
        s and replace(s, log_probs=(*(s.log_probs or ())[:-1], math.nan)) if i == 0 else s
        for i, s in enumerate(batch)
    ]
    report = StepReport()
    update.run(batch, report)
    assert 0.15 < report.metrics["train/sampler_gap"] < 0.25
    silent = StepReport()
    make("sdpo").run(samples(), silent)
    assert "train/sampler_gap" not in silent.metrics


def test_a_block_that_drops_out_by_its_own_rate_does_not_under_checkpointing() -> None:
    class Block(torch.nn.Module):
        gradient_checkpointing = True

        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.Linear(2, 2)
            self.drop = torch.nn.Dropout(0.5)
            self.dropout = 0.5
            self.scale, self.drop_names = 2.0, ["a"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.drop(x), self.dropout, self.training)

    block = torch.nn.Sequential(Block()).train()
    _without_dropout(block)
    assert block[0].training  # or it would not be checkpointed
    assert not block[0].attention.training
    assert (block[0].scale, block[0].drop_names) == (2.0, ["a"])
    assert torch.equal(block(torch.ones(64)), torch.ones(64))


# -- how far off is too far ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.01), (torch.float64, 0.01), (torch.bfloat16, 0.1)]
)
def test_what_rounding_explains(dtype: torch.dtype, most: float) -> None:
    assert fakes.policy_update(fakes.smallest().to(dtype), "grpo").most_gap == most


def test_how_far_the_weights_moved() -> None:
    update = fakes.policy_update(fakes.smallest(), "grpo")
    then, grad = torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 0.0])
    told = update._movement([(then - 0.1 * grad, torch.stack([then, grad]))], 0.25)
    assert told["train/moved"] == pytest.approx(0.4)
    # Nothing was to move.
    assert update._movement([(then, torch.stack([then, 0.0 * grad]))], 0.25) == {}


def test_a_large_weight_is_looked_at_in_places() -> None:
    update = fakes.policy_update(fakes.smallest(), "grpo")
    sizes = (8191, 8192, 3 * 4096)
    update.masters._wide = {str(n): torch.arange(float(n)) for n in sizes}
    for weight in update.masters.weights.values():
        weight.grad = 2.0 * weight
    update.masters._wide["still"] = torch.ones(3)
    found = [both for _, both in update._sampled_weights()]
    assert [both.shape for both in found] == [(2, 8191), (2, 4096), (2, 4096)]
    assert all(torch.equal(both[1], 2.0 * both[0]) for both in found)
