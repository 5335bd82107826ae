"""SDPO's and GRPO's losses agree with TRL's own functions on random tensors (written for TRL 1.16).

Where TRL means something else than this library, found by reading and by these tests:

- alpha is the same: 0 forward KL, 1 reverse KL, the same mixture in between. TRL's defaults are
  not: reverse KL on the sampled token alone, and, in its top-k mode, no tail bucket.
- TRL has no ratio clipping (ratio_min, ratio_max); it is left out here.
- TRL works in the dtype of the logits that it is given, and takes the tail as one minus the mass
  of the top-k. Here it is float32 at least and the tail is summed, so a small float32 tail differs
  by TRL's rounding. Both keep at least 1e-7 in it. The comparison is in float64.
- TRL fails for a top-k above the vocabulary; here that is the whole vocabulary.
- TRL divides both logits by the sampling temperature; here the caller does, if at all.
- SDPOTrainer averages over the tokens of a sample and then over all samples of the micro-batch,
  masked or not: that is `released`, and it depends on the micro-batch. `sample_mean` is not there.
- SDPOTrainer's advantages of a group of one are NaN when scaled by the group; here they are 0.
- SDPOTrainer divides unscaled advantages by 1 + 1e-4; here (and in GRPOTrainer) nothing does.
- Here the log-ratio of the policy loss is cut at +-20; in TRL it can overflow.
"""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from resd.distill import (
    EmaTeacher,
    clipped_policy_loss,
    divergence_per_token,
    group_advantages,
    importance_weights,
    token_weights,
)

pytest.importorskip("trl")
pytest.importorskip("trl.experimental.sdpo.loss_utils")

from trl.experimental.sdpo import SDPOTrainer, loss_utils
from trl.experimental.sdpo.sdpo_trainer import DistillationLogits
from trl.experimental.sdpo.teacher_sync import SyncTeacherModelCallback
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import selective_log_softmax

B, T, V = 4, 6, 32
ALPHAS = [0.0, 0.3, 0.5, 1.0]
FREE = {"ratio_min": None, "ratio_max": None}


def draw(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)


def both_gradients(ours, theirs, values):
    """Return each function's value at `values` and its gradient there, after a random weighting."""
    results = []
    for function in (ours, theirs):
        x = values.clone().requires_grad_()
        y = function(x)
        (y * draw(99, *y.shape)).sum().backward()
        results.append((y.detach(), x.grad))
    return results


def assert_agree(ours, theirs, values):
    (y, gradient), (their_y, their_gradient) = both_gradients(ours, theirs, values)
    assert gradient.abs().max() > 1e-4  # or there is nothing to compare
    torch.testing.assert_close(y, their_y, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-7, atol=1e-10)


def completion_mask():
    lengths = torch.tensor([6, 2, 5, 4])
    return (torch.arange(T) < lengths[:, None]).double()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("top_k", "tail"), [(1, True), (8, True), (8, False), (V - 1, True), (V - 1, False)]
)
def test_top_k_divergence(alpha, top_k, tail):
    teacher = draw(2, B, T, V)
    assert_agree(
        lambda x: divergence_per_token(x, teacher, alpha=alpha, top_k=top_k, tail=tail, **FREE),
        lambda x: loss_utils.compute_topk_self_distillation_loss(
            x,
            teacher,
            distillation_topk=top_k,
            distillation_alpha=alpha,
            distillation_add_tail=tail,
        ),
        draw(1, B, T, V),
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_full_divergence(alpha):
    teacher = draw(2, B, T, V)
    assert_agree(
        lambda x: divergence_per_token(x, teacher, alpha=alpha, top_k=None, **FREE),
        lambda x: loss_utils.compute_full_logit_self_distillation_loss(
            x, teacher, distillation_alpha=alpha
        ),
        draw(1, B, T, V),
    )


def test_both_keep_the_same_least_tail():
    student, teacher = draw(1, 3, V), draw(2, 3, V)
    student[:, :4] += 60.0  # the tail is below 1e-7
    assert_agree(
        lambda x: divergence_per_token(x, teacher, alpha=0.0, top_k=4, **FREE),
        lambda x: loss_utils.compute_topk_self_distillation_loss(
            x, teacher, distillation_topk=4, distillation_alpha=0.0, distillation_add_tail=True
        ),
        student,
    )


def test_importance_weights():
    new, old, loss = draw(3, B, T), draw(4, B, T), draw(5, B, T)
    theirs = loss_utils.apply_importance_sampling_clipping(loss, new, old, 2.0)
    torch.testing.assert_close(loss * importance_weights(new, old, cap=2.0), theirs)
    assert (importance_weights(new, old) == 2.0).any()


def sdpo_trainer(**settings):
    """Return what SDPOTrainer's loss methods read of a trainer."""
    return MagicMock(
        args=SimpleNamespace(
            distillation_mode="topk_logits",
            distillation_topk=8,
            distillation_alpha=0.5,
            distillation_add_tail=True,
            distillation_is_clip=2.0,
        ),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, process_index=0),
        epsilon_low=0.2,
        epsilon_high=0.28,
        importance_sampling_level="token",
        **settings,
    )


