"""The student of several processes: what process 0 reads and writes, and what the others hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from resd.backend import Local
from resd.backend.fsdp import Sharded
from resd.config import ModelConfig
from resd.loop import student as module
from resd.loop.student import Student
from resd.models.head import head_of
from resd.models.load import load_model


class Two(Sharded):
    """One of two processes, which holds the whole model as if it were its shard."""

    def __init__(self, main: bool) -> None:
        self.rank, self.world = 0 if main else 1, 2
        self.compute: list[Any] = []
        self.lent: list[Any] = []

    def on_main_alone(self, work: Callable[[], Any]) -> Any:
        return work() if self.main else None

    def shard(self, model: Any, compute: Any, stored: Any = None, *, offload: bool = False) -> Any:
        self.compute.append(compute)
        self.offloaded = offload
        frozen = not any(p.requires_grad for p in model.parameters())
        assert (stored is not None) == self.main
        return load_model(CONFIG[0]).requires_grad_(not frozen)

    @contextmanager
    def ready(self, model: Any) -> Iterator[Any]:
        self.lent.append(model)
        yield model


CONFIG: list[ModelConfig] = []
Make = Callable[..., Student]


@pytest.fixture
def make(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def build(backend: Any, warn: Any = pytest.fail, **config: Any) -> Student:
        made = ModelConfig(path=str(tiny_model), device="cpu", **config)
        monkeypatch.setattr("test_student.CONFIG", [made])
        return Student(made, AutoTokenizer.from_pretrained(tiny_model), backend, warn)

    return build


def test_several_processes_compute_by_their_backend_and_one_by_its_masters(make: Make) -> None:
    one = make(Local(), compute_dtype="bfloat16")
    assert {p.dtype for p in one.model.parameters()} == {torch.bfloat16}
    backend = Two(main=True)
    two = make(backend, compute_dtype="bfloat16")
    assert {p.dtype for p in two.model.parameters()} == {torch.float32}
    assert two.masters.weights.keys() == one.masters.weights.keys()
    assert backend.compute == [torch.bfloat16]
    assert backend.lent == [two.model]
    assert not two.whole_logits


@pytest.mark.parametrize("backend", [Local(), Two(main=True), Two(main=False)])
def test_a_frozen_copy_is_the_model_as_it_was_loaded(make: Make, backend: Any) -> None:
    student = make(backend)
    frozen = student.frozen_copy(student.model, offload=backend.world == 2)
    assert getattr(backend, "offloaded", True)
    assert frozen is not student.model
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in student.model.parameters())
    pairs = zip(frozen.parameters(), student.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("backend", [Local(), Two(main=True), Two(main=False)])
def test_process_0_saves_the_weights_of_now(
    make: Make, backend: Any, verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[tuple[Any, Path]] = []
    monkeypatch.setattr(module, "verify_saved", lambda *args: verified.append(args))
    student = make(backend)
    with torch.no_grad():
        for weight in student.model.parameters():
            weight += 1.0
    (student.save_and_verify if verify else student.save)(tmp_path / "saved")
    assert (tmp_path / "saved").exists() == backend.main
    assert [place for _, place in verified] == [tmp_path / "saved"] * (verify and backend.main)
    if backend.main:
        found = load_file(tmp_path / "saved" / "model.safetensors")
        now = student.model.state_dict()
        assert all(torch.equal(found[name], now[name]) for name in found)
        assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_what_the_user_should_know_of_the_model(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of(make(Local()).model)[0]
    head.whole = True
    monkeypatch.setattr(module, "left_out", lambda model: ["experts.down_proj", "experts.up"])
    monkeypatch.setattr(module, "head_of", lambda model: (head, "it is odd"))
    said: list[str] = []
    student = make(Local(), said.append)
    assert student.whole_logits
    assert len(said) == 2
    assert "fused experts get no adapter (experts.down_proj, experts.up)" in said[0]
    assert "because it is odd: the loss takes more memory" in said[1]
