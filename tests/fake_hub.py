"""A stand-in for the Hugging Face Hub: takes what `huggingface_hub` sends, and keeps it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class FakeHub(ThreadingHTTPServer):
    """Repositories by name; large files come by LFS, the others in the commit.

    Attributes:
        refuse: status of the answers to paths with `refused` in them, if they are not to work.
        public: repositories that are there already, and public.
        tokens: what came as authorization.
        created: what was asked for, by repository.
        files: of each repository.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse, self.refused = 0, "/"
        self.public: set[str] = set()
        self.tokens: set[str] = set()
        self.created: dict[str, dict[str, Any]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """What a request is answered."""
        if self.refuse and self.refused in path:
            return self.refuse, {"error": "You may not do that."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            self.created[name] = asked
            status = 409 if name in self.public else 200
            return status, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {}
        if path.endswith("/preupload/main"):
            return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        name = "/".join(path.split("/")[3:5])
        if path.endswith("/commit/main"):
            self.files[name] = dict(self._committed(body))
            return 200, {"commitUrl": f"{self.url}/{name}/commit/abc", "commitOid": "abc"}
        assert path == f"/api/models/{name}", path
        return 200, {"id": name, "private": name not in self.public}

    def _committed(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                yield value["path"], self.large[value["oid"]]


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self.path.startswith("/large/"):  # storage has links that are signed
            self.server.tokens.add(str(self.headers.get("authorization")))
        status, value = self.server.answer(self.path.partition("?")[0], body)
        sent = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_PUT = _respond

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def hub() -> Iterator[FakeHub]:
    """A hub that listens while it is used."""
    with FakeHub() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
