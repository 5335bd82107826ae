"""The loss head: the loss and gradient of the whole logits, a chunk at a time, for every model."""

from __future__ import annotations

from typing import Any

import fakes
import pytest
import torch
from fakes import samples
from torch import Tensor

from resd.distill import divergence_per_token, divergence_terms
from resd.distill.chunked import chunked_loss
from resd.loop.update import _without_dropout
from resd.models.head import LogitHead, head_of, response_states

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
RESPONSES = [[20, 21, 22], [23, 24, 25, 26, 27], [28]]
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


def model(kind: str, **over: Any) -> Any:
    """A small random model of an architecture of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {} if kind == "gpt2" else SMALL
    if kind == "gpt2":
        settings = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings, **over)).eval()


ONE = torch.ones(())


class Matrix(torch.nn.Linear):
    @property
    def weights(self) -> list[Tensor]:
        return [self.weight] if self.weight.requires_grad else []


# -- the function by itself ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0, "top_k": 5, "support": "student"},
        {"alpha": 0.5, "top_k": 5, "support": "both", "ratio_max": 4.0},
        {"alpha": 1.0, "top_k": None},
        {"alpha": 0.3, "top_k": 4, "tail": False, "support": "teacher", "ratio_min": None},
    ],
)
def test_loss_and_gradient_are_those_of_whole_logits(settings: dict[str, Any], size: int) -> None:
    torch.manual_seed(1)
    head, teacher = Matrix(8, 40), Matrix(8, 40)
    hidden, theirs = torch.randn(7, 8, requires_grad=True), torch.randn(7, 8)
    weights = torch.rand(7)

    def per_chunk(logits: Tensor, span: slice) -> Tensor:
        with torch.no_grad():
            wanted = teacher(theirs[span])
        return (divergence_per_token(logits, wanted, **settings) * weights[span]).sum()

    whole = per_chunk(head(hidden), slice(0, 7))
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    loss = 2.0 * chunked_loss(hidden, head, per_chunk, size)
    found = torch.autograd.grad(loss, [hidden, head.weight])
    assert loss.item() == pytest.approx(2.0 * whole.item(), rel=1e-6)
    for ours, theirs_ in zip(found, expected, strict=True):
        assert (ours - 2.0 * theirs_).abs().max() <= 1e-5 * theirs_.abs().max()


def test_what_needs_no_gradient_gets_none() -> None:
    head = Matrix(4, 6).requires_grad_(False)
    hidden = torch.randn(3, 4, requires_grad=True)
    chunked_loss(hidden, head, lambda logits, span: logits.logsumexp(-1).sum(), 2).backward()
    assert hidden.grad is not None and head.weight.grad is None
    assert chunked_loss(torch.randn(3, 4), head, lambda logits, span: len(logits) * ONE, 2) == 3.0
    trained = Matrix(4, 6)
    chunked_loss(torch.randn(3, 4), trained, lambda logits, span: logits.sum(), 2).backward()
    assert trained.weight.grad is not None
    none = torch.randn(0, 4, requires_grad=True)
    loss = chunked_loss(none, trained, lambda logits, span: logits.sum(), 2)
    loss.backward()
    assert loss.item() == 0.0


def test_never_more_logits_than_a_chunk() -> None:
    seen: list[tuple[int, ...]] = []
    head = Matrix(4, 6)
    head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    chunked_loss(torch.randn(11, 4), head, lambda logits, span: logits.sum(), 4)
    assert seen == [(4, 6), (4, 6), (3, 6)]


def test_chunks_and_weights_that_a_loss_does_not_use() -> None:
    """The first chunk has no gradient, the second none to the hidden states, the third both."""
    head, hidden = Matrix(4, 6), torch.ones(3, 4, requires_grad=True)

    def per_chunk(logits: Tensor, span: slice) -> Tensor:
        return [ONE, 2.0 * head.weight.sum(), 3.0 * logits.sum()][span.start]

    chunked_loss(hidden, head, per_chunk, 1).backward()
    assert hidden.grad is not None and head.weight.grad is not None
    assert torch.equal(hidden.grad[:2], torch.zeros(2, 4))
    assert torch.allclose(hidden.grad[2], 3.0 * head.weight.sum(0))
    assert torch.equal(head.weight.grad, torch.full((6, 4), 5.0))

    class Tied(Matrix):
        @property
        def weights(self) -> list[Tensor]:
            return [spare, self.weight]

    spare, tied = torch.ones(2, requires_grad=True), Tied(4, 6)
    chunked_loss(hidden, tied, lambda logits, span: logits.sum(), 2).backward()
    assert spare.grad is not None and tied.weight.grad is not None
    assert spare.grad.tolist() == [0.0, 0.0]
    assert torch.equal(tied.weight.grad, torch.full((6, 4), 3.0))


def test_it_can_be_differentiated_once() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = chunked_loss(hidden, Matrix(4, 6), lambda logits, span: logits.exp().sum(), 2)
    (grad,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="the chunked loss can be differentiated once"):
        loss.backward()


@pytest.mark.parametrize(
    ("hidden", "size", "said"),
    [
        (torch.zeros(2, 3, 4), 1, r"hidden must be \[N, D\], got \(2, 3, 4\)"),
        (torch.zeros(4), 1, "hidden must be"),
        (torch.zeros(2, 4), 0, "size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(hidden: Tensor, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chunked_loss(hidden, Matrix(4, 6), lambda logits, span: logits.sum(), size)


def test_narrow_heads_sum_their_gradient_in_float32() -> None:
    """In bfloat16 a sum over 2,000 chunks would stop growing at 256."""
    head = Matrix(1, 2, bias=False).to(torch.bfloat16)
    hidden = torch.ones(2000, 1, dtype=torch.bfloat16)
    chunked_loss(hidden, head, lambda logits, span: logits.float().sum(), 1).backward()
    assert head.weight.grad is not None
    assert head.weight.grad.float().flatten().tolist() == pytest.approx([2000.0, 2000.0], rel=0.01)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_trl_agrees_where_the_settings_overlap(alpha: float, beta: float) -> None:
    kernels = pytest.importorskip("trl.kernels.chunked_divergence")
    torch.manual_seed(2)
    head, teacher = Matrix(16, 90, bias=False), Matrix(16, 90, bias=False)
    hidden, theirs = torch.randn(33, 16, requires_grad=True), torch.randn(33, 16)

    def per_chunk(logits: Tensor, span: slice) -> Tensor:
        with torch.no_grad():
            wanted = teacher(theirs[span])
        return divergence_per_token(logits, wanted, alpha=alpha, top_k=None, ratio_min=None).sum()

    ours = chunked_loss(hidden, head, per_chunk, 8)
    found = torch.autograd.grad(ours, [hidden, head.weight])
    theirs_loss, _ = kernels.ChunkedDivergenceFunction.apply(
        hidden, head.weight, None, theirs, teacher.weight.detach(), None, beta
    )
    expected = torch.autograd.grad(theirs_loss.sum(), [hidden, head.weight])
    assert ours.item() == pytest.approx(theirs_loss.sum().item(), rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


# -- every kind of head ----------------------------------------------------------------------------


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("llama", {}),
    ("gemma2", {"final_logit_softcapping": 3.0}),
    ("gemma3_text", {"final_logit_softcapping": 2.0}),
    ("granite", {"logits_scaling": 7.0}),
    ("cohere", {"logit_scale": 0.3}),
    ("gpt2", {}),
]


def whole_loss(net: Any, teacher: Any) -> Tensor:
    """By each sample's own logits, without padding, chunks or anything of the library's models."""
    total = torch.zeros(())
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        at = slice(len(prompt) - 1, -1)
        ours = net(input_ids=ids).logits[0, at]
        with torch.no_grad():
            theirs = teacher(input_ids=ids).logits[0, at]
        total = (
            total + divergence_terms(ours, theirs, alpha=0.5, top_k=20, support="both").loss.sum()
        )
    return total


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "over"), KINDS, ids=lambda v: v if isinstance(v, str) else "")
def test_models(kind: str, over: dict[str, Any], checkpointing: bool) -> None:
    net = model(kind, **over)
    teacher = model(kind, **over)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight += 0.05 * torch.randn_like(weight)
    teacher.requires_grad_(False)
    whole = whole_loss(net, teacher)
    whole.backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    if checkpointing:
        net.gradient_checkpointing_enable()
        _without_dropout(net)
    head, why = head_of(net)
    assert why == ""
    other, _ = head_of(teacher)
    hidden = response_states(head, PROMPTS, RESPONSES, 0)
    assert hidden.shape == (9, 32)
    theirs = response_states(other, PROMPTS, RESPONSES, 0)

    def per_chunk(logits: Tensor, span: slice) -> Tensor:
        return divergence_terms(
            logits, other(theirs[span]), alpha=0.5, top_k=20, support="both"
        ).loss.sum()

    loss = chunked_loss(hidden, head, per_chunk, 4)
    loss.backward()
    # Divergences of almost equal distributions are small differences of large numbers.
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5, abs=2e-7)
    found = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-8, name


class Odd(torch.nn.Module):
    """Wraps a model and bends its logits after the head."""

    def __init__(self, net: Any, bend: Any) -> None:
        super().__init__()
        self.net, self.bend, self.config = net, bend, net.config

    def get_output_embeddings(self) -> Any:
        return self.net.get_output_embeddings()

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> Any:
        output = self.net(logits_to_keep=logits_to_keep, **inputs)
        output.logits = self.bend(output.logits)
        return output


@pytest.mark.parametrize(
    ("bend", "why"),
    [
        (lambda logits: logits * 3.0, "changes its logits"),
        (lambda logits: torch.cat([logits, logits[..., :1]], -1), "changes its logits"),
        (lambda logits: logits.index_fill(-1, torch.tensor([5]), -9.0), "cannot be called"),
    ],
)
def test_a_model_that_hides_what_it_does_falls_back_and_says_so(bend: Any, why: str) -> None:
    net = Odd(model("qwen3"), bend)
    head, said = head_of(net)
    assert head.whole and why in said
    states = response_states(head, PROMPTS, RESPONSES, 0)
    ids = torch.tensor([[*PROMPTS[2], *RESPONSES[2]]])
    assert torch.allclose(head(states)[-1], net(input_ids=ids).logits[0, -2], atol=1e-5)
    assert head.weights == []


@pytest.mark.parametrize("name", ["resd", "grpo"])
def test_the_fallback_is_the_same_update(name: str) -> None:
    grads = []
    for whole in (False, True):
        update = fakes.policy_update(model("qwen3"), name, shake=0.02)
        update.method.services.whole_logits = whole
        update._head = LogitHead(update.student, whole=whole)
        grads.append(fakes.gradient(update, samples()))
    assert grads[0].norm() > 0
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[0].norm()


@pytest.mark.parametrize("name", ["resd", "grpo"])
def test_lora(name: str) -> None:
    """Chunks of one and of all; the head under the adapters is the base's."""
    from peft import LoraConfig, get_peft_model

    grads = []
    for chunk in (1, 1000):
        torch.manual_seed(3)
        net = get_peft_model(
            model("llama"), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
        )
        update = (
            fakes.policy_update(net, name, {"chunk_tokens": chunk}, teacher={"kind": "frozen"})
            if name == "resd"
            else fakes.policy_update(net, name, {"chunk_tokens": chunk})
        )
        grads.append(fakes.gradient(update, samples()))
    assert grads[0].norm() > 0
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[0].norm()
