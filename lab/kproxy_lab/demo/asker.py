"""Sends requests to one address without a pause and prints one line for each: time and answering pod.

    python -m kproxy_lab.demo.asker IP PORT

A separate process, because a loop of plain system calls sends several times as many requests as the lab's
clients within a busy process, and the rate of requests limits the precision of a change's time. A line is the
time (seconds since the epoch) just before connect() sent the first packet, and the pod's name, or `!` and
the error. It ends when its output is closed.
"""

import json
import os
import socket
import sys
import time
from typing import Final

TIMEOUT: Final = 1.0
AT_ONCE: Final = 0.005  # seconds; how long lines may wait to be written together


def ask(ip: str, port: int) -> tuple[float, str]:
    """One request on a connection of its own."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.settimeout(TIMEOUT)
        began = time.time()
        try:
            opened.connect((ip, port))
            opened.sendall(b"1:\n")
            reply = b""
            while not reply.endswith(b"\n"):
                data = opened.recv(4096)
                if not data:
                    return began, "!closed"
                reply += data
        except OSError as error:
            return began, f"!{type(error).__name__}"
    return began, json.loads(reply)["pod"]


def main() -> None:
    """Send requests until the reader is gone."""
    ip, port = sys.argv[1], int(sys.argv[2])
    lines, written = [], time.time()
    while True:
        began, who = ask(ip, port)
        lines.append(f"{began!r} {who}\n")
        if began - written > AT_ONCE:
            try:
                os.write(1, "".join(lines).encode())
            except BrokenPipeError:
                return
            lines, written = [], began


if __name__ == "__main__":
    main()
