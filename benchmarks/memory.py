"""The peak memory of a run on stand-ins, measured, beside what `resd doctor` computes for it.

python benchmarks/memory.py [CASE ...] [--json]

Each case is a whole `resd train` of one step on a random model that is small but not negligible,
in a process of its own: rollouts, reflections, teacher, update, checkpoint, final model. What is
measured is the largest resident memory above that before the run, which has libraries in it.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from resd import Example, Outcome

# Freed tensors go back to the system at once, so that what is resident is what is held.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MB = 10**6

SHAPE = {
    "vocab_size": 16_384,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
SDPO = {"name": "sdpo", "max_teacher_tokens": 800}
LIVE = {**SDPO, "teacher": {"kind": "live"}}
FROZEN = {**SDPO, "teacher": {"kind": "frozen"}}
# With fewer words the 20 MB that products in bfloat16 leave with their library are a sixth of all.
WORDS = {"vocab_size": 49_152}
LORA = {"lora": {"rank": 16}}
NARROW = {"compute_dtype": "bfloat16"}
CHECKPOINTED = {"gradient_checkpointing": True}
# Name: architecture, its fields, settings of the model, the method.
CASES = {
    "full": ("qwen3", {}, {}, SDPO),
    "full, frozen teacher": ("qwen3", {}, {}, FROZEN),
    "full, no teacher of its own": ("qwen3", {}, {}, LIVE),
    "full, GRPO": ("qwen3", {}, {}, {"name": "grpo"}),
    "full, checkpointing": ("qwen3", {}, CHECKPOINTED, SDPO),
    "full, bfloat16": ("qwen3", {}, NARROW, SDPO),
    "full, bfloat16, checkpointing, frozen": ("qwen3", {}, {**NARROW, **CHECKPOINTED}, FROZEN),
    "LoRA": ("qwen3", {}, LORA, SDPO),
    "LoRA, bfloat16": ("qwen3", {}, {**LORA, **NARROW}, SDPO),
    "LoRA, bfloat16, checkpointing": ("qwen3", WORDS, {**LORA, **NARROW, **CHECKPOINTED}, SDPO),
    "LoRA on bfloat16 weights": ("qwen3", {}, {**LORA, "dtype": "bfloat16"}, FROZEN),
    "untied Llama": ("llama", {"tie_word_embeddings": False}, {}, SDPO),
    "experts": ("qwen3_moe", EXPERTS, {}, SDPO),
    "long cache": ("qwen3", {}, {}, {"name": "grpo", "rows": 24}),
}


class World:
    """Long prompts, long feedback, and nothing ever passes; every second reward is 1."""

    count = 0

    def examples(self, split):
        text = "set the lamp in the hall to 3 and then " * 60
        return [
            Example(f"{split}-{i}", [{"role": "user", "content": f"{i} {text}"}]) for i in range(32)
        ]

    def evaluate(self, example, response):
        self.count += 1
        reward = float(self.count % 2)
        return Outcome(reward=reward, passed=False, feedback="the lamp is no door " * 200)


def settings(name, place, output, **smaller):
    """The configuration of a case, its stand-in saved in `place`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from resd.config import validate
    from resd.models.load import LAB_MODEL

    kind, fields, model, method = CASES[name]
    if not (place / "config.json").exists():
        import torch

        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**SHAPE, **fields, **smaller})
        )
        made.save_pretrained(place)
        AutoTokenizer.from_pretrained(LAB_MODEL).save_pretrained(place)
    method = dict(method)
    rows = method.pop("rows", 2)
    return validate(
        {
            "task": f"{Path(__file__).resolve()}:World",
            "output": str(output),
            "model": {"path": str(place), "max_context": 1024, "device": "cpu", **model},
            "method": method,
            "rollout": {
                "max_prompt_tokens": 768,
                "max_new_tokens": 64,
                "batch_size": rows,
                "env_mode": "thread",
            },
            "train": {
                "steps": 2,
                "inner_iterations": 2,
                "batch_size": max(2, rows // 8),
                "micro_batch_tokens": 900,
                "chunk_tokens": 64,
                "lr": 1e-6,
            },
            "evaluation": {"every": 0, "at_start": False, "samples": 1, "max_examples": 1},
            "checkpoint": {"keep": 1},
            "traces": False,
        },
        "here",
    )


def resident(field):
    """Resident bytes by the kernel's count; frozen weights are pages of the model's own file."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(name):
    """Estimated and measured bytes of a case, in this process; and those of each phase."""
    from resd.api import start_run
    from resd.models.memory import Memory, as_rows

    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        config = settings(name, place / "model", place / "run")
        found = as_rows(Memory(config).estimate(device="cpu"))
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
        start_run(config)
        peak = resident("VmHWM")
    return found, peak - before


def warm_up(name):
    """A run of a tiny model: libraries and their buffers are there before anything is measured."""
    from resd.api import start_run

    with tempfile.TemporaryDirectory() as directory, redirect_stdout(io.StringIO()):
        place = Path(directory)
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
        start_run(settings(name, place / "model", place / "run", **tiny))


def apart(name):
    """`measure` in a fork of this process; returns what it prints."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            sys.stdout.flush()
            os.dup2(nowhere.fileno(), 1)
            warm_up(name)
            found, measured = measure(name)
        row = {"case": name, "estimate": found["total"], "measured": measured, "parts": found}
        os.write(write, json.dumps(row).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit(f"{name} failed")
    return json.loads(text)


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in _ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import torch
    import transformers  # noqa: F401

    import resd.loop.trainer  # noqa: F401

    torch.set_num_threads(1)
    for case in options.cases:
        row = apart(case)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        ratio = row["estimate"] / row["measured"]
        print(
            f"{case:40}{row['estimate'] / MB:8.0f} MB  measured {row['measured'] / MB:8.0f} MB"
            f"  {ratio:5.2f}",
            flush=True,
        )
