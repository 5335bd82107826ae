"""`resd doctor` without a run: what this machine has, what that means, and what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resd.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

State = Literal["ok", "warn", "off", "fail"]

_LIBRARIES = ("transformers", "accelerate", "peft", "tokenizers", "safetensors", "pydantic")
_TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
_LITTLE_DISK = 10e9
# Slower than this a mixed run would lose time by it; faster than that it gains.
_SLOWER, _FASTER = 0.9, 1.2
_TIMES = 5


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: of the thing.
        state: `off` is what is not there and need not be; with `fail` nothing can be trained.
        detail: what was seen, and what to do.
    """

    name: str
    state: State
    detail: str


def show_machine(*, as_json: bool = False) -> int:
    """Print a line for each thing; returns 1 if nothing can be trained here, else 0."""
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            print(f"{finding.state:<6}{finding.name:<11}{one_line(finding.detail)}", flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    failed = any(finding.state == "fail" for finding in found)
    if not as_json:
        verdict = "Nothing can be trained here." if failed else "Ready: resd train"
        print(f"\n{verdict}\nThe memory that a run needs: resd doctor --preset NAME")
    return int(failed)


def findings() -> Iterator[Finding]:
    """Python, torch, libraries, device, precision, engines, sandbox, trackers, disk, in order."""
    yield _python()
    torch = _torch()
    yield torch
    libraries = _libraries()
    yield libraries
    if torch.state != "fail" and libraries.state != "fail":
        yield from (_told(check) for check in (_device, _precision, _vllm))
    yield from (_told(check) for check in (_sandbox, _trackers, _disk))


def _told(check: Callable[[], Finding]) -> Finding:
    """What a check finds; one that breaks says so, and the others go on."""
    try:
        return check()
    except Exception as error:
        return Finding(check.__name__.strip("_"), "warn", f"cannot be told: {_said(error)}")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(str(error))[:200]}"


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")


def _torch() -> Finding:
    """Whether a model can be trained at all: one step of one layer."""
    try:
        import torch

        device = _accelerator()
        layer = torch.nn.Linear(8, 8, device=device)
        before = layer.weight.detach().clone()
        layer(torch.ones(2, 8, device=device)).square().mean().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1).step()
        if not bool((layer.weight != before).any()):
            return Finding("torch", "fail", f"{torch.__version__}: a step moves no weight")
    except (Exception, SystemExit) as error:
        cure = "pip install 'torch==2.13.0', by https://pytorch.org for your device"
        return Finding("torch", "fail", f"cannot train a layer: {_said(error)}; {cure}")
    return Finding("torch", "ok", torch.__version__)


def _accelerator() -> torch.device:
    """What `model.device` auto stands for."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _libraries() -> Finding:
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        return Finding("libraries", "fail", f"not installed: pip install {' '.join(missing)}")
    found = [f"{name} {metadata.version(name)}" for name in _LIBRARIES[:3]]
    return Finding("libraries", "ok", ", ".join(found))


def _device() -> Finding:
    import torch

    device = _accelerator()
    if device.type != "cpu":
        number = torch.accelerator.device_count()
        name, room = device.type, ""
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            name, room = card.name, f", {card.total_memory / 1e9:.0f} GB each"
        return Finding("device", "ok", f"{number} {name}{room}")
    if shutil.which("nvidia-smi"):
        cure = "install the torch that https://pytorch.org names for its driver"
        return Finding("device", "warn", f"an NVIDIA card that this torch cannot use: {cure}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"no accelerator, {cores} cores: enough for the lab, and for adapters of small models"
    return Finding("device", "ok", f"{said} (--preset real-small); more wants a GPU")


def _precision() -> Finding:
    try:
        ratio = _speed_of_bfloat16(_accelerator())
    except (RuntimeError, NotImplementedError) as error:
        said = f"float32 alone, bfloat16 fails ({_said(error)})"
        return Finding("precision", "warn", f"{said}: leave model.compute_dtype at float32")
    seen = f"float32 and bfloat16, which multiplies {ratio:.2f} times as fast"
    if ratio < _SLOWER:
        return Finding("precision", "warn", f"{seen}: leave model.compute_dtype at float32")
    gain = ": try --model.compute_dtype bfloat16" if ratio > _FASTER else ""
    return Finding("precision", "ok", f"{seen}{gain}")


def _speed_of_bfloat16(device: torch.device) -> float:
    """How many times as fast as float32 a product of matrices is, by the best of a few times."""
    import torch

    width = 256 if device.type == "cpu" else 4096
    best: dict[Any, float] = {}
    pairs = {
        dtype: torch.ones(width, width, device=device, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    for _ in range(_TIMES):
        for dtype, matrix in pairs.items():
            began = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # waits for the device
            best[dtype] = min(best.get(dtype, 60.0), time.perf_counter() - began)
    return best[torch.float32] / best[torch.bfloat16]


def _vllm() -> Finding:
    from resd.engines.vllm_ready import INSTALL, SUPPORTED, installed_version, is_supported

    version = installed_version()
    if version is None:
        said = f"hf works; vLLM is not installed, and a GPU generates faster with it: {INSTALL}"
        return Finding("engine", "off", said)
    if not is_supported(version):
        said = f"hf works; vLLM {version} is not one of {SUPPORTED}: {INSTALL}"
        return Finding("engine", "warn", said)
    return Finding("engine", "ok", f"hf, and vLLM {version}: --engine.kind vllm")


def _sandbox() -> Finding:
    from resd.sandbox import SandboxUnavailable, make_sandbox

    try:
        make_sandbox("strict")
    except (SandboxUnavailable, UserError) as error:
        return Finding("sandbox", "warn", f"tasks that run a model's code are refused: {error}")
    return Finding(
        "sandbox", "ok", "strict: a model's code cannot write, connect or start anything"
    )


def _trackers() -> Finding:
    found = [name for name in _TRACKERS if find_spec(name) is not None]
    missing = [name for name in _TRACKERS if name not in found]
    have = f"{', '.join(found)}: --trackers '{json.dumps(found)}'" if found else "none"
    more = (
        f"; not installed: {', '.join(missing)} (pip install 'resd[trackers]')" if missing else ""
    )
    return Finding("trackers", "ok" if found else "off", f"{have}{more}")


def _disk() -> Finding:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    said = f"{free / 1e9:.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        return Finding("disk", "warn", f"{said}, which cannot be written to: name --output")
    if free < _LITTLE_DISK:
        return Finding(
            "disk", "warn", f"{said}: enough for the lab; lower checkpoint.keep, or name --output"
        )
    return Finding("disk", "ok", said)
