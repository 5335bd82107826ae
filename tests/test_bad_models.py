"""What a user can get wrong about a model: one line that says what and where, and exit code 2.

Nothing is loaded and nothing left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Capture, Words, one_line

from resd.cli import main


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop_end_token(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (model / "tokenizer_config.json").write_text(json.dumps(config))


MODELS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no tokenizer": (
        lambda m: [f.unlink() for f in m.glob("tokenizer*")],
        ["no tokenizer", "save_pretrained"],
    ),
    "damaged tokenizer": (lambda m: (m / "tokenizer.json").write_text("{"), ["no tokenizer in"]),
    "no chat template": (lambda m: (m / "chat_template.jinja").unlink(), ["no chat template"]),
    "broken chat template": (
        lambda m: (m / "chat_template.jinja").write_text("{% for"),
        ["chat template", "fails"],
    ),
    "chat template that refuses": (
        lambda m: (m / "chat_template.jinja").write_text("{{ raise_exception('no users') }}"),
        ["chat template", "no users"],
    ),
    "chat template that says nothing": (
        lambda m: (m / "chat_template.jinja").write_text("{# nothing #}"),
        ["chat template", "makes nothing"],
    ),
    "no end token": (drop_end_token, ["end token"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["no weights"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["no config.json"]),
    "damaged config": (lambda m: (m / "config.json").write_text("{"), ["model.path"]),
    "config of an unknown kind": (
        lambda m: rewrite(m / "config.json", model_type="abacus"),
        ["model.path"],
    ),
    "tokenizer of another model": (
        lambda m: rewrite(m / "config.json", vocab_size=20),
        ["does not belong to the model"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_directory(name: str, refused: Callable[..., str], model_copy: Path) -> None:
    spoil, wanted = MODELS[name]
    spoil(model_copy)
    line = refused(model__path=str(model_copy))
    assert "model.path" in line
    for word in wanted:
        assert word in line


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "nowhere"])
def test_a_model_directory_that_is_not_there(path: str, refused: Callable[..., str]) -> None:
    assert f"no model directory {path}" in refused(model__path=path)


def test_a_hub_id_that_cannot_be_had(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "model.path: no tokenizer in nobody/nothing" in refused(model__path="nobody/nothing")


WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:2000]),
    "garbage": lambda file: file.write_bytes(b"garbage" * 999),
    "of another shape": lambda file: rewrite(file.with_name("config.json"), hidden_size=64),
    "without a layer": lambda file: rewrite(
        file.with_name("config.json"), num_hidden_layers=2, layer_types=["full_attention"] * 2
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_load(
    name: str, train_words: Words, model_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Only loading shows it: still one line, and no directory that is in the way next time."""
    WEIGHTS[name](model_copy / "model.safetensors")
    assert main(train_words(model__path=str(model_copy))) == 2
    assert f"model.path: {model_copy} cannot be loaded" in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        (["nowhere"], "model.lora.target_modules: nowhere matches no module of the model; there"),
        ("nowhere", "model.lora does not fit the model"),
    ],
)
def test_adapters_that_do_not_fit(
    modules: Any, wanted: str, train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    assert main(train_words(model__lora__target_modules=modules)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(f"resd: {wanted}")
    assert not (tmp_path / "run").exists()


def test_a_model_without_finite_probabilities(
    train_words: Words, model_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    from safetensors.torch import load_file, save_file

    file = model_copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, file, {"format": "pt"})
    assert main(train_words(model__path=str(model_copy))) == 2
    line = one_line(capsys)
    assert "no finite probabilities" in line
    assert "train.lr" in line
