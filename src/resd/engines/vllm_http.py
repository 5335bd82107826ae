"""Talking to a vLLM server: requests, answers, and what is wrong with them in one line."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from resd.errors import UserError, one_line

START = "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"


class ServerError(UserError):
    """The server says no.

    Attributes:
        status: of its answer.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """A vLLM server; may be asked from several threads.

    Args:
        url: `http://host:port`.
        seconds: longest wait for an answer.

    Raises:
        UserError: the url is none.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url, self._seconds = url.rstrip("/"), seconds
        wrong = "" if url.isprintable() and " " not in url else "it holds white space"
        try:
            parts = urlsplit(self.url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            wrong = str(error)
        if not wrong and (parts.scheme not in ("http", "https") or not self._host):
            wrong = "it must look like http://localhost:8000"
        elif not wrong and (parts.path or parts.query or parts.fragment or parts.username):
            wrong = "name the host and the port alone, as in http://localhost:8000"
        if wrong:
            raise UserError(f"engine.url {url[:200]!r}: {wrong}")
        self._secure = parts.scheme == "https"
        self._open: set[http.client.HTTPConnection] = set()
        self._hung_up = False
        self._lock = threading.Lock()

    def get(self, path: str, seconds: float | None = None) -> Any:
        """The JSON behind a path; see `post`."""
        return self._ask("GET", path, None, seconds)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Post JSON; returns the answer's, or its text where it is none.

        Raises:
            UserError: the server does not answer.
            ServerError: it answers with an error.
        """
        return self._ask("POST", path, body or {}, None)

    def again(self) -> Server:
        """The same server, to be hung up by itself."""
        return Server(self.url, self._seconds)

    def hang_up(self) -> None:
        """Break all requests off, for good; the server stops what it does for them."""
        with self._lock:
            self._hung_up = True
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, kind: str, path: str, body: Any, seconds: float | None) -> Any:
        make = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        assert self._host is not None
        connection = make(self._host, self._port, timeout=seconds or self._seconds)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            data = None if body is None else json.dumps(body)
            connection.connect()
            with self._lock:  # from here on `hang_up` finds it
                if self._hung_up:
                    raise ConnectionAbortedError("hung up")
                self._open.add(connection)
            connection.request(kind, path, data, headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except TimeoutError:
            raise UserError(
                f"engine.url: the server at {self.url} gave no answer to {path} within "
                f"{seconds or self._seconds:g} s; raise engine.seconds, or look at the server"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"engine.url: no server answers at {self.url} ({one_line(str(why))}); start one "
                f"with {START}, then go on with resd train --resume RUN if a run was going"
            ) from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if answer.status >= 400:
            raise ServerError(
                f"engine.url: the server at {self.url} refused {path.partition('?')[0]} with "
                f"status {answer.status}: {_message(text)}",
                answer.status,
            )
        try:
            return json.loads(text)
        except ValueError:
            return text


def _message(text: str) -> str:
    """What a server says of an error, in one line."""
    try:
        said = json.loads(text)
        said = said.get("error", said)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = text
    return one_line(str(said))[:300] or "nothing more"
