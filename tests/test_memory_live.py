"""What a forward pass, a loss and a choice hold at once, against the tensors that really live."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes

from resd.config import RunConfig, validate
from resd.distill import entropy, make_teacher
from resd.distill.chunked import chunked_loss
from resd.distill.divergence import divergence_terms
from resd.engines.base import Request, Sampling
from resd.engines.choice import SeededChoice
from resd.loop.masters import Masters
from resd.loop.update import _without_dropout, token_log_probs
from resd.models.head import LogitHead, response_states
from resd.models.load import checkpoint_gradients
from resd.models.lora import add_adapters
from resd.models.memory import Estimate, Memory

TOKENS, NEW = 512, 64
SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GPT2 = {
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": 4096,
    "vocab_size": 2000,
    "bos_token_id": None,
    "eos_token_id": 1,
}
NARROW, LORA = {"compute_dtype": "bfloat16"}, {"lora": {"rank": 4}}
CHECKPOINTED = {"gradient_checkpointing": True}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("qwen3", {}, {}),
    ("qwen3", {}, NARROW),
    ("qwen3", {}, CHECKPOINTED),
    ("qwen3", {}, {**NARROW, **CHECKPOINTED}),
    ("qwen3", {}, LORA),
    ("qwen3", {}, {**LORA, **NARROW}),
    ("qwen3", {}, {**LORA, "dtype": "bfloat16"}),
    ("qwen3", {}, {**LORA, **NARROW, **CHECKPOINTED}),
    ("qwen3", {}, {"attention": "eager"}),
    ("qwen3", {}, {**NARROW, "attention": "eager"}),
    ("llama", {"tie_word_embeddings": False}, {}),
    ("llama", {"intermediate_size": 640}, NARROW),
    ("qwen3_moe", EXPERTS, {}),
    ("qwen3_moe", EXPERTS, {**NARROW, **CHECKPOINTED}),
    ("gemma3_text", {}, {}),
    ("gemma3_text", {}, NARROW),
    ("gpt2", GPT2, {}),
]


def made(
    kind: str, fields: dict[str, Any], model: dict[str, Any], place: Path, rows: int = 1
) -> tuple[Any, RunConfig, Estimate]:
    """A model as a run holds it, the run's settings, and their estimate on a CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = GPT2 if kind == "gpt2" else {**SHAPE, **fields}
    config = AutoConfig.for_model(kind, **shape)
    config.save_pretrained(place)
    run = validate(
        {
            "model": {"path": str(place), "device": "cpu", **model},
            "rollout": {
                "max_prompt_tokens": TOKENS - NEW,
                "max_new_tokens": NEW,
                "batch_size": rows,
            },
            "train": {
                "batch_size": rows,
                "micro_batch_tokens": TOKENS * rows,
                "chunk_tokens": 16,
            },
            "method": {"name": "sdpo", "max_teacher_tokens": TOKENS - NEW},
        },
        "here",
    )
    torch.manual_seed(0)
    attention = {"attn_implementation": run.model.attention} if run.model.attention else {}
    built: Any = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, run.model.dtype), **attention
    )
    if run.model.lora is not None:
        built = add_adapters(built, run.model.lora)
    if run.model.gradient_checkpointing:
        checkpoint_gradients(built)
    narrow = run.model.compute_dtype
    Masters(built, getattr(torch, narrow) if narrow else None)
    _without_dropout(built)
    return built, run, Memory(run).estimate(device="cpu")


def parts(found: Estimate, moment: str) -> dict[str, int]:
    return {part.name: part.bytes for part in found.moments[moment]}


def states(model: Any, lengths: list[int]) -> torch.Tensor:
    prompts = [[3] * (length - NEW) for length in lengths]
    return response_states(LogitHead(model), prompts, [[3] * NEW] * len(lengths), 0)


