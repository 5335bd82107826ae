"""The door to engines: by name, with options of their own; refusals before a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_vllm
import pytest

from resd.config import ENGINES, EngineConfig, RunConfig
from resd.config.paths import anchored
from resd.engines.registry import check_engine
from resd.errors import UserError

Refused = Callable[..., str]
SET: dict[str, Any] = {
    "memory": 0.5,
    "sleep": True,
    "url": "http://localhost:1",
    "weights": "here",
    "adapters": True,
    "seconds": 3.0,
}


def test_every_option_belongs_to_an_engine_and_is_refused_by_the_others() -> None:
    """A new engine is a file and a line; its options name it."""
    assert set(SET) == set(EngineConfig.model_fields) - {"kind", "args"}  # args: of one's own
    owned: set[str] = set()
    for kind in ENGINES:
        for option, value in SET.items():
            config = RunConfig(engine=EngineConfig(kind=kind, **{option: value}))
            with_owner = f"engine.{option} does not go with engine.kind {kind}"
            try:
                check_engine(config, 64)
            except UserError as error:
                if with_owner in str(error):
                    assert "set engine.kind to vllm" in str(error)
                    continue
            owned.add(option)
    assert owned == set(SET)


def test_options_that_do_not_fit_are_one_line(refused: Refused) -> None:
    assert "engine.url does not go with engine.kind hf" in refused(engine__url="http://x:1")
    line = refused(engine__kind="vllm", engine__weights="there")
    assert "engine.weights does not go with engine.kind vllm" in line
    assert "vllm_server" in line


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"engine__kind": "vlm"}, "did you mean vllm?"),
        ({"engine__kind": "tgi"}, "known: hf, vllm, vllm_server"),
        ({"engine__kind": 3}, "engine.kind"),
        ({"engine__memory": 1.5}, "engine.memory"),
        ({"engine__memory": 0}, "engine.memory"),
        ({"engine__seconds": 0}, "engine.seconds"),
        ({"engine__urls": "x"}, "did you mean url?"),
    ],
)
def test_values_that_make_no_sense(refused: Refused, over: dict[str, Any], said: str) -> None:
    assert said in refused(**over)


def test_a_vllm_that_is_not_there(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "vLLM is not installed; pip install 'vllm>=0.31,<0.33'" in refused(engine__kind="vllm")


@pytest.mark.parametrize(
    "version", ["0.30.9", "0.33.0", "0.33.0rc1", "1.0", "0.4.21716571491", "x"]
)
def test_a_vllm_of_another_version(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    fake_vllm.install(monkeypatch, tmp_path, version)
    line = refused(engine__kind="vllm")
    assert f"vLLM {version} is installed" in line
    assert "pip install 'vllm>=0.31,<0.33'" in line


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1.dev3+gabc", "0.32.0rc1"])
def test_versions_that_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    fake_vllm.install(monkeypatch, tmp_path, version)
    config = RunConfig(engine=EngineConfig(kind="vllm"))
    config.model.device = "cpu"
    check_engine(config, 64)


def test_what_a_cpu_cannot_do(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_vllm.install(monkeypatch, tmp_path)
    over = {"engine__kind": "vllm", "model__device": "cpu"}
    assert "engine.sleep gives GPU memory back" in refused(**over, engine__sleep=True)
    over["model__device"] = "meta"
    assert "does not run on model.device meta" in refused(**over)


def test_the_directory_of_weights_is_found_from_anywhere(tmp_path: Path) -> None:
    config = RunConfig(engine=EngineConfig(kind="vllm_server", weights=Path("there")))
    assert anchored(config, tmp_path).engine.weights == tmp_path / "there"
    assert anchored(RunConfig(), tmp_path).engine == EngineConfig()