def test_sdpo_loss_of_a_batch():
    """The whole SDPO loss: divergence, importance weights, and a sample without a teacher."""
    teacher, mask = draw(2, B, T, V), completion_mask()
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
    old = selective_log_softmax(draw(6, B, T, V), ids)
    taught = torch.tensor([True, False, True, True])

    def ours(x):
        each = divergence_per_token(x, teacher, alpha=0.5, top_k=8, **FREE)
        each = each * importance_weights(selective_log_softmax(x, ids), old)
        return (token_weights(mask, taught, torch.ones(B), "released").double() * each).sum()

    def theirs(x):
        logits = DistillationLogits(
            completion_ids=ids,
            completion_mask=mask,
            loss_mask=mask * taught[:, None],
            student_logits=x,
            teacher_logits=teacher,
        )
        return SDPOTrainer._compute_self_distillation_loss(
            sdpo_trainer(), SimpleNamespace(training=True), {"old_per_token_logps": old}, logits
        )

    (y, gradient), (their_y, their_gradient) = both_gradients(ours, theirs, draw(1, B, T, V))
    # The weights are float32.
    torch.testing.assert_close(y, their_y, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "sample_mean"), ("bnpo", "token_mean")]
)
@pytest.mark.parametrize("trainer", ["GRPO", "SDPO"])
def test_policy_loss_of_a_batch(trainer, loss_type, aggregation):
    mask, advantages = completion_mask(), torch.tensor([1.0, -0.5, 0.0, -2.0]).double()
    ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
    start = draw(1, B, T, V)
    # Near enough for some ratios to be inside the clip range, far enough for some to be outside.
    old = selective_log_softmax(start + 0.2 * draw(6, B, T, V), ids)
    weights = token_weights(mask, torch.ones(B).bool(), torch.ones(B), aggregation).double()

    def ours(x):
        log_probs = selective_log_softmax(x, ids)
        each = clipped_policy_loss(log_probs, old, advantages, clip_low=0.2, clip_high=0.28)
        return (weights * each).sum()

    def theirs(x):
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": mask[:, :1],
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old,
        }
        fake = sdpo_trainer(loss_type=loss_type)
        if trainer == "SDPO":
            return SDPOTrainer._compute_policy_loss(fake, inputs, x)
        return GRPOTrainer._compute_loss(as_grpo_trainer(fake, x, ids), MagicMock(), inputs)

    (y, gradient), (their_y, their_gradient) = both_gradients(ours, theirs, start)
    torch.testing.assert_close(y, their_y, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-6, atol=1e-10)
    reached = gradient.abs().sum(dim=-1) > 0
    live = (mask > 0) & (advantages != 0)[:, None]
    assert (reached & live).any()  # neither all clipped
    assert (~reached & live).any()  # nor none


def as_grpo_trainer(fake, logits, ids):
    """Add what GRPOTrainer's loss reads, with its optional terms off as they are by default."""
    log_probs = selective_log_softmax(logits, ids)
    entropies = torch.zeros_like(log_probs)
    fake._get_per_token_logps_and_entropies.return_value = (log_probs, entropies, None)
    fake.accelerator.reduce = lambda x, reduction: x
    fake.args.delta = None
    fake.beta = 0.0
    fake.top_entropy_quantile = 1.0
    fake.current_gradient_accumulation_steps = 1
    fake.off_policy_mask_threshold = None
    fake.use_vllm = fake.aux_loss_enabled = fake._entropy_bonus_enabled = False
    return fake


@pytest.mark.parametrize("scale", [True, False])
def test_group_advantages(scale):
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.3, 0.9, 0.2, 0.2, 1.0, 1.0, 1.0, 1.0])
    fake = sdpo_trainer(
        num_generations=4,
        scale_rewards="group" if scale else "none",
        reward_weights=torch.ones(1),
    )
    fake.accelerator.device = "cpu"
    fake._calculate_rewards.return_value = rewards[:, None]
    fake.sample_rollouts.return_value = {
        "completion_ids": torch.zeros(12, 2),
        "completion_mask": torch.ones(12, 2),
        "prompt_ids": None,
    }
    batch = SDPOTrainer._prepare_training_batch(fake, [{"prompt": "a question"}] * 12)
    ours = group_advantages(rewards, 4, scale=scale)
    # Without scaling TRL still divides by 1 + 1e-4.
    torch.testing.assert_close(ours, batch["advantages"], rtol=1.1e-4, atol=1e-6)
    if scale:
        torch.testing.assert_close(ours, batch["advantages"], rtol=1e-5, atol=1e-6)


def test_ema_teacher():
    torch.manual_seed(0)
    student, theirs = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    theirs.load_state_dict(student.state_dict())
    ours = EmaTeacher(student, 0.3)
    for _ in range(5):
        with torch.no_grad():
            student.weight.add_(torch.randn(3, 3))
        ours.update(dict(student.named_parameters()))
        SyncTeacherModelCallback._sync_target_model(student, theirs, 0.3)
    with ours.model() as model:
        torch.testing.assert_close(model.weight.detach(), theirs.weight.detach())
