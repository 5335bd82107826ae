"""A model for several processes: the same modules everywhere, weights as their files hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from safetensors.torch import load_file, save_file

from resd.backend import fsdp
from resd.config import LoraConfig, ModelConfig
from resd.models.load import load_model
from resd.models.spread import empty_model, stored_model
from resd.models.wrapped import bare


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-MoE", "Gemma 2", "Gemma 3", "GPT-2", "gpt-oss"])
def test_the_empty_model_is_the_loaded_one_without_numbers(
    name: str, lora: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    build(name).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), device="cpu", lora=lora)
    loaded, empty = load_model(config), empty_model(config)
    assert all(parameter.is_meta for parameter in empty.parameters())

    def shape(model: Any) -> dict[str, Any]:
        return {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}

    assert shape(empty) == shape(loaded)
    assert dict(empty.named_buffers()).keys() == dict(loaded.named_buffers()).keys()
    assert bare(empty).generation_config.to_dict() == bare(loaded).generation_config.to_dict()
    kinds = [m.config._attn_implementation for m in (bare(empty), bare(loaded))]
    assert kinds[0] == kinds[1]


def test_weights_are_read_in_the_dtype_of_their_files(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "m"
    shutil.copytree(tiny_model, place)
    config = ModelConfig(path=str(place), device="cpu")
    weights = {n: w.float() for n, w in load_file(place / "model.safetensors").items()}
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    assert stored_model(config).dtype == torch.float32
    narrow = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(narrow, place / "model.safetensors", {"format": "pt"})
    stored, wide = stored_model(config), load_model(config)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    for a, b in zip(stored.parameters(), wide.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    narrow[min(narrow)] = weights[min(narrow)]  # one of them is not: nothing may be lost
    save_file(narrow, place / "model.safetensors", {"format": "pt"})
    assert stored_model(config).dtype == torch.float32


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_kept_in_host_memory(offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer and the root, by the policy of PyTorch; pinned where there is a device."""
    sharded: list[dict[str, Any]] = []
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **words: sharded.append(words))
    process = object.__new__(fsdp.Sharded)
    process.device, process._mesh = torch.device("cpu"), None
    model = build("Qwen3")
    process.shard(model, None, offload=offload)
    assert len(sharded) == model.config.num_hidden_layers + 1
    for words in sharded:
        assert ("offload_policy" in words) is offload
        assert not offload or words["offload_policy"].pin_memory is False
