"""A TCP forwarder from inside a namespace to the loopback of the process that runs the lab.

An API server on 127.0.0.1 outside cannot be reached from a namespace. The forwarder passes bytes both ways
with back pressure, keeps silent streams (watches) open for as long as both ends want, and passes on a
half-close as one.
"""

import asyncio
import contextlib
import socket
from typing import Final

CHUNK: Final = 1 << 18


class Forward:
    """Every connection to a listening socket, passed on to 127.0.0.1:`host_port`; on the lab's loop."""

    def __init__(self, listener: socket.socket, host_port: int) -> None:
        self._listener = listener
        self._host_port = host_port
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to accept; takes the listening socket over."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=CHUNK)

    async def stop(self) -> None:
        """Stop listening and drop what is being forwarded."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._host_port, limit=CHUNK)
            ends.append(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except (OSError, asyncio.CancelledError):  # asyncio.streams logs an error for a cancelled task
            for end in ends:  # one side is gone: close the other one, too
                end.transport.abort()
        finally:
            for end in ends:
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
