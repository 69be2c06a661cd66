"""An HTTP server that answers from a script: for servers no decent API server would be."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit


class Answering:
    """One request and the means to answer it in pieces."""

    def __init__(self, handler: BaseHTTPRequestHandler, released: threading.Event) -> None:
        parts = urlsplit(handler.path)
        self.path = parts.path
        self.query = dict(parse_qsl(parts.query))
        self.headers = handler.headers
        self.released = released
        self._handler = handler

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def streamed_list(self) -> bool:
        return "sendInitialEvents" in self.query

    def reply(self, body: object, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """A complete answer with a length."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._handler.send_response(code)
        self._handler.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def begin(self) -> None:
        """The head of a chunked answer."""
        self._handler.send_response(200)
        self._handler.send_header("transfer-encoding", "chunked")
        self._handler.end_headers()

    def send(self, data: bytes) -> None:
        if data:
            self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self._handler.wfile.flush()

    def event(self, type_: str, obj: dict[str, Any]) -> None:
        self.send(json.dumps({"type": type_, "object": obj}).encode() + b"\n")

    def end(self) -> None:
        """A proper end."""
        self._handler.wfile.write(b"0\r\n\r\n")

    def hold(self) -> None:
        """Keep the connection open and say nothing until the server is closed."""
        self.released.wait()


def bookmark(version: int, **annotations: str) -> dict[str, Any]:
    meta: dict[str, Any] = {"resourceVersion": str(version)}
    if annotations:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"kind": "Service", "apiVersion": "v1", "metadata": meta}


def page(kind: str, items: list[dict[str, Any]], version: int) -> dict[str, Any]:
    return {"kind": f"{kind}List", "metadata": {"resourceVersion": str(version)}, "items": items}


class ScriptedServer:
    """Serves services by a script; the other kinds are empty and quiet."""

    def __init__(self, script: Callable[[Answering], None]) -> None:
        self.requests: list[Answering] = []
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answering = Answering(self, owner.released)
                if answering.path != "/api/v1/services":
                    quiet(answering, "EndpointSlice")
                    return
                owner.requests.append(answering)
                try:
                    script(answering)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def quiet(answering: Answering, kind: str) -> None:
    """An empty list and a watch without events."""
    if answering.streamed_list:
        answering.reply({"code": 422}, 422)
    elif answering.watch:
        answering.begin()
        answering.hold()
    else:
        answering.reply(page(kind, [], 1))
