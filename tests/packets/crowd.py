"""Many connections that stay open, and new ones all the time: `python crowd.py ROLE JSON`.

`serve`: listens at each of the addresses and answers each byte with itself, until standard input is closed.
`hold`: opens `count` connections to the targets in turn and prints a line. From then on it opens, uses and
closes one connection after the other, and prints a line each 20 rounds. When standard input is closed, it
uses each open connection once more and prints what failed.
"""

import asyncio
import itertools
import json
import resource
import socket
import sys
from typing import Any

SPARE = 200
"""Descriptors besides those of connections."""
ROUNDS = 20
PATIENCE = 30.0
"""Seconds for one exchange, a bound for failures."""


class Echo(asyncio.Protocol):
    """Answers what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(data)


class Link:
    """One connection from a client."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    @classmethod
    async def open(cls, ip: str, port: int) -> "Link":
        opened = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        opened.setblocking(False)  # noqa: FBT003
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(opened, (ip, port))
        except BaseException:
            opened.close()
            raise
        return cls(opened)

    async def exchange(self) -> None:
        """Send a byte and wait for it. Raises OSError, also if the other side has closed."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            await loop.sock_sendall(self._socket, b".")
            if await loop.sock_recv(self._socket, 1) != b".":
                raise ConnectionResetError("closed")

    def close(self) -> None:
        self._socket.close()


async def serve(setting: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Echo, *address, backlog=4096) for address in setting["addresses"]]
    say({"serving": len(servers)})
    await loop.run_in_executor(None, sys.stdin.read)


async def hold(setting: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    targets = itertools.cycle([tuple(each) for each in setting["targets"]])
    links = [await Link.open(*next(targets)) for _ in range(setting["count"])]
    failed: list[str] = []
    fresh = 0
    say({"open": len(links)})
    ended = loop.run_in_executor(None, sys.stdin.read)
    while not ended.done():
        for _ in range(ROUNDS):
            fresh += 1
            try:
                link = await Link.open(*next(targets))
                await link.exchange()
                link.close()
            except OSError as error:
                failed.append(f"new: {error!r}")
        say({"fresh": fresh, "failed": len(failed)})
    for link in links:
        try:
            await link.exchange()
        except OSError as error:
            failed.append(f"open: {error!r}")
    say({"fresh": fresh, "kept": len(links), "failed": failed[:20]})


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Play one role."""
    role, setting = sys.argv[1], json.loads(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, setting["count"] + SPARE), most))
    asyncio.run(serve(setting) if role == "serve" else hold(setting))


if __name__ == "__main__":
    main()
