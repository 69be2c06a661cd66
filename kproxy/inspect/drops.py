"""Refused flows, as the agent sends them and as `kproxy drops` prints them.

They are read at the socket of root (kproxy/node/local_socket.py) and on no port: they say who talks to whom.
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET, UnsetType

from kproxy.addresses import join_host_port
from kproxy.inspect.agent_client import get_local
from kproxy.inspect.changes import clock
from kproxy.text import clean, clean_all

PATH = "/drops"

PAUSE = 0.5
"""Seconds between two requests of `follow`; the agent reads the kernel for each."""
AT_ONCE = 200
"""Flows that `follow` shows after one request; of more, the last ones."""

NETWORK_POLICY = "network_policy"
"""The only reason there is so far."""

_LONGEST = 4096


class FlowSource(msgspec.Struct, frozen=True):
    """Who sent the first packet; `port` is 0 where it is not known. `pod` is `namespace/name`."""

    ip: str
    port: int
    pod: str | UnsetType = UNSET


class FlowWanted(msgspec.Struct, frozen=True):
    """What it was sent to, after the translation of services; `port` is 0 for a protocol without ports."""

    ip: str
    port: int
    service: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET


class RefusedFlow(msgspec.Struct, frozen=True):
    """A flow that was refused, at `time` for the last time, with `packets` in all.

    `direction` is that of the isolated pod: `ingress`, `egress`, or `unknown` for a pod that was not known.
    `policies` isolate it. `nearest` says what the nearest rule lacks, `detail` everything in a sentence.
    """

    time: datetime
    source: FlowSource
    wanted: FlowWanted
    protocol: str
    packets: int
    reason: str
    detail: str
    direction: str
    policies: tuple[str, ...]
    nearest: str = ""

    def json(self) -> bytes:
        """One line of JSON."""
        return msgspec.json.encode(clean_all(msgspec.to_builtins(self)))

    def line(self) -> str:
        """One line of text."""
        source = _end(self.source.ip, self.source.port, self.source.pod)
        wanted = _end(self.wanted.ip, self.wanted.port, self.wanted.pod)
        many = "1 packet" if self.packets == 1 else f"{self.packets} packets"
        text = f"{clock(self.time)}  {source} → {wanted} {self.protocol}  {many}  {self.detail}"
        return clean(text, _LONGEST)


def _end(ip: str, port: int, pod: str | UnsetType) -> str:
    at = join_host_port(ip, port) if port else ip
    return f"{pod} ({at})" if pod is not UNSET else at


class NumberedFlow(msgspec.Struct, frozen=True):
    """A flow and the number of its last change."""

    number: int
    flow: RefusedFlow


class DropList(msgspec.Struct, frozen=True):
    """Refused flows, sorted by time, and the number of the last change.

    `more` is the number of flows that were left out; `notes` say what the kernel could not report.
    """

    last: int
    flows: tuple[NumberedFlow, ...]
    more: int = 0
    notes: tuple[str, ...] = ()


def fetch(since: float | None = None, after: int = 0, most: int = 0) -> DropList:
    """Ask the kproxy of this network namespace for the flows of the last `since` seconds.

    `most`: the greatest number of flows; 0: all. Raises AgentUnavailable, AgentRefused.
    """
    query = {"after": str(after), "most": str(most)} | ({} if since is None else {"since": f"{since:g}"})
    return get_local(f"{PATH}?{urlencode(query)}", DropList)


def follow(
    since: float | None = None,
    ask: Callable[[float | None, int, int], DropList] = fetch,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[DropList]:
    """Yield the flows of the last seconds, then each one that is refused (again), as they come.

    Raises AgentUnavailable.
    """
    found = ask(since, 0, 0)
    while True:
        yield found
        last = found.last
        pause(PAUSE)
        found = ask(None, last, AT_ONCE)
        if found.last < last:
            found = ask(None, 0, AT_ONCE)  # the agent was started again
