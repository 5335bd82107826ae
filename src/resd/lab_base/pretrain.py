"""Pretraining of the lab's base model: `resd lab pretrain` remakes it.

A small Qwen3. Key lookup (which verb drives the lamp) is an induction skill that does not form
with the library's default `initializer_range`, which suits widths of thousands, nor from recitals
alone; a larger range, and echoes of random words first, make it form (LOG.md).
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from resd.lab_base.corpus import Corpus, Segments, lab_templates, vocabulary
from resd.lab_base.gates import measure_gates, success_without_context
from resd.lab_base.tokenizer import END, train_tokenizer, turn


@dataclass(frozen=True)
class Stage:
    """One schedule: linear warm-up, then cosine to a twentieth of the peak.

    Attributes:
        schedule: batches of the whole schedule.
        stop: batches that are run of it.
        copying: the first batches are echoes and recitals alone.
        lookups: fraction of lookup drills among the skills' samples after that.
        seed: of the samples.
    """

    schedule: int
    stop: int
    copying: int
    lookups: float
    lr: float
    warmup: int
    seed: int


@dataclass
class PretrainConfig:
    """Settings of the shipped base model, made in two stages (LOG.md says why).

    Attributes:
        stages: run one after the other, each with a fresh optimiser; weights are rounded to half
            precision in between.
        batch_size: samples a batch.
        seed: of tokenizer and weights.
        compile: use torch.compile (needs a C++ compiler); a third faster on two cores.
    """

    stages: tuple[Stage, ...] = (
        Stage(3800, 2750, 550, 0.0, 1.5e-3, 100, 0),
        Stage(1800, 1800, 0, 1 / 7, 1.2e-3, 50, 102),
    )
    batch_size: int = 64
    weight_decay: float = 0.02
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    initializer_range: float = 0.06
    vocab_size: int = 704
    seed: int = 0
    threads: int = 2
    gates_every: int = 250
    compile: bool = True


def build_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer on 4,000 samples and the words of the world."""
    corpus = Corpus(config.seed, lab_templates(), turn)
    texts = ["".join(text for text, _ in corpus.sample(0.2)) for _ in range(4000)]
    texts += [f"{word} {word}" for word in vocabulary()] * 50
    return train_tokenizer(texts, config.vocab_size)


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh model of about 0.9 million parameters."""
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden,
            intermediate_size=config.hidden * 3,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.hidden // config.heads,
            max_position_embeddings=1024,
            initializer_range=config.initializer_range,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids(END),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model


def encode(tokenizer: PreTrainedTokenizerFast, segments: Segments) -> tuple[list[int], list[bool]]:
    """Token ids of a sample, and which of them are taught (answers and their end)."""
    ids: list[int] = []
    taught: list[bool] = []
    for text, answer in segments:
        piece = tokenizer(text + (END if answer else ""), add_special_tokens=False)["input_ids"]
        ids += piece
        taught += [answer] * len(piece)
    return ids, taught


def batches(stage: Stage, tokenizer: PreTrainedTokenizerFast, size: int) -> Any:
    """Endless batches, bucketed by length over 16 batches at a time."""
    step = 0
    rng = random.Random(stage.seed)
    corpus = Corpus(stage.seed + 1, lab_templates(), turn, stage.lookups)
    while True:
        pool = []
        for i in range(16):
            copying = 1.0 if step + i < stage.copying else 0.05
            pool += [encode(tokenizer, corpus.sample(copying)) for _ in range(size)]
        pool.sort(key=lambda item: len(item[0]))
        chunks = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield collate(chunk, tokenizer.pad_token_id)
        step += 16


def collate(chunk: Sequence[tuple[list[int], list[bool]]], pad: int) -> tuple[torch.Tensor, ...]:
    """Right-padded ids [B, T], attention mask [B, T], taught [B, T]."""
    width = max(len(ids) for ids, _ in chunk)
    ids = torch.full((len(chunk), width), pad)
    taught = torch.zeros(len(chunk), width, dtype=torch.bool)
    mask = torch.zeros(len(chunk), width, dtype=torch.long)
    for row, (tokens, answer) in enumerate(chunk):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        taught[row, : len(tokens)] = torch.tensor(answer)
        mask[row, : len(tokens)] = 1
    return ids, mask, taught


def answer_loss(
    model: Qwen3ForCausalLM, body: Any, batch: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Mean cross-entropy over the taught tokens; logits are made for those alone."""
    ids, mask, taught = batch
    hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state
    where = taught[:, 1:]
    logits = model.lm_head(hidden[:, :-1][where])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][where])


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    sample: bool = False,
    max_new_tokens: int = 96,
) -> list[str]:
    """Answers to prompts that are in the chat format already; greedy unless `sample`."""
    model.eval()
    answers: list[str] = []
    for start in range(0, len(prompts), 256):
        batch = tokenizer(
            list(prompts[start : start + 256]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        kwargs: dict[str, Any] = (
            {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
            if sample
            else {"do_sample": False}
        )
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            **kwargs,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    model.train()
    return answers


def learning_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then cosine to a twentieth of the peak."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.schedule - stage.warmup)
    return stage.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(done * math.pi)))


def pretrain(output: Path, config: PretrainConfig) -> dict[str, float]:
    """Pretrain, saving to `output` as it goes; returns the gates of the final model."""
    torch.set_num_threads(config.threads)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(config)
    model = build_model(config, tokenizer)
    with (output / "pretrain.jsonl").open("a", encoding="utf-8") as log:

        def say(row: dict[str, Any]) -> None:
            print(json.dumps(row), flush=True)
            print(json.dumps(row), file=log, flush=True)

        for stage in config.stages:
            say({"stage": asdict(stage)})
            _run_stage(model, tokenizer, stage, config, output, say)
            save(model, tokenizer, output)
            model.half().float()
        gates = final_gates(model, tokenizer)
        say({"gates": gates})
    return gates


def _run_stage(
    model: Any,
    tokenizer: Any,
    stage: Stage,
    config: PretrainConfig,
    output: Path,
    say: Callable[[dict[str, Any]], None],
) -> None:
    body = torch.compile(model.model, dynamic=True) if config.compile else model.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    stream = batches(stage, tokenizer, config.batch_size)
    began, losses = time.monotonic(), []
    for step in range(stage.stop):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, stage)
        loss = answer_loss(model, body, next(stream))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = round(time.monotonic() - began, 1)
            row = {"step": step + 1, "loss": sum(losses) / len(losses), "seconds": seconds}
            losses.clear()
            if (step + 1) % config.gates_every == 0:
                row |= measure_gates(lambda p: complete(model, tokenizer, p), 100)
                save(model, tokenizer, output)
            say(row)


def final_gates(model: Any, tokenizer: Any, number: int = 1000) -> dict[str, float]:
    """The gates of a finished model, and its success without context over 20,000 requests."""
    gates = measure_gates(lambda p: complete(model, tokenizer, p), number, seed=1)
    alone = success_without_context(
        lambda p: complete(model, tokenizer, p, sample=True, max_new_tokens=24), 20 * number
    )
    return {**gates, "without_context": alone}


def save(model: Qwen3ForCausalLM, tokenizer: Any, output: Path) -> None:
    """Save in half precision, in Hugging Face format."""
    half: Any = copy.deepcopy(model).half()
    half.generation_config.eos_token_id = tokenizer.eos_token_id
    half.generation_config.pad_token_id = tokenizer.pad_token_id
    half.save_pretrained(output)
    tokenizer.save_pretrained(output)
