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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from resd.lab_base.corpus import Corpus
from resd.lab_base.drills import Mix, Segments
from resd.lab_base.gates import measure_gates, success_without_context
from resd.lab_base.tokenizer import END, train_tokenizer, turn
from resd.lab_base.wording import lab_templates, vocabulary

_POOL = 1024  # samples that are sorted by length at a time


@dataclass(frozen=True)
class Stage:
    """One schedule: linear warm-up, then cosine to a twentieth.

    Attributes:
        steps: batches.
        copying: the first of them are echoes and recitals alone.
        lr: of the matrices, which Muon moves; AdamW moves the others by half of it.
        mix: of the samples after that.
    """

    steps: int
    copying: int
    lr: float
    mix: Mix
    warmup: int = 50


_MAIN = Mix(lookups=0.12, shifts=0.1, general=0.06, executed=0.35, beside=0.2, unknown=0.3)


@dataclass
class PretrainConfig:
    """Settings of the base model (LOG.md says why).

    The one that ships was made in pieces on the way to them, with the same samples in the end.

    Attributes:
        stages: run one after the other, each with a fresh optimiser and samples of its own; weights
            are rounded to half precision in between.
        batch_tokens: padded tokens a batch.
        longest: samples of more tokens are left out.
        seed: of tokenizer, weights and samples.
    """

    stages: tuple[Stage, ...] = (
        Stage(2400, 300, 3e-3, Mix(lookups=0.12, shifts=0.05, general=0.08)),
        Stage(1300, 0, 2e-3, _MAIN),
        # Whole batches of it: among other samples the arithmetic of shifts did not form.
        Stage(400, 0, 2e-3, Mix(shifts=1.0)),
        Stage(1500, 0, 2e-3, replace(_MAIN, shifts=0.2)),
    )
    batch_tokens: int = 9000
    longest: int = 768
    weight_decay: float = 0.02
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    initializer_range: float = 0.06
    vocab_size: int = 1024
    seed: int = 0
    threads: int = 1
    gates_every: int = 400


def build_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """Train the tokenizer on 4,000 samples and the words of the world."""
    corpus = Corpus(config.seed, lab_templates(), turn, Mix(general=0.1))
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


def batches(
    number: int, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of one number of tokens, of samples of like length, for a stage."""
    step, stage = 0, config.stages[number]
    rng = random.Random(config.seed + 100 * number)
    corpus = Corpus(config.seed + 100 * number + 1, lab_templates(), turn, stage.mix)
    while True:
        copying = 1.0 if step < stage.copying else 0.05
        samples = [encode(tokenizer, corpus.sample(copying)) for _ in range(_POOL)]
        pool = sorted((s for s in samples if len(s[0]) <= config.longest), key=lambda s: len(s[0]))
        chunks: list[list[tuple[list[int], list[bool]]]] = [[]]
        for item in pool:
            if (len(chunks[-1]) + 1) * len(item[0]) > config.batch_tokens:
                chunks.append([])
            chunks[-1].append(item)
        rng.shuffle(chunks)
        for chunk in chunks:
            yield collate(chunk, tokenizer.pad_token_id)
        step += len(chunks)


def collate(
    chunk: Sequence[tuple[list[int], list[bool]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, T], taught [B, T]."""
    width = max(len(ids) for ids, _ in chunk)
    ids = torch.full((len(chunk), width), pad)
    taught = torch.zeros(len(chunk), width, dtype=torch.bool)
    for row, (tokens, answer) in enumerate(chunk):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        taught[row, : len(tokens)] = torch.tensor(answer)
    return ids, taught


def answer_loss(model: Qwen3ForCausalLM, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy over the taught tokens; logits are made for those alone.

    What is taught never sees the padding on its right, so no mask is needed; with bfloat16 in the
    products of matrices a batch takes half its time.
    """
    ids, taught = batch
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state
        where = taught[:, 1:]
        logits = model.lm_head(hidden[:, :-1][where])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][where])


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


def pace(step: int, stage: Stage) -> float:
    """Of the learning rate: linear warm-up, then cosine to a twentieth."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(done * math.pi))


def optimizers(
    model: Qwen3ForCausalLM, lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms.

    Lookup by key forms in half the batches that AdamW alone needs (LOG.md).
    """
    inner: list[torch.nn.Parameter] = []
    outer: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (inner if weight.ndim == 2 and "embed" not in name else outer).append(weight)
    return [
        torch.optim.Muon(
            inner,
            lr=lr,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(outer, lr=lr / 2, betas=(0.9, 0.98), weight_decay=weight_decay),
    ]


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

        say({"config": asdict(config)})
        for number in range(len(config.stages)):
            _train(model, tokenizer, number, config, output, say)
            save(model, tokenizer, output)
            model.half().float()
        gates = final_gates(model, tokenizer)
        say({"gates": gates})
    return gates


def _train(
    model: Any,
    tokenizer: Any,
    number: int,
    config: PretrainConfig,
    output: Path,
    say: Callable[[dict[str, Any]], None],
) -> None:
    stage = config.stages[number]
    both = optimizers(model, stage.lr, config.weight_decay)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in both]
    stream = batches(number, config, tokenizer)
    began, losses = time.monotonic(), []
    for step in range(stage.steps):
        loss = answer_loss(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, first in zip(both, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * pace(step, stage)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = round(time.monotonic() - began, 1)
            row = {
                "stage": number,
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "seconds": seconds,
            }
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
