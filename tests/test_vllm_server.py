"""The engine that asks a vLLM server: what it sends, in which order, and what it says of errors."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Capture
from fake_server import FakeServer
from test_vllm import ASKED, CONTEXT, loaded, same, shaken, wanted

from resd.cli import main
from resd.config import LoraConfig
from resd.engines import vllm_server
from resd.engines.vllm_http import Server
from resd.engines.vllm_server import VLLMServerEngine
from resd.errors import UserError
from resd.models.load import load_tokenizer
from resd.runs import read_metrics


def choice(reason: str, log_prob: float) -> str:
    logs = {"token_logprobs": [log_prob]}
    return json.dumps({"choices": [{"token_ids": [1], "finish_reason": reason, "logprobs": logs}]})


PUSH = ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]


@pytest.fixture
def server(tiny_model: Path) -> Iterator[FakeServer]:
    made = FakeServer(tiny_model)
    yield made
    made.close()


def started(server: FakeServer, model: Any, **over: Any) -> VLLMServerEngine:
    tokenizer = load_tokenizer(str(server.place))
    return VLLMServerEngine(model, tokenizer, Server(server.url, 20), 3, CONTEXT, **over)


def paths(server: FakeServer) -> list[str]:
    return [path for path, _ in server.calls]


def test_the_same_completions_as_the_hf_engine(server: FakeServer, tmp_path: Path) -> None:
    model = loaded(server.place)
    engine = started(server, model, place=tmp_path)
    for version in range(2):
        engine.sync(shaken(model), str(version))
        done: list[int] = []
        same(
            engine.generate(ASKED, lambda i, _, done=done: done.append(i)),
            wanted(server.place, model),
        )
        assert sorted(done) == [0, 1, 2, 3, 4]
        assert len(list(tmp_path.iterdir())) == 1  # the old ones are gone
    assert paths(server) == PUSH * 2
    assert sorted(server.weights.names) == sorted(model.state_dict())  # the tied head too
    asked = {body["seed"]: body for body in server.asked[-5:]}
    assert sorted(asked) == [90, 91, 92, 93, 94]
    plain = {
        "model": "served",
        "prompt": list(ASKED[2].prompt_ids),
        "temperature": 0.8,
        "top_p": 0.9,
        "max_tokens": 6,
        "seed": 92,
        "stop_token_ids": engine._reader.end_ids,
        "logprobs": 0,
        "return_token_ids": True,
        # Whatever the model's own generation config says:
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "n": 1,
    }
    assert asked[92] == plain
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_goes(server: FakeServer) -> None:
    model = loaded(server.place)
    engine = started(server, model)
    engine.sync(model, "0")
    place = Path(server.calls[0][1]["kwargs"]["weights_path"])
    assert place.is_dir()
    assert not engine.rest()
    engine.close()
    assert not place.parent.exists()


def test_a_server_that_was_started_anew_gets_the_weights_again(server: FakeServer) -> None:
    model = loaded(server.place)
    engine = started(server, model)
    engine.sync(model, "0")
    server.restart()
    same(engine.generate(ASKED), wanted(server.place, model))
    assert paths(server) == PUSH * 2
    engine.generate(ASKED)
    assert paths(server) == PUSH * 2
    # One that cannot say what it holds is believed.
    server.answers["/weight_info"] = server.answers["/update_weight_version"] = (404, "no")
    engine.sync(shaken(model), "1")
    same(engine.generate(ASKED), wanted(server.place, model))


def test_a_cache_that_is_in_use(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("resd.engines.vllm_server.time.sleep", waits.append)
    model = loaded(server.place)
    engine = started(server, model)
    server.busy = 2
    engine.sync(model, "0")
    assert paths(server).count("/reset_prefix_cache") == 3
    server.busy = 99
    with pytest.raises(UserError, match="a server of its own"):
        engine.sync(model, "1")


def test_a_process_that_cannot_write_still_takes_part(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for its share of every weight."""
    model, taken = loaded(server.place), []

    def each(model: Any) -> Iterator[Any]:
        for name, tensor in model.state_dict().items():
            taken.append(name)
            yield name, tensor

    monkeypatch.setattr(vllm_server, "whole_weights", each)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="weights cannot be written"):
        started(server, model, place=file).sync(model, "0")
    assert taken == list(model.state_dict())


def test_adapters_by_themselves(server: FakeServer) -> None:
    base = loaded(server.place)
    server.weights.load(base.state_dict().items())
    model = shaken(loaded(server.place, LoraConfig(rank=2)))
    engine = started(server, model, adapters=True)
    engine.sync(model, "0")
    same(engine.generate(ASKED), wanted(server.place, model))
    engine.sync(shaken(model), "1")
    same(engine.generate(ASKED), wanted(server.place, model))
    assert len(server.adapters) == 1
    with model.disable_adapter():
        engine.sync(model, "teacher")
        assert engine.generate(ASKED) == wanted(server.place, base)
    assert server.adapters == {}
    engine.sync(model, "2")
    assert "/collective_rpc" not in paths(server)
    known = dict(server.weights.model.state_dict())
    server.restart()
    server.weights.load(known.items())
    same(engine.generate(ASKED), wanted(server.place, model))  # loaded again
    engine.close()
    assert server.adapters == {}


# -- what may go wrong on the way ------------------------------------------------------------------


