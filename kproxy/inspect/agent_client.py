"""Ask the kproxy that runs on this node: at the address of its metrics, or at the socket of root."""

import contextlib
import errno
import http.client
import os
from typing import TypeVar

import msgspec

SECONDS = 10.0
"""The longest time for one answer."""

T = TypeVar("T")


class AgentUnavailable(Exception):
    """No kproxy answers; the message names the address and the reason."""


class AgentRefused(Exception):
    """The agent cannot answer this question; the message is its reason."""


def get(address: str, path: str, answer: type[T], seconds: float = SECONDS) -> T:
    """Request a path of `host:port` and decode the answer. Raises AgentRefused, AgentUnavailable."""
    url = f"http://{address}{path.partition('?')[0]}"
    try:
        return _asked(http.client.HTTPConnection(address, timeout=seconds), url, path, answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentUnavailable(f"no answer from {url}: {error}") from error


def get_local(path: str, answer: type[T], seconds: float = SECONDS) -> T:
    """Request a path of the socket of the kproxy of this network namespace, which answers root only.

    Raises AgentRefused, AgentUnavailable.
    """
    try:
        return _asked(_Local(seconds), f"kproxy{path.partition('?')[0]}", path, answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentUnavailable(_why(error)) from error


class _Local(http.client.HTTPConnection):
    """HTTP over the local socket."""

    def __init__(self, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._seconds = seconds

    def connect(self) -> None:
        """Connect. Raises OSError."""
        from kproxy.node import local_socket

        self.sock = local_socket.connect(self._seconds)


def _asked(connection: http.client.HTTPConnection, url: str, path: str, answer: type[T]) -> T:
    with contextlib.closing(connection):
        connection.request("GET", path)
        found = connection.getresponse()
        body = found.read()
    text = body.decode(errors="replace").strip()
    if found.status == http.client.BAD_REQUEST:
        raise AgentRefused(text)
    if found.status != http.client.OK:
        raise AgentUnavailable(f"no answer from {url}: {found.status} {text or found.reason}")
    return msgspec.json.decode(body, type=answer)


def _why(error: Exception) -> str:
    """Why the local socket gave no answer."""
    from kproxy.node.holder import connection

    if os.geteuid() != 0:
        return "root is needed: only root is answered about who talks to whom"
    if not isinstance(error, OSError) or error.errno not in {errno.ECONNREFUSED, errno.ENOENT}:
        return f"no answer from kproxy: {error}"
    with connection() as found, contextlib.suppress(EOFError):
        if found is not None:
            return (
                f"the kproxy that runs here ({found.holder()}) does not enforce NetworkPolicies: "
                "see --network-policy"
            )
    return "no kproxy runs in this network namespace"
