"""A client on the node, which observes the rules by packets only.

Reads one JSON command a line and answers each with one line. Times are seconds of CLOCK_MONOTONIC, which all
processes of the machine share.
"""

import contextlib
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, Self

PAUSE: Final = 0.0003
"""Seconds between two tries: with five endpoints a new one is reached within about two milliseconds."""

TIMEOUT: Final = 0.5
"""Seconds until a packet without an answer counts as lost."""

OVERLAP: Final = 0.002
"""Seconds until another try is made beside one without an answer.

Dropped packets get no answer, and the kernel sends at most 1,000 refusals a second
(net.ipv4.icmp_msgs_per_sec), fewer than the tries while a service has no endpoint. Waiting for those would
count as the contender's time.
"""

_RESET: Final = struct.pack("ii", 1, 0)


class Tries:
    """Connections that are started one after the other; each stays open until its outcome is known.

    They end with a reset, so that no TIME_WAIT state remains.
    """

    def __init__(self, address: str, port: int) -> None:
        self.made = 0
        self._target = (address, port)
        self._selector = selectors.SelectSelector()  # epoll knows no part of a millisecond
        self._open: dict[socket.socket, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in tuple(self._open):
            self._close(client)
        self._selector.close()

    def start(self) -> socket.socket:
        """Start another connection."""
        self.made += 1
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.settimeout(0)
        self._open[client] = time.monotonic()
        with contextlib.suppress(OSError):  # what is refused at once is heard of below
            client.connect(self._target)
        self._selector.register(client, selectors.EVENT_READ, client)
        return client

    def pending(self, client: socket.socket) -> bool:
        """Return whether the outcome of that connection is still unknown."""
        return client in self._open

    def ended(self, seconds: float) -> Iterator[tuple[str | None, float]]:
        """Wait for connections to end; return their outcomes and the times at which the rules decided them.

        An outcome is the address of the pod that answered, or None. A refusal is decided at its arrival, a
        packet without an answer when it was sent.
        """
        for key, _ in self._selector.select(seconds):
            client: socket.socket = key.data
            try:
                answer = client.recv(4)
            except BlockingIOError:
                continue
            except OSError:
                answer = b""
            self._close(client)
            yield socket.inet_ntoa(answer) if len(answer) == 4 else None, time.monotonic()
        for client, began in tuple(self._open.items()):
            if time.monotonic() - began < TIMEOUT:
                break
            self._close(client)
            yield None, began

    def _close(self, client: socket.socket) -> None:
        del self._open[client]
        self._selector.unregister(client)
        client.close()


def until(command: dict[str, Any]) -> dict[str, Any]:
    """Connect until an outcome matches: a pod in `among`, a pod not in `not_among`, or none (`gone`)."""
    among, not_among, gone = command.get("among"), command.get("not_among"), command.get("gone")

    def wanted(answer: str | None) -> bool:
        if gone or answer is None:
            return bool(gone) and answer is None
        return (among is None or answer in among) and (not_among is None or answer not in not_among)

    deadline = time.monotonic() + command["timeout"]
    with Tries(command["address"], command["port"]) as tries:
        while (now := time.monotonic()) < deadline:
            latest = tries.start()
            while (left := now + OVERLAP - time.monotonic()) > 0 and tries.pending(latest):
                for answer, at in tries.ended(left):
                    if wanted(answer):
                        return {"at": at, "tries": tries.made}
            for answer, at in tries.ended(0 if tries.pending(latest) else PAUSE):
                if wanted(answer):
                    return {"at": at, "tries": tries.made}
        return {"at": None, "tries": tries.made}


def connect(command: dict[str, Any]) -> dict[str, Any]:
    """Time the handshakes of some connections: the first packet's way there and the answer's way back."""
    samples = []
    failed = 0
    for _ in range(command["count"]):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.settimeout(TIMEOUT)
            began = time.perf_counter()
            try:
                client.connect((command["address"], command["port"]))
            except OSError:
                failed += 1
            else:
                samples.append((time.perf_counter() - began) * 1e6)
    return {"us": samples, "failed": failed}


def rate(command: dict[str, Any]) -> dict[str, Any]:
    """How many connections a second one client opens, one after the other."""
    began = time.monotonic()
    done = 0
    while (spent := time.monotonic() - began) < command["seconds"]:
        with socket.socket() as client, contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.settimeout(TIMEOUT)
            client.connect((command["address"], command["port"]))
            done += 1
    return {"per_second": done / spent}


def main() -> None:
    """Serve commands until standard input ends."""
    commands = {"until": until, "connect": connect, "rate": rate}
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(commands[command["do"]](command)), flush=True)


if __name__ == "__main__":
    main()
