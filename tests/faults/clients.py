"""Clients of every bad kind, all at once: `python clients.py JSON`, until standard input is closed.

The setting names addresses, how many connections to keep open, and the seed. A round keeps that many slow
connections open (some send a byte in each round, some nothing, some do not read their answer, some are half
closed) and lets a few others hang up at different moments. What was done is printed after each round.
"""

import contextlib
import json
import random
import select
import socket
import struct
import sys

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
STRANGER = "127.0.0.2"
"""Where bad clients on the node come from."""
RUDE = 20
"""Connections a round that hang up."""
STEP = 100
"""Slow connections opened a round."""


def ready(number: int, event: int, milliseconds: int) -> bool:
    """Wait for an event of a descriptor, however large its number is."""
    poller = select.poll()
    poller.register(number, event)
    return bool(poller.poll(milliseconds))


class Slow:
    """A connection that stays as long as it is let."""

    def __init__(self, address: tuple[str, int], chance: random.Random) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.settimeout(0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.kind = chance.choice(("silent", "drip", "body", "deaf", "half"))
        if address[0].startswith("127."):
            self.socket.bind((STRANGER, 0))
        self.socket.connect_ex(address)
        self._begun = False

    def advance(self) -> bool:
        """Do what a client of its kind does in a round; False once the server has closed."""
        try:
            if not self._begun:
                if not ready(self.socket.fileno(), select.POLLOUT, 0):
                    return True
                self._begin()
            elif self.kind in ("drip", "body"):
                self.socket.send(b"a")
            if self.kind != "deaf" and not self.socket.recv(1):
                return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _begin(self) -> None:
        self._begun = True
        if self.kind == "drip":
            self.socket.send(b"GET /livez HTTP/1.1\r\nA: ")
        elif self.kind == "body":
            self.socket.send(b"POST /livez HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        elif self.kind == "deaf":
            self.socket.send(REQUEST)
        elif self.kind == "half":
            self.socket.send(b"GET /li")
            self.socket.shutdown(socket.SHUT_WR)


def hang_up(address: tuple[str, int], chance: random.Random) -> None:
    """Connect, do a part of what a request takes, and be gone."""
    origin = (STRANGER, 0) if address[0].startswith("127.") else None
    with contextlib.suppress(OSError), socket.create_connection(address, 5, origin) as client:
        client.sendall(REQUEST[: chance.choice((0, 7, 21, len(REQUEST)))])
        if chance.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def main() -> None:
    """Be all of them."""
    setting = json.loads(sys.argv[1])
    addresses = [(host, port) for host, port in setting["addresses"]]
    chance = random.Random(setting["seed"])
    slow: list[Slow] = []
    opened = closed = rude = 0
    while not ready(sys.stdin.fileno(), select.POLLIN, 20):
        for _ in range(min(STEP, setting["connections"] - len(slow))):
            slow.append(Slow(chance.choice(addresses), chance))
            opened += 1
        left = [each for each in slow if each.advance()]
        for each in set(slow).difference(left):
            each.socket.close()
            closed += 1
        slow = left
        for _ in range(RUDE):
            hang_up(chance.choice(addresses), chance)
            rude += 1
        done = {"open": len(slow), "opened": opened, "closed": closed, "rude": rude}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