@pytest.mark.parametrize(("kind", "fields", "model"), CASES)
def test_a_pass_with_its_gradients(
    kind: str, fields: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    built, _, found = made(kind, fields, model, tmp_path)
    with LiveBytes() as live:
        hidden = states(built, [TOKENS])
        kept = live.now
        hidden.float().sum().backward()
    back = parts(found, "backward pass")
    saved = back["activations"]
    if not model.get("gradient_checkpointing"):
        saved += back.get("attention", 0)
    assert saved / kept == pytest.approx(1, abs=0.2 if kind in ("gemma3_text", "gpt2") else 0.15)
    # Gradients of weights come while what was saved goes.
    gradients = back["gradients"]
    whole = sum(back.values()) - back["hidden states"] - gradients
    assert 0.85 * whole <= live.peak <= 1.15 * (whole + gradients)


@pytest.mark.parametrize(("kind", "fields", "model"), CASES)
def test_a_pass_without_gradients(
    kind: str, fields: dict[str, Any], model: dict[str, Any], tmp_path: Path
) -> None:
    if kind == "gpt2":
        pytest.skip("its activation is made of many operations: the estimate is a third too low")
    built, _, found = made(kind, fields, model, tmp_path)
    with torch.no_grad(), LiveBytes() as live:
        states(built, [TOKENS])
    here = parts(found, "teacher's pass")
    whole = sum(here.values()) - here["gradients"]
    assert whole / live.peak == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("model", [{}, NARROW, CHECKPOINTED])
def test_rows_of_unlike_length_need_a_mask(model: dict[str, Any], tmp_path: Path) -> None:
    built, _, found = made("qwen3", {}, model, tmp_path, rows=2)
    peaks = []
    for lengths in ([TOKENS, TOKENS], [TOKENS, TOKENS - 64]):
        with LiveBytes() as live:
            hidden = states(built, lengths)
            hidden.float().sum().backward()
        peaks.append(live.peak)
        built.zero_grad()
    mask = parts(found, "backward pass")["mask"]
    assert mask / (peaks[1] - peaks[0]) == pytest.approx(1, abs=0.2)


class Head(torch.nn.Linear):
    @property
    def weights(self) -> list[torch.Tensor]:
        return [weight for weight in self.parameters() if weight.requires_grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("support", ["student", "both", "full", "grpo"])
def test_the_loss_head(support: str, dtype: torch.dtype, tmp_path: Path) -> None:
    vocabulary, hidden, chunk = 20_000, 64, 32
    narrow = {"compute_dtype": "bfloat16"} if dtype == torch.bfloat16 else {}
    _, run, _ = made("qwen3", {"vocab_size": vocabulary}, narrow, tmp_path)
    run.train.chunk_tokens = chunk
    if support == "grpo":
        values = run.model_dump() | {"method": {"name": "grpo"}}
        run = validate(values, "here")
    else:
        run.method.support = support  # type: ignore[union-attr]
    student = Head(hidden, vocabulary, bias=False).to(dtype)
    teacher = Head(hidden, vocabulary, bias=False).to(dtype).requires_grad_(False)
    ours = torch.randn(2 * chunk, hidden, dtype=dtype, requires_grad=True)
    theirs, ids = torch.randn(2 * chunk, hidden, dtype=dtype), torch.ones(2 * chunk).long()

    def per_chunk(logits: torch.Tensor, span: slice) -> torch.Tensor:
        now = token_log_probs(logits, ids[span])
        if support == "grpo":
            loss = (now - now.detach()).exp()
        else:
            terms = divergence_terms(
                logits,
                teacher(theirs[span]),
                alpha=0.5,
                support=support,  # type: ignore[arg-type]
                top_k=100,
            )
            loss = terms.loss * now.detach()
        entropy(logits)
        return loss.sum()

    with LiveBytes() as live:
        chunked_loss(ours, student, per_chunk, chunk).backward()
    found = parts(Memory(run).estimate(device="cpu"), "loss")
    assert found["loss head"] / live.peak == pytest.approx(1, abs=0.2)


def held() -> int:
    """Bytes of all tensors that there are."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("model", [LORA, {**LORA, "dtype": "bfloat16"}, {}])
def test_a_teacher_of_adapters_is_no_second_model(model: dict[str, Any], tmp_path: Path) -> None:
    """Frozen: the adapters switched off; average: of the adapters; in a pass no more than them."""
    built, _, _ = made("qwen3", {}, model, tmp_path)
    whole = sum(p.numel() * p.element_size() for p in built.parameters())
    trained = sum(p.numel() * 4 for p in built.parameters() if p.requires_grad)
    added, passed = {}, {}
    for kind in ("live", "frozen", "ema"):
        before = held()
        teacher = make_teacher(kind, built)  # type: ignore[arg-type]
        added[kind] = held() - before
        with torch.no_grad(), LiveBytes() as live, teacher.model() as scored:
            states(scored, [TOKENS])
        passed[kind] = live.peak
        del teacher
    if not model:
        copied = pytest.approx(whole, abs=1024)  # the frequencies of its positions too
        assert added == {"live": 0, "frozen": copied, "ema": copied}
        return
    assert trained < whole / 8
    assert added == {"live": 0, "frozen": 0, "ema": trained}
    assert passed["frozen"] <= passed["live"]
    assert passed["ema"] <= passed["live"] + trained


def test_the_choice_of_a_token(tmp_path: Path) -> None:
    rows, vocabulary = 4, SHAPE["vocab_size"]
    _, _, found = made("qwen3", {}, {}, tmp_path, rows=rows)
    requests = [Request((1,), Sampling(1.0, 0.95, 4), seed=i) for i in range(rows)]
    choice = SeededChoice(requests, torch.device("cpu"))
    with LiveBytes() as live:
        choice.choose(torch.randn(rows, vocabulary) * 1.0, 0)
    made_of = parts(found, "generation")["choice of a token"]
    assert made_of / live.peak == pytest.approx(1, abs=0.2)
