"""The clipped f-divergence against a plain-Python oracle, reference results and its properties."""

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resd.config import DistillConfig
from resd.distill import (
    divergence,
    divergence_loss,
    divergence_per_token,
    divergence_terms,
    entropy,
)

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
CASES = []
if (VECTORS / "distill_dev.json").exists():
    CASES = json.loads((VECTORS / "distill_dev.json").read_text())
FREE = {"ratio_min": None, "ratio_max": None}  # no clipping

alphas = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
seeds = st.integers(0, 2**31)
quick = settings(deadline=None, max_examples=40)


def draw(seed, *shape, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def probabilities(logits):
    largest = max(logits)
    raw = [math.exp(x - largest) for x in logits]
    return [x / math.fsum(raw) for x in raw]


def support_of(student, teacher, top_k, support):
    """The tokens that the loss names one by one."""
    s, t = probabilities(student), probabilities(teacher)
    size = {"student": s, "teacher": t, "both": [max(p) for p in zip(s, t, strict=True)]}
    whole = support == "full" or top_k is None
    order = sorted(range(len(s)), key=lambda v: 0.0 if whole else -size[support][v])
    return order if whole else order[:top_k]


def oracle(student, teacher, alpha, top_k, ratio_min, ratio_max, tail, support, anchor=None):
    """Eq. 1 for one position, on lists, in probabilities. `anchor`: the student of the bounds."""
    anchor = student if anchor is None else anchor
    kept = support_of(anchor, teacher, top_k, support)
    order = range(len(anchor))
    rows = []
    for logits in (student, teacher, anchor):
        p = probabilities(logits)
        row = [p[v] for v in kept]
        if len(kept) < len(order):
            mass = math.fsum(row)
            row = [*row, max(1.0 - mass, 1e-7)] if tail else [x / mass for x in row]
        rows.append(row)
    total = 0.0
    for s, t, bound in zip(*rows, strict=True):
        t = max(t, bound * (ratio_min or 0.0))
        t = min(t, bound * (math.inf if ratio_max is None else ratio_max))
        if alpha == 0:
            total += t * math.log(t / s)
        elif alpha == 1:
            total += s * math.log(s / t)
        else:
            m = (1 - alpha) * s + alpha * t
            total += (1 - alpha) * s * math.log(s / m) + alpha * t * math.log(t / m)
    return total


@pytest.mark.skipif(not CASES, reason="the reference results are not beside the repository")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_reference_results(dtype, tolerance):
    names = {"topk": "top_k", "min_ratio": "ratio_min", "max_ratio": "ratio_max"}
    names |= {"alpha": "alpha", "add_tail": "tail"}
    with np.load(VECTORS / "distill_dev.npz") as arrays:
        for number, case in enumerate(CASES):
            parts = ("student", "teacher", "mask", "grad")
            data = (torch.from_numpy(arrays[f"{number}/{part}"]) for part in parts)
            student, teacher, mask, gradient = data
            student = student.to(getattr(torch, dtype)).requires_grad_()
            options = {ours: case[theirs] for theirs, ours in names.items()}
            loss = divergence_loss(student, teacher.to(student.dtype), mask, **options)
            loss.backward()
            assert loss.item() == pytest.approx(case["loss"], rel=tolerance), number
            worst = (student.grad.double() - gradient).abs().max()
            assert worst <= tolerance * max(gradient.abs().max().item(), 1e-9), number


@quick
@given(
    seeds,
    st.fixed_dictionaries(
        {
            "alpha": alphas,
            "top_k": st.sampled_from([None, 1, 4, 11, 12, 50]),
            "ratio_min": st.sampled_from([None, 0.0, 0.2, 1.0]),
            "ratio_max": st.sampled_from([None, 1.0, 1.5, 5.0]),
            "tail": st.booleans(),
            "support": st.sampled_from(["student", "teacher", "both", "full"]),
        }
    ),
)
def test_value_and_gradient_match_the_oracle(seed, options):
    student, teacher = draw(seed, 2, 12).requires_grad_(), draw(seed + 1, 2, 12).requires_grad_()
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        kept = support_of(s, t, options["top_k"], options["support"])
        rest = [1.0 - math.fsum(probabilities(row)[v] for v in kept) for row in (s, t)]
        # Between the floor and here the oracle's own difference of the tail has too few digits.
        assume(not any(9e-8 < mass < 1e-5 for mass in rest))
    ours, outside = divergence_terms(student, teacher, **options)
    ours.sum().backward()
    assert teacher.grad is None
    assert not outside.requires_grad
    for s, t, mass in zip(student.tolist(), teacher.tolist(), outside.tolist(), strict=True):
        kept = support_of(s, t, options["top_k"], options["support"])
        assert mass == pytest.approx(1.0 - math.fsum(probabilities(t)[v] for v in kept), abs=1e-12)
    step = 1e-5
    for row in range(2):
        s, t = student[row].tolist(), teacher[row].tolist()
        assert ours[row].item() == pytest.approx(oracle(s, t, **options), rel=1e-9, abs=1e-12)
        for v in range(12):  # the top-k and the clipping bounds stay those of `s`
            up, down = s.copy(), s.copy()
            up[v] += step
            down[v] -= step
            rise = oracle(up, t, **options, anchor=s) - oracle(down, t, **options, anchor=s)
            assert student.grad[row, v].item() == pytest.approx(rise / 2 / step, rel=1e-4, abs=1e-7)


@quick
@given(seeds, alphas, st.sampled_from([None, 3, 20]), st.booleans(), st.booleans())
def test_equal_distributions_give_zero_and_no_gradient(seed, alpha, top_k, tail, clipped):
    logits = draw(seed, 3, 20).requires_grad_()
    bounds = {"ratio_min": 0.5, "ratio_max": 2.0} if clipped else FREE
    shifted = logits.detach() + 5.0  # the same distribution
    values = divergence_per_token(logits, shifted, alpha=alpha, top_k=top_k, tail=tail, **bounds)
    values.sum().backward()
    assert values.abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


@quick
@given(seeds, alphas, st.integers(1, 19))
def test_more_tokens_show_more_divergence(seed, alpha, top_k):
    student, teacher = draw(seed, 4, 20, scale=2.0), draw(seed + 1, 4, 20, scale=2.0)

    def values(k):
        return divergence_per_token(student, teacher, alpha=alpha, top_k=k, **FREE)

    # Merging outcomes can only lose information, and no divergence is negative.
    assert (values(top_k) >= -1e-6).all()
    assert (values(None) >= values(top_k) - 1e-6).all()


@quick
@given(seeds, alphas, st.sampled_from([None, 5]))
def test_order_of_the_vocabulary_is_irrelevant(seed, alpha, top_k):
    student, teacher = draw(seed, 3, 16), draw(seed + 1, 3, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    before = divergence_per_token(student, teacher, alpha=alpha, top_k=top_k)
    after = divergence_per_token(student[:, order], teacher[:, order], alpha=alpha, top_k=top_k)
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


def test_whole_vocabulary_has_many_names():
    student, teacher = draw(1, 5, 16), draw(2, 5, 16)
    for alpha in (0.0, 0.5, 1.0):
        full = divergence_per_token(student, teacher, alpha=alpha, top_k=None, tail=True)
        for top_k, support in ((16, "student"), (40, "both"), (None, "teacher"), (3, "full")):
            options = {"top_k": top_k, "support": support, "tail": False}
            assert torch.equal(divergence_per_token(student, teacher, alpha=alpha, **options), full)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(half):
    wide = draw(5, 4, 300, scale=1.0, dtype=half).float().requires_grad_()
    teacher = draw(6, 4, 300, scale=1.0, dtype=half)
    narrow = wide.detach().to(half).requires_grad_()
    outputs = []
    for student, other in ((wide, teacher.float()), (narrow, teacher)):
        outputs.append(divergence_per_token(student, other, alpha=1.0))
        outputs[-1].sum().backward()
    assert outputs[1].dtype == torch.float32
    assert torch.equal(outputs[0], outputs[1])
    assert narrow.grad.dtype == half
    torch.testing.assert_close(narrow.grad, wide.grad.to(half))


def test_small_tail_keeps_its_digits_in_float32():
    student, teacher = draw(7, 8, 200, scale=1.0), draw(8, 8, 200, scale=1.0)
    student[:, :3] += 20.0  # the student's tail is about 1e-6, one ulp of its mass is 6e-8
    results = []
    for dtype in (torch.float64, torch.float32):
        logits = student.to(dtype, copy=True).requires_grad_()
        value = divergence_per_token(logits, teacher.to(dtype), alpha=0.0, top_k=3)
        value.sum().backward()
        results += [value.double(), logits.grad.double()]
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(results[1], results[3], rtol=2e-5, atol=1e-7)


def test_no_wide_copy_of_the_logits_is_kept_for_the_backward_pass():
    student = draw(1, 64, 4000, dtype=torch.bfloat16).requires_grad_()
    teacher = draw(2, 64, 4000, dtype=torch.bfloat16)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for support in ("student", "teacher", "both"):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            divergence_per_token(student, teacher, alpha=0.5, top_k=20, support=support)
        assert sum(kept.values()) < 1.5 * student.untyped_storage().nbytes()


@pytest.mark.parametrize("shape", [(7, 30), (2, 7, 30), (30,)])
def test_blocks_do_not_change_the_result(monkeypatch, shape):
    results = []
    for block in (1 << 26, 64):
        monkeypatch.setattr(divergence, "_BLOCK", block)
        student = draw(1, *shape).requires_grad_()
        value, outside = divergence_terms(
            student, draw(2, *shape), alpha=0.5, top_k=4, support="both"
        )
        value.sum().backward()
        results.append((value, student.grad, outside, entropy(student)))
        assert value.shape == outside.shape == entropy(student).shape == shape[:-1]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def after_updates(support, updates=8):
    """What a student of 50,000 tokens thinks of the teacher's, at its own rank 10,000, then now.

    The student is a small head on fixed hidden states, trained by AdamW; the teacher gives 90 % of
    every position to one token.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 16, generator=generator)
    head = torch.nn.Linear(16, 50_000, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50_000, 16, generator=generator))
        start = head(hidden)
        taught = start.argsort(dim=-1, descending=True)[:, 9_999, None]
        teacher = start.log_softmax(dim=-1) + math.log(0.1)
        teacher.scatter_(-1, taught, math.log(0.9))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.2)
    seen, masses = [], []
    for _ in range(updates + 1):
        logits = head(hidden)
        seen.append(logits.softmax(dim=-1).gather(-1, taught).mean().item())
        loss, outside = divergence_terms(
            logits, teacher, alpha=DistillConfig().alpha, support=support
        )
        masses.append(outside.mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return seen[0], seen[-1], masses[0]


def test_a_token_that_the_student_finds_improbable_is_taught_by_the_default_support():
    before, after, outside = after_updates(DistillConfig().support)
    assert before < 1e-4
    assert outside < 0.1
    assert after > 0.5
    before, after, outside = after_updates("student")
    assert outside > 0.9  # the mass that the student never sees by name
    assert after < before


def test_impossible_tokens_outside_the_top_k_are_harmless():
    student, teacher = draw(1, 3, 10), draw(2, 3, 10)
    padding = torch.full((3, 6), -math.inf, dtype=torch.float64)
    wide = torch.cat([student, padding], dim=-1).requires_grad_()
    for top_k, same in ((4, 4), (10, None)):  # in the second case nothing at all is left over
        wide.grad = None
        padded = torch.cat([teacher, padding], dim=-1)
        value = divergence_per_token(wide, padded, alpha=0.5, top_k=top_k)
        value.sum().backward()
        expected = divergence_per_token(student, teacher, alpha=0.5, top_k=same)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        assert wide.grad.isfinite().all()


def test_loss_is_the_mean_over_the_mask_and_reads_nothing_else():
    student, teacher = draw(1, 2, 5, 30), draw(2, 2, 5, 30)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]])
    each = divergence_per_token(student, teacher, alpha=1.0, top_k=8, support="both")
    expected = each[mask.bool()].mean()
    student[mask == 0] = math.nan
    student.requires_grad_()
    for kind in (torch.bool, torch.int64, torch.float32):
        student.grad = None
        loss = divergence_loss(student, teacher, mask.to(kind), alpha=1.0, top_k=8, support="both")
        loss.backward()
        torch.testing.assert_close(loss, expected)
        assert (student.grad[mask == 0] == 0).all()
        assert (student.grad[mask == 1].abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("top_k", [8, None])
def test_empty_mask_gives_a_zero_that_can_be_differentiated(top_k):
    student = draw(1, 2, 5, 30).requires_grad_()
    loss = divergence_loss(student, draw(2, 2, 5, 30), torch.zeros(2, 5), alpha=0.5, top_k=top_k)
    loss.backward()
    assert loss.item() == 0.0
    assert (student.grad == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.1}, "alpha"),
        ({"top_k": 0}, "top_k"),
        ({"ratio_min": -0.2}, "ratio_min"),
        ({"ratio_max": 0.0}, "ratio_max"),
        ({"ratio_min": 2.0, "ratio_max": 1.0}, "above"),
        ({"teacher_logits": torch.zeros(2, 3, 6)}, "differ in shape"),
        ({"mask": torch.ones(2, 2)}, "mask has shape"),
        ({"support": "union"}, "support must be one of student, teacher, both, full"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "student_logits": torch.zeros(2, 3, 5),
        "teacher_logits": torch.zeros(2, 3, 5),
        "mask": torch.ones(2, 3),
        "alpha": 0.5,
    }
    divergence_loss(**good)
    with pytest.raises(ValueError, match=message):
        divergence_loss(**{**good, **change})


def test_entropy():
    logits = draw(1, 2, 3, 40, dtype=torch.float32).requires_grad_()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected.detach())
    assert not entropy(logits).requires_grad
    assert entropy(logits.bfloat16()).dtype == torch.float32
    half_of_eight = torch.tensor([0.0] * 4 + [-math.inf] * 4)
    assert entropy(half_of_eight).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("support", ["student", "teacher", "both", "full"])
def test_positions_may_stand_in_any_shape(support):
    student, teacher = draw(1, 2, 3, 2, 11), draw(2, 2, 3, 2, 11)
    kept = {"alpha": 0.5, "top_k": 2, "support": support}
    flat = divergence_terms(student.view(12, 11), teacher.view(12, 11), **kept)
    whole = divergence_terms(student, teacher, **kept)
    for part, one in zip(whole, flat, strict=True):
        assert part.shape == (2, 3, 2)
        assert torch.equal(part.flatten(), one)


@pytest.mark.parametrize("function", [divergence_terms, divergence_per_token, divergence_loss])
def test_what_is_not_said_is_the_papers(function):
    """Method.md section 2: k = 100, a tail, clipped below at 0.2 and not above."""
    defaults = {n: p.default for n, p in inspect.signature(function).parameters.items()}
    wanted = {"top_k": 100, "tail": True, "ratio_min": 0.2, "ratio_max": None}
    assert {name: defaults[name] for name in wanted} == wanted
