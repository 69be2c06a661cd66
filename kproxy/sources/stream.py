"""The body of an answer, read as it arrives: that of a watch lasts for minutes.

Silence of the server, a broken connection and a proper end are reported differently, because callers handle
them differently.
"""

import socket
import time
from typing import Any

import structlog
import urllib3

from kproxy.sources.errors import DisconnectedError, StalledError

log = structlog.stdlib.get_logger(__name__)

_CHUNK = 256 * 1024
"""Bytes read at once at the most."""


class Stream:
    """The body of one answer, read as it arrives. Close it after use."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def set_timeout(self, seconds: float) -> None:
        """Change how long `read` waits for the next byte."""
        sock = getattr(self._response.connection, "kproxy_socket", None)
        if sock is not None:
            sock.settimeout(seconds)

    def read(self) -> bytes:
        """Return the next bytes, b"" at a proper end.

        Raises StalledError after the timeout, DisconnectedError when the body is cut short.
        """
        try:
            data = self._response.read1(_CHUNK)
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError) as error:
            raise StalledError("the server says nothing any more") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError: the socket was closed under the reader by Transport.close.
            raise DisconnectedError(f"the connection broke: {reason(error)}") from error
        return bytes(data)

    def read_all(self, limit: int, seconds: float) -> bytes:
        """Return the whole body, at most `limit` bytes within `seconds`."""
        deadline = time.monotonic() + seconds
        parts: list[bytes] = []
        size = 0
        while data := self.read():
            parts.append(data)
            size += len(data)
            if size > limit:
                raise DisconnectedError(f"the answer is larger than {limit} bytes")
            if time.monotonic() > deadline:
                raise StalledError(f"the answer took longer than {seconds:g} s")
        return b"".join(parts)

    def interrupt(self) -> None:
        """End a `read` in another thread: DisconnectedError."""
        sock = getattr(self._response.connection, "kproxy_socket", None)
        if isinstance(sock, socket.socket):
            shut_down(sock)

    def close(self) -> None:
        """Return the connection to the pool, or close it if the body was not read to its end."""
        self._response.close()


def shut_down(sock: socket.socket) -> None:
    """Wake every reader of a socket; SSLSocket.shutdown would first change state under its reader."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError as error:
        log.debug("socket_gone", error=str(error))


def reason(error: BaseException) -> str:
    """The message of the innermost error, without the wrapping by libraries."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
