"""A tiny untrained model, a tiny world and a tiny configuration: a whole run in about a second."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from resd import Example, Outcome
from resd.runs.traces import read_traces, trace_files

WORDS = ("red", "green", "blue", "lamp", "door", "fan")


class TinyWorld:
    """Passes about every fourth response, by a hash; says why not in words.

    `noisy` lets the feedback depend on the global random states, so that a run which does not
    restore them takes another course.
    """

    def __init__(self, noisy: bool = False) -> None:
        self.noisy = noisy

    def examples(self, split: str) -> list[Example]:
        return [
            Example(f"{split}-{i}", [{"role": "user", "content": f"set {word} {i}"}])
            for i, word in enumerate(WORDS + WORDS[:2])
        ]

    def evaluate(self, example: Example, response: str) -> Outcome:
        digest = hashlib.sha256(f"{example.id} {response}".encode()).digest()
        passed = digest[0] < 64
        noise = f" {random.random():.6f} {np.random.rand():.6f}" if self.noisy else ""
        return Outcome(
            reward=float(passed),
            passed=passed,
            feedback="" if passed else f"error {digest[1] % 4}: wrong word{noise}",
            cases_passed=2 if passed else digest[2] % 2,
            cases=2,
            metrics={"length": len(response)},
        )


def settings(model: Path, output: Path, method: str = "resd", **over: Any) -> dict[str, Any]:
    """Dotted settings of a short run; `over` replaces some (`__` for a dot)."""
    values: dict[str, Any] = {
        "task": f"{__file__}:TinyWorld",
        "model.path": str(model),
        "output": str(output),
        "method.name": method,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.inner_iterations": 2,
        "train.lr": 1e-2,
        "train.warmup_steps": 2,
        "rollout.max_new_tokens": 12,
        "evaluation.every": 2,
        "evaluation.samples": 2,
        "evaluation.max_examples": 4,
        "checkpoint.every": 1,
        "checkpoint.background": False,
    }
    if method in ("resd", "handoff"):
        values |= {"method.reflection_tokens": 12, "method.curation_tokens": 12}
    if method == "grpo":
        values["method.rollouts"] = 3
    return values | {key.replace("__", "."): value for key, value in over.items()}


def eventful_settings(
    model: Path, output: Path, method: str = "resd", **over: Any
) -> dict[str, Any]:
    """A short run with as much state as there is: whatever is not restored shows."""
    eventful: dict[str, Any] = {
        "task_args.noisy": True,
        "train.updates_per_batch": 2,
        "train.early_stop": True,
        "checkpoint.keep": 1,
        "checkpoint.keep_evaluated": 1,
        "evaluation.every": 1,
        "rollout.max_new_tokens": 6,
        "health.window": 2,
    }
    if method in ("resd", "handoff"):
        eventful |= {
            "method.teacher.kind": "ema",
            "method.teacher.rate": 0.1,
            "method.playbook.admission": "confirmed",
            "method.playbook.max_entries": 8,
            "method.playbook.concise_every": 2,
            "method.success_tags": True,
            "method.max_solutions": 3,
        }
    else:
        eventful["method.rollouts"] = 3
    over = {key.replace("__", "."): value for key, value in over.items()}
    return settings(model, output, method) | eventful | over


def arguments(values: dict[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    words = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}", text]
    return words


def same_traces(one: Path, two: Path) -> None:
    """Two runs left the same traces, but for rounding in the numbers of tokens."""
    for what in ("step", "evaluation"):
        for (_, a), (_, b) in zip(trace_files(one, what), trace_files(two, what), strict=True):
            assert a.name == b.name
            for x, y in zip(read_traces(a), read_traces(b), strict=True):
                if x["kind"] == "tokens":
                    for key in ("student", "teacher", "loss"):
                        ours, theirs = x.pop(key), y.pop(key)
                        assert (ours is None) == (theirs is None)
                        assert ours is None or np.allclose(ours, theirs, atol=2e-3)
                    # Tokens alike in their probabilities may change places.
                    x = {**x, "student_top": None, "teacher_top": None}
                    y = {**y, "student_top": None, "teacher_top": None}
                assert x == y


def save_model(place: Path, **config: Any) -> Path:
    """An untrained model of the lab's family, with the lab's tokenizer."""
    from resd.lab_base.pretrain import PretrainConfig, build_model, build_tokenizer, save

    shape = PretrainConfig(**{"hidden": 32, "layers": 1, "heads": 2, **config})
    tokenizer = build_tokenizer(shape)
    save(build_model(shape, tokenizer), tokenizer, place)
    return place


# -- a writer of reflections and curations for models that cannot write any ----------------------


def plausible(prompt: str, seed: int) -> str:
    """What a model might write in answer to a reflection, review or curation prompt."""
    rng = random.Random(f"{seed} {prompt}")
    ids = list(dict.fromkeys(re.findall(r"^\[([a-z]+-\d{5})\]", prompt, re.M)))
    lesson = f"use {rng.choice(WORDS)} before {rng.choice(WORDS[:3])}"
    if rng.random() < 0.05:
        return "I am not sure {"
    if '"operations"' in prompt:
        kinds = ["ADD", "ADD", "ADD", "UPDATE", "REMOVE", "MERGE"] if len(ids) > 1 else ["ADD"]
        operation = {"op": rng.choice(kinds), "section": "code", "content": lesson}
        if operation["op"] != "ADD":
            chosen = rng.sample(ids, 2)
            operation["id"], operation["ids"] = chosen[0], chosen
        return json.dumps({"operations": [operation]})
    verdicts = ["helpful", "helpful", "harmful", "neutral"]
    tags = [{"id": i, "tag": rng.choice(verdicts)} for i in ids if rng.random() < 0.5]
    if '"what_to_do"' in prompt:
        return json.dumps({"what_went_wrong": "a word", "what_to_do": lesson, "tags": tags})
    return json.dumps({"tags": tags})


def patch_writer() -> None:
    """Answer prompts that ask for JSON by `plausible`; the rest by the real model."""
    from resd.engines import Completion, HFEngine

    real = HFEngine.generate

    def generate(self: Any, requests: Any, on_done: Any = None) -> list[Completion]:
        texts = [self._tokenizer.decode(request.prompt_ids) for request in requests]
        if not texts or "Answer with one JSON object" not in texts[0]:
            return real(self, requests, on_done)
        written = [plausible(t, r.seed) for t, r in zip(texts, requests, strict=True)]
        ids = [tuple(self._tokenizer(text)["input_ids"]) for text in written]
        return [
            Completion(i, text, "stop", answer=text) for i, text in zip(ids, written, strict=True)
        ]

    HFEngine.generate = generate  # type: ignore[method-assign]


def tensors_of(place: Path) -> dict[str, Any]:
    """All tensors of a checkpoint by their dotted names."""
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    from resd.backend import Local

    known = FileSystemReader(place).read_metadata().state_dict_metadata
    found = {
        name: torch.zeros(value.size, dtype=value.properties.dtype)
        for name, value in known.items()
        if hasattr(value, "size")
    }
    Local().load(place, found)
    return found