def test_a_stop_breaks_off_what_the_server_does(server: FakeServer) -> None:
    model = loaded(server.place)
    engine = started(server, model)
    engine.sync(model, "0")

    def stop(number: int, completion: Any) -> None:
        raise KeyboardInterrupt

    server.free = 1
    with pytest.raises(KeyboardInterrupt):
        engine.generate(ASKED, stop)
    for thread in threading.enumerate():
        if thread.name == "resd generate":
            thread.join(5)
            assert not thread.is_alive()
    server.hold.set()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, '{"error": {"message": "out of\\nmemory"}}'), "status 500: out of memory"),
        ((200, "<html>"), "not understood: <html>"),
        ((200, '{"choices": []}'), "not understood"),
        ((200, "null"), "not understood: None"),
        ((200, choice("length", -9999.0)), "no finite probabilities"),
        ((200, choice("abort", -1.0)), "not understood"),
    ],
)
def test_answers_that_make_no_sense(server: FakeServer, answer: Any, said: str) -> None:
    model = loaded(server.place)
    engine = started(server, model)
    engine.sync(model, "0")
    server.answers["/v1/completions"] = answer
    with pytest.raises(UserError, match=said):
        engine.generate(ASKED)


def test_a_server_with_other_weights_is_noticed(server: FakeServer) -> None:
    model = loaded(server.place)
    server.answers["/collective_rpc"] = (200, "{}")  # it does nothing
    with pytest.raises(UserError, match=r"use engine\.kind hf"):
        started(server, model).sync(model, "0")


Words = Callable[..., list[str]]


def test_a_run_and_a_server_that_is_lost(
    server: FakeServer, train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    over = {
        "engine__kind": "vllm_server",
        "engine__url": f"{server.url}/",
        "model__max_context": 512,
    }
    assert main(train_words(**over)) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "train/sampler_gap" in row]
    assert len(rows) == 4
    assert all(row["train/sampler_gap"] < 1e-5 for row in rows)
    assert paths(server) == PUSH * 5
    capsys.readouterr()
    words = train_words(output=tmp_path / "lost", **over)
    real, server.answer = server.answer, lambda path, body: lose(server, real, path, body)
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"no server answers at {server.url}" in error
    assert "resd train --resume" in error
    server.answer = real
    again = FakeServer(server.place, server.port)
    try:
        assert main(["train", "--resume", str(tmp_path / "lost")]) == 0
    finally:
        again.close()
    whole, lost = tmp_path / "run", tmp_path / "lost"
    assert final(whole).keys() == final(lost).keys()
    assert all(torch.equal(value, final(lost)[name]) for name, value in final(whole).items())


def final(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(run / "final" / "model.safetensors"))


def lose(server: FakeServer, real: Any, path: str, body: Any) -> Any:
    if path == "/collective_rpc" and len(server.calls) > 3 * 5 + 3 * 2:
        server.close()
        raise ConnectionResetError
    return real(path, body)


# -- before a model is loaded ----------------------------------------------------------------------


def refuse_server(server: FakeServer, refused: Callable[..., str], **over: Any) -> str:
    plain = {"engine__kind": "vllm_server", "engine__url": server.url, "model__max_context": 512}
    return refused(**{**plain, **over})


def test_servers_that_do_not_fit(server: FakeServer, refused: Callable[..., str]) -> None:
    server.room = 300
    line = refuse_server(server, refused)
    assert "--max-model-len 512" in line
    server.room, server.mode = 512, "processed_logprobs"
    assert "--logprobs-mode raw_logprobs" in refuse_server(server, refused)
    server.mode, server.dev = "raw_logprobs", False
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in refuse_server(server, refused)
    server.version = "0.30.2"
    assert "is vLLM 0.30.2" in refuse_server(server, refused)
    for answer in ((404, ""), (200, "hello"), (200, "[]"), (200, '{"version": 3}')):
        server.answers["/version"] = answer
        assert "is no vLLM server" in refuse_server(server, refused)


def test_adapters_that_a_server_does_not_take(
    server: FakeServer, refused: Callable[..., str]
) -> None:
    over = {"engine__adapters": True}
    assert "set model.lora" in refuse_server(server, refused, **over)
    over["model__lora__rank"] = 8  # type: ignore[assignment]
    assert "--enable-lora" in refuse_server(server, refused, **over)
    server.lora = {"max_lora_rank": 4}
    assert "--max-lora-rank 8" in refuse_server(server, refused, **over)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "must look like http://localhost:8000"),
        ("ftp://localhost", "must look like"),
        ("http://", "must look like"),
        ("http://host:99999", "Port out of range"),
        ("http://host:port", "engine.url"),
        ("http://[::1", "engine.url"),
        ("http://host/v1", "the host and the port alone"),
        ("http://user:word@host", "the host and the port alone"),
        ("http://host?x=1", "the host and the port alone"),
        ("http://ho st", "white space"),
        ("http://host\n", "white space"),
        ("", "must look like"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    with pytest.raises(UserError, match=r"engine\.url") as caught:
        Server(url, 1)
    assert said in str(caught.value)


def test_nobody_there(refused: Callable[..., str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = {"engine__kind": "vllm_server"}
    line = refused(**over, engine__url=f"http://127.0.0.1:{port}")
    assert f"no server answers at http://127.0.0.1:{port} (Connection refused)" in line
    assert "engine.url" in refused(**over, engine__url="http://nowhere.invalid:1")
    assert "needs engine.url" in refused(**over)


def test_a_directory_that_is_none(
    server: FakeServer, refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refuse_server(server, refused, engine__weights=str(tmp_path / "nowhere"))
    assert "engine.weights" in line


def test_a_server_that_wants_a_key(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    Server(server.url, 5).get("/version")
    assert server.headers[-1]["Authorization"] == "Bearer secret"


def test_a_server_that_says_nothing() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no answer to /version within 0.05 s"):
            Server(url, 0.05).get("/version")
