"""`resd push`: what arrives at a hub, and what is refused before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import Capture, one_line
from fake_hub import FakeHub, hub

from resd.cli import main
from resd.config import load_config
from resd.config.paths import anchored
from resd.models.load import load_model, load_tokenizer
from resd.models.save import save_model
from resd.runs import RunDirectory

TOKEN = "hf_of_the_test"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with adapters."""
    return made(tiny_model, tmp_path_factory.mktemp("runs") / "run", model__lora__rank=2)


def made(tiny_model: Path, place: Path, **over: Any) -> Path:
    """What a run leaves, without the training."""
    values = tiny.settings(tiny_model, place, **over)
    config = anchored(load_config(None, list(values.items())), Path.cwd())
    run = RunDirectory.create(place, config)
    row = {f"eval/{name}@2": 0.5 for name in ("mean", "best", "case_mean", "case_best")}
    run.log({"step": 0, **row, "eval/problems": 4})
    model, tokenizer = load_model(config.model), load_tokenizer(config.model.path)

    def fill(target: Path) -> None:
        save_model(model, target)
        tokenizer.save_pretrained(target)

    run.save_final(fill)
    run.finish(0, {"best_step": 0, "rollouts": 0})
    run.close()
    return place


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # Xet's storage is a service of its own; without it large files go by LFS.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_the_model_and_its_card_arrive(run: Path, online: FakeHub, capsys: Capture) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM

    assert main(["push", str(run), "me/tiny", "--private"]) == 0
    assert f"sent to {online.url}/me/tiny" in capsys.readouterr().out
    asked = online.created["me/tiny"]
    assert asked.get("visibility") == "private" or asked["private"]  # by huggingface_hub's version
    assert online.tokens == {f"Bearer {TOKEN}"}
    files = online.files["me/tiny"]
    kept = {f.relative_to(run / "best").as_posix(): f for f in (run / "best").rglob("*")}
    wanted = {name for name, file in kept.items() if file.is_file()} - {"adapter/README.md"}
    assert files.keys() == wanted
    changed = {"README.md", "tokenizer_config.json", "adapter/adapter_config.json"}
    for name in wanted - changed:
        assert files[name] == kept[name].read_bytes(), name
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert 'from_pretrained("me/tiny"' in card.text
    place = run.parent / "arrived"
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    assert AutoModelForCausalLM.from_pretrained(place).generation_config.top_p == 0.95


def test_nothing_of_this_machine_arrives(run: Path, online: FakeHub, tiny_model: Path) -> None:
    for which in ("best", "final", "adapter"):
        assert main(["push", str(run), f"me/{which}", "--which", which]) == 0
    for files in online.files.values():
        for name, content in files.items():
            for place in (run.parent, tiny_model.parent, Path(__file__).parent, Path.home()):
                assert str(place).encode() not in content, (name, place)
        assert b"local_files_only" not in files["tokenizer_config.json"]
    adapter = online.files["me/adapter"]
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert b'PeftModel.from_pretrained(base, "me/adapter")' in adapter["README.md"]
    assert b"library_name: peft" in adapter["README.md"]


def test_a_text_that_names_a_place_is_not_sent(
    tiny_model: Path, tmp_path: Path, online: FakeHub, capsys: Capture
) -> None:
    run = made(tiny_model, tmp_path / "run")
    with (run / "best" / "README.md").open("a") as card:
        card.write(f"trained in {tmp_path / 'run'}")
    assert main(["push", str(run), "me/tiny"]) == 2
    assert f"README.md names {tmp_path / 'run'}, a place of this machine" in one_line(capsys)
    assert online.files == {}
    assert main(["push", str(run), "me/tiny", "--which", "adapter"]) == 2
    assert "it trained all weights" in one_line(capsys)
    (run / "done.json").unlink()
    assert main(["push", str(run), "me/tiny"]) == 2
    assert f"not complete: go on with resd train --resume {run}" in one_line(capsys)


def test_a_dry_run_asks_nobody(run: Path, online: FakeHub, capsys: Capture) -> None:
    assert main(["push", str(run), "tiny", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "model.safetensors" in text
    assert "nothing was sent" in text
    assert online.tokens == set()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/b/c", "more than one /"),
        ("me/a--b", "Cannot have -- or .."),
        ("me/tiny model", "alphanumeric"),
        ("me/x.git", "cannot end by '.git'"),
    ],
)
def test_a_malformed_name_is_refused(run: Path, name: str, said: str, capsys: Capture) -> None:
    assert main(["push", str(run), name]) == 2
    line = one_line(capsys)
    assert said in line
    assert repr(name) in line


def test_a_hub_that_says_no(
    run: Path, online: FakeHub, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["push", str(run), "other/tiny"]

    def said(*extra: str) -> str:
        assert main([*words, *extra]) == 2
        return one_line(capsys)

    for status, wanted in (
        (401, "does not know the token (401): hf auth login"),
        (403, "the token may not write to other/tiny (403)"),
        (500, "refused other/tiny (500): You may not do that."),
    ):
        online.refuse = status
        assert wanted in said()
    online.refuse, online.refused = 403, "/large/"  # says so from within another error
    assert "the token may not write to other/tiny (403)" in said()
    online.refuse = 0
    online.public.add("other/tiny")
    assert "other/tiny is there already, and public" in said("--private")
    assert online.files == {}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in said()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no token for the Hugging Face Hub: hf auth login" in said()


def test_a_run_that_is_not_there(capsys: Capture) -> None:
    assert main(["push", "nowhere", "me/tiny"]) == 2
    assert "there is no run directory nowhere" in one_line(capsys)
