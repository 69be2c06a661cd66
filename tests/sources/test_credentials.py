"""Credentials: one that cannot be sent is refused by name, none is shown, and they reach one host only."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from kproxy.sources.access import ApiProbe
from kproxy.sources.cluster import ClusterAccess, ClusterAccessError, load_session
from kproxy.sources.credentials import without_userinfo
from kproxy.sources.errors import ApiError, StatusError
from kproxy.sources.simple_kubeconfig import from_kubeconfig
from kproxy.sources.transport import Transport

SECRET = "s3cr3t-t0k3n"  # noqa: S105
SERVER = "https://127.0.0.1:1"


def kubeconfig(directory: Path, server: str, **user: Any) -> Path:
    path = directory / "kubeconfig"
    content = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def _failure(access: ClusterAccess) -> str:
    """All that is said of a request that fails: message, traceback and log."""
    with capture_logs() as logs, pytest.raises((ApiError, ClusterAccessError)) as failed:
        Transport(access).send("GET", "/version", None)
    return f"{failed.value} {''.join(traceback.format_exception(failed.value))} {logs}"


BROKEN = {
    "newline": f"{SECRET}\n{SECRET}",
    "return": f"{SECRET}\r\nx-remote-user: {SECRET}",
    "control": f"{SECRET}\x1b[2J",
    "zero": f"{SECRET}\x00",
    "separator": f"{SECRET}\u2028{SECRET}",
    "umlaut": f"{SECRET}ü",
}


@pytest.mark.parametrize("token", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("way", ["inline", "file", "service account", "package"])
def test_a_token_that_cannot_be_sent_is_named_and_not_shown(
    tmp_path: Path, way: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "inline":
        access = ClusterAccess(kubeconfig(tmp_path, SERVER, token=token))
    elif way == "package":  # which reads what has a user name
        access = ClusterAccess(kubeconfig(tmp_path, SERVER, token=token, username="u"))
    else:
        (tmp_path / "token").write_text(token, encoding="utf-8")
        access = ClusterAccess(kubeconfig(tmp_path, SERVER, tokenFile="token"))
    if way == "service account":
        (tmp_path / "ca.crt").write_text("x")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
        access = ClusterAccess(service_account=tmp_path)
    said = _failure(access)
    assert SECRET not in said
    assert "cannot be sent in a header" in said
    assert str(tmp_path) in said


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe" + SECRET.encode()])
def test_a_token_file_that_holds_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    said = _failure(ClusterAccess(kubeconfig(tmp_path, "https://127.0.0.1:1", tokenFile="token")))
    assert SECRET not in said
    assert f"the token in {tmp_path / 'token'}" in said


@pytest.mark.parametrize(
    "server",
    [
        "http://192.0.2.1:8080",
        "http://api.example.com",
        "HTTP://192.0.2.1",
        "http://127.0.0.1.example.com",
        "192.0.2.1:8080",
        "//192.0.2.1:8080",
        "api.example.com",
        "[2001:db8::1]:8080",
    ],
)
@pytest.mark.parametrize("user", [{"token": SECRET}, {"username": "u", "password": SECRET}])
def test_credentials_are_not_sent_over_plain_http(tmp_path: Path, server: str, user: dict[str, str]) -> None:
    said = _failure(ClusterAccess(kubeconfig(tmp_path, server, **user)))
    assert "not sent over plain http: give an https:// address" in said
    assert SECRET not in said


@pytest.mark.parametrize("user", [{"token": SECRET}, {"username": "u", "password": SECRET}])
def test_a_malformed_address_is_named(tmp_path: Path, user: dict[str, str]) -> None:
    assert SECRET not in _failure(ClusterAccess(kubeconfig(tmp_path, "http://[::1", **user)))


def test_without_credentials_plain_http_is_as_good_as_ever(tmp_path: Path) -> None:
    session = load_session(ClusterAccess(kubeconfig(tmp_path, "http://192.0.2.1:8080")))
    assert session.headers() == {}


@pytest.mark.parametrize(
    "server", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "127.0.0.1:1"]
)
def test_on_this_host_they_are_sent_with_a_warning(tmp_path: Path, server: str) -> None:
    session = load_session(ClusterAccess(kubeconfig(tmp_path, server, token=SECRET)))
    with capture_logs() as logs:
        assert session.headers() == session.headers() == {"authorization": f"Bearer {SECRET}"}
    assert [(line["event"], line["server"]) for line in logs] == [("credentials_over_plain_http", server)]
    assert SECRET not in str(logs)


@contextmanager
def _server(location: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """A server that sends every client on to another place; its URL, and the credentials that it got."""
    taken: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            taken.append(self.headers["authorization"])
            self.send_response(307)
            self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
        server.shutdown()


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """Another host would get the token, and its answer would be taken for that of the API server."""
    with _server() as (elsewhere, stolen), _server(f"{elsewhere}/x") as (url, taken):
        access = ClusterAccess(kubeconfig(tmp_path, url, token=SECRET))
        with pytest.raises(StatusError) as refused:
            Transport(access).send("GET", "/version", None)
        assert refused.value.code == 307
        with pytest.raises(StatusError):
            ApiProbe(access).version()
        assert taken == [f"Bearer {SECRET}"] * 2
        assert stolen == []


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, f"http://admin:{SECRET}@127.0.0.1:1/base")
    assert load_session(ClusterAccess(path)).host == "http://127.0.0.1:1/base"
    assert SECRET not in _failure(ClusterAccess(path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host:6443/a@b", "https://host:6443/a@b"),
        ("https://u:p@ss@host/x", "https://host/x"),
        ("u:p@host:6443", "host:6443"),
        ("https://u@[::1]:1", "https://[::1]:1"),
    ],
)
def test_an_address_without_user_and_password(url: str, shown: str) -> None:
    assert without_userinfo(url) == shown


def test_a_file_that_cannot_be_parsed_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    for text in (f'users: [{{user: {{token: "{SECRET}', f"token: *{SECRET}\n", f"a: {SECRET}: {SECRET}\n"):
        path.write_text(text)
        said = _failure(ClusterAccess(path))
        assert SECRET not in said
        assert "line 1" in said or "line 2" in said


def test_what_a_credential_plugin_says_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\necho '{SECRET}'\n")
    plugin.chmod(0o755)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    with caplog.at_level(logging.DEBUG):
        said = _failure(ClusterAccess(kubeconfig(tmp_path, "https://127.0.0.1:1", **user)))
    assert SECRET not in said + caplog.text


def test_the_description_of_an_access_has_no_token(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", token=SECRET)
    assert not any(name.lower().endswith("_proxy") for name in os.environ if name.lower() != "no_proxy")
    plain = from_kubeconfig(path, None, None)
    assert plain is not None
    assert plain.token == SECRET
    assert SECRET not in repr(plain)
