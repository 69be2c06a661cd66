"""Misbehaving HTTP clients: `python clients.py JSON`, until standard input is closed.

JSON names addresses, the number of connections to keep open, and the seed. In each round that many slow
connections stay open (some send a byte per round, some nothing, some do not read their answer, some are half
closed) and a few others hang up at different moments. A line of counts is printed after each round.
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
SOURCE = "127.0.0.2"
"""Source address of the clients on the node."""
HANG_UPS = 20
"""Connections per round that hang up."""
STEP = 100
"""Slow connections opened per round."""


def ready(number: int, event: int, milliseconds: int) -> bool:
    """Wait for an event of a descriptor (poll, because select() stops at descriptor 1023)."""
    poller = select.poll()
    poller.register(number, event)
    return bool(poller.poll(milliseconds))


class Slow:
    """A connection that stays open until the server closes it."""

    def __init__(self, address: tuple[str, int], chance: random.Random) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.settimeout(0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.kind = chance.choice(("silent", "drip", "body", "no-read", "half"))
        if address[0].startswith("127."):
            self.socket.bind((SOURCE, 0))
        self.socket.connect_ex(address)
        self._begun = False

    def advance(self) -> bool:
        """Act for one round, as its kind says; return False once the server has closed."""
        try:
            if not self._begun:
                if not ready(self.socket.fileno(), select.POLLOUT, 0):
                    return True
                self._begin()
            elif self.kind in ("drip", "body"):
                self.socket.send(b"a")
            if self.kind != "no-read" and not self.socket.recv(1):
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
        elif self.kind == "no-read":
            self.socket.send(REQUEST)
        elif self.kind == "half":
            self.socket.send(b"GET /li")
            self.socket.shutdown(socket.SHUT_WR)


def hang_up(address: tuple[str, int], chance: random.Random) -> None:
    """Connect, send a part of a request and close, sometimes with a reset."""
    origin = (SOURCE, 0) if address[0].startswith("127.") else None
    with contextlib.suppress(OSError), socket.create_connection(address, 5, origin) as client:
        client.sendall(REQUEST[: chance.choice((0, 7, 21, len(REQUEST)))])
        if chance.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def main() -> None:
    """Run the clients."""
    setting = json.loads(sys.argv[1])
    addresses = [(host, port) for host, port in setting["addresses"]]
    chance = random.Random(setting["seed"])
    slow: list[Slow] = []
    opened = closed = hang_ups = 0
    while not ready(sys.stdin.fileno(), select.POLLIN, 20):
        for _ in range(min(STEP, setting["connections"] - len(slow))):
            slow.append(Slow(chance.choice(addresses), chance))
            opened += 1
        left = [each for each in slow if each.advance()]
        for each in set(slow).difference(left):
            each.socket.close()
            closed += 1
        slow = left
        for _ in range(HANG_UPS):
            hang_up(chance.choice(addresses), chance)
            hang_ups += 1
        done = {"open": len(slow), "opened": opened, "closed": closed, "hang_ups": hang_ups}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
