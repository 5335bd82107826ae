"""A server that answers as vLLM's does in developer mode; its model is that of `fake_vllm`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from fake_vllm import Weights
from safetensors.torch import load_file


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *words: Any) -> None: ...


class FakeServer:
    """Runs until `close`; what it says of itself may be changed.

    Attributes:
        calls: method and body of every request that changes something.
        asked: bodies of the requests for completions.
        busy: how often the prefix cache cannot be reset.
        answers: what to say to a path instead: status and text.
    """

    def __init__(self, place: Path, port: int = 0) -> None:
        self.place = place
        self.version, self.dev, self.room, self.mode = "0.32.0", True, 4096, "raw_logprobs"
        self.lora: Any = None
        self.busy = 0
        self.answers: dict[str, tuple[int, str]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.asked: list[Any] = []
        self.headers: list[Any] = []
        self.restart()
        self.free = 1 << 30  # completions that are answered at once; others take ten seconds
        self.hold = threading.Event()
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", port), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def restart(self) -> None:
        """As after a crash: the weights are random, adapters are gone."""
        self.weights, self.weight_version = Weights(str(self.place)), "default"
        self.adapters: dict[str, Weights] = {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(server) -> Any:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: Any) -> None: ...

            def do_GET(self) -> None:
                self.reply({})

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body: Any) -> None:
                path = self.path.partition("?")[0]
                server.headers.append(dict(self.headers))
                if path in server.answers:
                    status, text = server.answers[path]
                else:
                    try:
                        status, text = 200, json.dumps(server.answer(path, body))
                    except LookupError as error:
                        status, text = 404, json.dumps({"detail": f"Not Found {error}"})
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler

    def answer(self, path: str, body: Any) -> Any:
        if path == "/v1/completions":
            return self._complete(body)
        if path == "/version":
            return {"version": self.version}
        if path == "/v1/models":
            return {"data": [{"id": "served"}, *({"id": name} for name in self.adapters)]}
        if not self.dev:
            raise LookupError(path)
        if path == "/server_info":
            model = {"max_model_len": self.room, "logprobs_mode": self.mode}
            return {
                "vllm_config": {"model_config": model, "lora_config": self.lora},
                "vllm_env": {},
            }
        if path == "/weight_info":
            return {"weight_version": self.weight_version}
        self.calls.append((path, body))
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            place = Path(body["kwargs"]["weights_path"])
            self.weights.load(i for f in sorted(place.iterdir()) for i in load_file(f).items())
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            self.busy -= 1
            if self.busy < 0:
                self.weights.forget()
            return {"success": self.busy < 0}
        if path == "/update_weight_version":
            self.weight_version = body["new_version"]
            return {"success": True}
        if path == "/v1/load_lora_adapter":
            from peft import PeftModel

            made = Weights(str(self.place))
            made.model.load_state_dict(self.weights.model.state_dict())
            made.model = PeftModel.from_pretrained(made.model, body["lora_path"]).eval()
            self.adapters[body["lora_name"]] = made
            return "loaded"
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
            return "unloaded"
        raise LookupError(path)

    def _complete(self, body: Any) -> Any:
        with self._lock:
            self.free -= 1
            held = self.free < 0
        if held:
            self.hold.wait(10)
        weights = self.weights if body["model"] == "served" else self.adapters[body["model"]]
        with self._lock, torch.no_grad():  # torch may be used by one at a time here
            self.asked.append(body)
            ids, log_probs, reason = weights.answer(tuple(body["prompt"]), body)
        found = {"token_ids": ids, "finish_reason": reason}
        return {"choices": [{**found, "logprobs": {"token_logprobs": log_probs}}]}
