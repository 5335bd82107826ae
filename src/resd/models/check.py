"""What can be said of a model and a device before any weights are loaded."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from resd.config import RunConfig
from resd.errors import UserError, close_to
from resd.models.load import pick_device, read_model_config
from resd.models.memory import GB, Estimate, Memory
from resd.models.sizes import skeleton
from resd.runs.disk import disk, free_disk

# What `transformers` computes attention with, and the module that it needs.
_ATTENTION = {
    "eager": "torch",
    "sdpa": "torch",
    "flex_attention": "torch",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}


def check_model(run: RunConfig) -> list[str]:
    """Refuse adapters, attention or sizes that cannot work; returns warnings.

    Nothing is loaded but the model's config: it is built without storage.

    Raises:
        UserError: an adapter's target matches nothing or is the head, an attention is unknown or
            not installed, or what is there all the time is larger than the device.
    """
    check_attention(run)
    model = skeleton(read_model_config(run.model), run.model)
    _check_head(model, run)
    device, processes = usable_device(run)
    room = device_memory(device)
    try:
        memory = Memory(run, model)
    except Exception as error:  # what is not known of a model ends no run
        return [f"memory is not estimated: {' '.join(str(error).split())[:200]}"]
    if room is None:
        return []
    if device.type == "cpu":
        room //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    found = memory.estimate(processes, device.type)
    return check_memory(memory, found, device.type, room)


def usable_device(run: RunConfig) -> tuple[torch.device, int]:
    """The device of a run, and how many processes share it (one, or as torchrun says)."""
    return pick_device(run.model.device), max(1, int(os.environ.get("WORLD_SIZE") or 1))


def check_attention(run: RunConfig, *, installed: bool = True) -> None:
    """Refuse an attention that is not known, not installed, or not for this device or dtype.

    Args:
        run: the settings.
        installed: whether it has to work on this machine.

    Raises:
        UserError: it is one of these.
    """
    name = run.model.attention
    if name is None:
        return
    if name not in _ATTENTION:
        known = ", ".join(_ATTENTION)
        meant = close_to(name, list(_ATTENTION))
        raise UserError(f"model.attention: unknown {name!r:.60}{meant}; known: {known}")
    if not name.startswith("flash"):
        return
    if (run.model.compute_dtype or run.model.dtype) == "float32":
        raise UserError(
            f"model.attention: {name} computes in bfloat16 alone; set model.compute_dtype bfloat16"
        )
    if not installed:
        return
    if pick_device(run.model.device).type == "cpu":
        raise UserError(f"model.attention: {name} runs on a GPU alone; use sdpa on a CPU")
    try:
        __import__(_ATTENTION[name])
    except Exception:  # a build for another torch fails in its own way
        raise UserError(
            f"model.attention: {name} needs the package {_ATTENTION[name]}, which is not "
            "installed or does not fit this torch; use sdpa"
        ) from None


def _check_head(model: Any, run: RunConfig) -> None:
    if run.model.lora is None:
        return
    head = model.get_base_model().get_output_embeddings()
    if head is not None and any(".lora_" in f".{name}" for name, _ in head.named_parameters()):
        raise UserError(
            "model.lora.target_modules: the head cannot carry an adapter: its logits are made a "
            "chunk at a time; leave it out (all-linear does)"
        )


def check_memory(memory: Memory, found: Estimate, device: str, room: int) -> list[str]:
    """Hold an estimate against the bytes that a process has.

    Raises:
        UserError: what any update needs is more, and `model.check_memory` is on.
    """
    run = memory.run
    each = f" in each of {found.processes} processes" if found.processes > 1 else ""
    plan = memory.plan()
    holds = f"; it needs {plan}" if plan is not None and device != "cpu" else ""
    if found.certain > room:
        text = (
            f"model.path: weights, gradients, optimiser and teacher of {run.model.path} need "
            f"{found.certain / GB:.1f} GB{each}, the {device} has {room / GB:.1f} GB{holds}; lower "
            f"it with {found.advice((*found.kept, *found.moments['optimiser step']))}"
        )
        if run.model.check_memory:
            raise UserError(f"{text}, or try all the same with --model.check_memory false")
        return [text]
    if found.fits(room):
        return []
    beside = f"; vLLM takes {found.vllm}" if found.vllm else ""
    return [
        f"a step may need {found.total / GB:.1f} GB{each} at its longest sequences "
        f"({found.worst}), {found.base / GB:.1f} GB of them all the time, the {device} has "
        f"{room / GB:.1f} GB{beside}{holds}; lower it with {found.advice()}"
    ]


def check_disk(memory: Memory) -> list[str]:
    """Hold what a run may write against what is free."""
    run, sizes = memory.run, memory.sizes
    needs = disk(run, sizes.bare, sizes.trained, sizes.b, sizes.trained_b, sizes.wide)
    free, whole = free_disk(run.output or Path("runs")), sum(needs.values())
    if free is None or whole <= free:
        return []
    return [
        f"the run may write {whole / GB:.1f} GB, and {free / GB:.1f} GB are free at "
        f"{run.output or 'runs'}; lower checkpoint.keep or checkpoint.keep_evaluated"
    ]


def device_memory(device: torch.device) -> int | None:
    """Bytes of a device; of a CPU, of the host or its container. None if it is not known."""
    if device.type == "cpu":
        return host_memory()
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    module = getattr(torch, device.type, None)
    try:
        return int(module.get_device_properties(device).total_memory)  # type: ignore[union-attr]
    except (AttributeError, RuntimeError, AssertionError):
        return None


def host_memory() -> int | None:
    """Bytes of memory that this process may use."""
    found = []
    with suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there may be no such limit
            found.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(found, default=None)
