"""A client on the node: it knows of the rules only what its packets meet.

Reads one JSON command a line and answers each with one line. Times are seconds of CLOCK_MONOTONIC, which all
processes of the machine share.
"""

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from typing import Any, Final

PAUSE: Final = 0.0003
"""Seconds between two tries: with five endpoints a new one is met within about two milliseconds."""

TIMEOUT: Final = 0.5
_RESET: Final = struct.pack("ii", 1, 0)


def ask(address: str, port: int) -> str | None:
    """The pod address that answers, or None. The connection is reset, so nothing of it lingers."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.settimeout(TIMEOUT)
        try:
            client.connect((address, port))
            answer = client.recv(4)
        except OSError:
            return None
    return socket.inet_ntoa(answer) if len(answer) == 4 else None


def until(command: dict[str, Any]) -> dict[str, Any]:
    """Ask until an answer is as wanted: from one of `among`, from none of `not_among`, or none (`gone`)."""
    among, not_among = command.get("among"), command.get("not_among")
    deadline = time.monotonic() + command["timeout"]
    pause = threading.Event()
    tries = 0
    while (now := time.monotonic()) < deadline:
        tries += 1
        answer = ask(command["address"], command["port"])
        if command.get("gone"):
            done = answer is None
        else:
            done = (
                answer is not None
                and (among is None or answer in among)
                and (not_among is None or answer not in not_among)
            )
        if done:
            return {"at": time.monotonic(), "asked": now, "tries": tries}
        pause.wait(PAUSE)
    return {"at": None, "tries": tries}


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
