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
"""Seconds until a packet without an answer counts as lost."""

FIRST_TIMEOUT: Final = 0.02
"""Seconds until another try is made all the same, doubled at each try without an answer, up to TIMEOUT.

The kernel sends at most 1,000 refusals a second (net.ipv4.icmp_msgs_per_sec), fewer than there are tries
while a service has no endpoint; it drops the rest. Waiting for those would count as the contender's time.
"""

_RESET: Final = struct.pack("ii", 1, 0)


def ask(address: str, port: int, timeout: float) -> str | None:
    """The pod address that answers; None if refused. The connection is reset, so nothing of it lingers.

    Raises TimeoutError if there is no answer at all.
    """
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.settimeout(timeout)
        try:
            client.connect((address, port))
            answer = client.recv(4)
        except TimeoutError:
            raise
        except OSError:
            return None
    return socket.inet_ntoa(answer) if len(answer) == 4 else None


def until(command: dict[str, Any]) -> dict[str, Any]:
    """Ask until an answer is as wanted: from one of `among`, from none of `not_among`, or none (`gone`)."""
    among, not_among, gone = command.get("among"), command.get("not_among"), command.get("gone")
    deadline = time.monotonic() + command["timeout"]
    pause = threading.Event()
    tries = 0
    first = TIMEOUT if gone else FIRST_TIMEOUT
    timeout = first
    while (now := time.monotonic()) < deadline:
        tries += 1
        try:
            answer = ask(command["address"], command["port"], timeout)
            timeout = first
        except TimeoutError:
            answer = None
            timeout = min(2 * timeout, TIMEOUT)
        if gone:
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
