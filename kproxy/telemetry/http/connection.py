"""Connections of an HTTP loop, and the order in which they are closed in favour of newer ones.

The client with the most connections loses one first, so that a flood of connections displaces only itself and
not a kubelet, a load balancer or Prometheus, each of which has one or two.
"""

import enum
import socket
from collections.abc import Callable

import msgspec

from kproxy.telemetry.http.message import Answer, Request

_SENT_AT_ONCE = 1 << 20


class Work(msgspec.Struct, frozen=True):
    """An answer that takes long; at most one thread at a time works on each `kind`."""

    kind: str
    make: Callable[[], Answer]


Respond = Callable[[Request], Answer | Work]
"""Answers a request on the loop's thread, at once."""

Admits = Callable[[socket.socket], bool]
"""Whether a new connection is served; others are closed."""


class Stage(enum.IntEnum):
    """The progress of a connection, in the order in which connections are closed in favour of new ones.

    Each stage has a fixed time limit, so the connection that entered first is also the first to reach it.
    """

    LINGERING = 0
    """Answered, but the client still sends: closing now could destroy the unread answer (RFC 9112, 9.6)."""
    READING = 1
    """The request has not arrived as a whole."""
    WRITING = 2
    """The client has not taken the whole answer."""
    WORKING = 3
    """The answer is being computed."""


class Payload:
    """The body of an answer, shared by all connections that it is sent to; `readers` counts them."""

    __slots__ = ("body", "readers")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.readers = 0


class Connection:
    """One connection. `queues` are those that hold it; `client` is the remote address, for the log."""

    __slots__ = (
        "client", "closed", "data", "entered", "listener", "more", "origin", "parts", "payload", "queues",
        "request", "socket", "stage", "work",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, client: str, listener: "Listener", overall: "Queue", now: float
    ) -> None:
        self.socket = sock
        self.client = client
        self.origin = _origin(client)
        """The key by which connections count as one client's."""
        self.listener = listener
        self.queues = (overall, listener.connections)
        self.stage = Stage.READING
        self.entered = now
        self.data = bytearray()
        """The part of the request that has arrived."""
        self.request: Request | None = None
        self.more = False
        """Whether the client sends more than the head of one request."""
        self.parts: list[memoryview] = []
        """The parts of the answer that are not sent yet."""
        self.payload: Payload | None = None
        """A large body that `parts` refers to."""
        self.work: dict[Connection, None] | None = None
        """The connections that wait for the same answer."""
        self.closed = False
        for queue in self.queues:
            queue.add(self)

    def enter(self, stage: Stage, now: float) -> None:
        """Move to another stage."""
        for queue in self.queues:
            queue.remove(self)
        self.stage, self.entered = stage, now
        for queue in self.queues:
            queue.add(self)

    def send(self) -> bool:
        """Send what the client takes of the answer; return whether all is sent. Raises OSError."""
        for _ in range(len(self.parts)):
            part = self.parts[0]
            try:
                sent = self.socket.send(part[:_SENT_AT_ONCE])
            except BlockingIOError:
                return False
            if sent < len(part):
                self.parts[0] = part[sent:]
                return False
            del self.parts[0]
        return True

    def leave(self) -> None:
        """Remove it from every queue and from the work that it waits for."""
        self.closed = True
        for queue in self.queues:
            queue.remove(self)
        if self.work is not None:
            self.work.pop(self, None)


class Queue:
    """Connections by stage, each stage in the order of entry, and their number per client."""

    __slots__ = ("_origins", "_stages", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._stages: tuple[dict[Connection, None], ...] = tuple({} for _ in Stage)
        self._origins: dict[str | bytes, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._stages))

    @property
    def full(self) -> bool:
        """Whether a new connection has to replace one of these."""
        return len(self) >= self.limit

    def add(self, connection: Connection) -> None:
        """Append a connection to its stage."""
        self._stages[connection.stage][connection] = None
        self._origins[connection.origin] = self._origins.get(connection.origin, 0) + 1

    def remove(self, connection: Connection) -> None:
        """Remove a connection from its stage; it must be in the queue."""
        del self._stages[connection.stage][connection]
        left = self._origins.pop(connection.origin) - 1
        if left:
            self._origins[connection.origin] = left

    def first(self, stage: Stage) -> Connection | None:
        """The first to enter a stage."""
        return next(iter(self._stages[stage]), None)

    def victim(self) -> Connection | None:
        """The connection to close: of the client with the most, the first of its earliest stage."""
        if not self._origins:
            return None
        most = max(self._origins.values())
        return next(
            (each for stage in self._stages for each in stage if self._origins[each.origin] == most), None
        )

    def all(self) -> list[Connection]:
        """Every connection."""
        return [connection for stage in self._stages for connection in stage]


class Listener:
    """A socket that accepts connections, at most `limit` of them open at a time."""

    def __init__(
        self, sock: socket.socket, respond: Respond, limit: int, admits: Admits | None = None
    ) -> None:
        self.socket = sock
        self.respond = respond
        self.admits = admits
        self.connections = Queue(limit)


def _origin(client: str) -> str | bytes:
    """An IPv4 address unchanged; the network of an IPv6 address, as a host can use any address in it."""
    if ":" not in client or client.startswith("::ffff:"):
        return client
    return socket.inet_pton(socket.AF_INET6, client.partition("%")[0])[:8]
