"""GRPO's advantages and clipped loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resd.distill import clipped_policy_loss, group_advantages

quick = settings(deadline=None, max_examples=60)


def test_advantages_worked_example():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 5.0])
    centred = torch.tensor([0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 4, scale=False), centred)
    # Squared deviations 0.5625 + 3 * 0.0625 = 0.75 over 3 is a variance of 0.25.
    scaled = group_advantages(rewards, 4, scale=True)
    torch.testing.assert_close(scaled, centred / (0.5 + 1e-4))


@quick
@given(
    st.integers(1, 6),
    st.lists(st.floats(-10, 10), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_advantages_are_finite_centred_and_shift_free(group, base, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(base), group, generator=generator, dtype=torch.float64)
    rewards = (torch.tensor(base, dtype=torch.float64)[:, None] + noise).flatten()
    advantages = group_advantages(rewards, group, scale=scale)
    assert advantages.shape == rewards.shape
    sums = advantages.view(-1, group).sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0.0)
    shifted = group_advantages(rewards + 3.0, group, scale=scale)
    torch.testing.assert_close(shifted, advantages, atol=1e-6, rtol=1e-6)
    best = rewards.view(-1, group).argmax(dim=1)
    assert torch.equal(advantages.view(-1, group).argmax(dim=1), best)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("group", [1, 3])
def test_constant_groups_have_exactly_no_advantage(group, scale):
    # The mean of three float32 0.9 is not 0.9.
    rewards = torch.tensor([0.9, 0.9, 0.9, 1.7, 1.7, 1.7])
    assert torch.equal(group_advantages(rewards, group, scale=scale), torch.zeros(6))


def test_advantages_of_integer_and_half_rewards_are_float32():
    for rewards in (torch.tensor([1, 0]), torch.tensor([1.0, 0.0], dtype=torch.bfloat16)):
        advantages = group_advantages(rewards, 2, scale=False)
        assert advantages.dtype == torch.float32
        assert advantages.tolist() == [0.5, -0.5]
    assert group_advantages(torch.zeros(0), 4, scale=True).shape == (0,)


def test_advantages_reject_bad_groups():
    for group in (0, -2, 4):
        with pytest.raises(ValueError, match="groups"):
            group_advantages(torch.zeros(6), group, scale=True)
    with pytest.raises(ValueError, match=r"\[B\]"):
        group_advantages(torch.zeros(2, 3), 3, scale=True)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # slope: d loss / d log_prob, zero where the clip holds the policy back
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.8, 0.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_loss_worked_examples(ratio, advantage, loss, slope):
    old = torch.tensor([[-1.0]])
    new = (old + math.log(ratio)).requires_grad_()
    value = clipped_policy_loss(new, old, torch.tensor([advantage]), clip_low=0.1, clip_high=0.3)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert new.grad.item() == pytest.approx(slope, abs=1e-6)


@quick
@given(st.integers(0, 2**31))
def test_on_policy_gradient_is_the_plain_policy_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(3, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(3, generator=generator, dtype=torch.float64)
    new = log_probs.clone().requires_grad_()
    clipped_policy_loss(new, log_probs, advantages).sum().backward()
    torch.testing.assert_close(new.grad, -advantages[:, None].expand(3, 4))


def test_only_the_new_policy_gets_a_gradient():
    new = torch.zeros(1, 2, requires_grad=True)
    old = torch.zeros(1, 2, requires_grad=True)
    advantages = torch.ones(1, requires_grad=True)
    clipped_policy_loss(new, old, advantages).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_far_off_policies_stay_finite():
    new = torch.tensor([[0.0, 0.0], [-500.0, 0.0]], dtype=torch.bfloat16).requires_grad_()
    old = torch.tensor([[-500.0, 0.0], [0.0, -500.0]], dtype=torch.bfloat16)
    for advantages in (torch.zeros(2), torch.tensor([1.0, -1.0])):
        loss = clipped_policy_loss(new, old, advantages)
        loss.sum().backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert new.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_log_probs": torch.zeros(2, 4)}, "log-probs must both be"),
        ({"log_probs": torch.zeros(2), "old_log_probs": torch.zeros(2)}, "log-probs must both be"),
        ({"advantages": torch.zeros(2, 3)}, r"advantages must be \[2\]"),
        ({"clip_low": -0.1}, "clip_low"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        (dict.fromkeys(("log_probs", "old_log_probs"), torch.zeros(2)), r"\[B, T\]"),
        (dict.fromkeys(("log_probs", "old_log_probs"), torch.zeros(2, 3, 4)), r"\[B, T\]"),
    ],
)
def test_clipped_loss_rejects_bad_input(change, message):
    good = {
        "log_probs": torch.zeros(2, 3),
        "old_log_probs": torch.zeros(2, 3),
        "advantages": torch.zeros(2),
    }
    clipped_policy_loss(**good)
    with pytest.raises(ValueError, match=message):
        clipped_policy_loss(**{**good, **change})
