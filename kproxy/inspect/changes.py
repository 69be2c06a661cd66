"""The changes that came to a node, as the agent sends them and as `kproxy changes` prints them."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from urllib.parse import urlencode

import msgspec

from kproxy.addresses import Family
from kproxy.inspect.agent_client import get
from kproxy.text import clean

PATH = "/changes"

PAUSE = 1.0
"""Seconds between two requests of `follow`; the agent answers from memory."""


class Change(msgspec.Struct, frozen=True, rename="camel"):
    """One change of a service in one family.

    `arrived` is None if the service was written again without a change of its own. `taken` is the start of
    the sync, `applied` the time from which the kernel has the change; None if the kernel refused it, for the
    reason `refused`. `trigger` is the time of the cause as the EndpointSlice has it, `revision` the
    resourceVersion of the object that changed last; "" where it is not known. `more` counts added and removed
    endpoints that are not named. `flows_forgotten` counts the conntrack entries that were deleted because of
    the change so far, and `forgotten` is the time of the last deletion; None if there was none.
    """

    number: int
    service: str
    family: Family
    arrived: datetime | None
    taken: datetime
    planned: datetime
    applied: datetime | None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    more: int = 0
    trigger: str = ""
    refused: str = ""
    revision: str = ""
    flows_forgotten: int = 0
    forgotten: datetime | None = None

    def line(self) -> str:
        """One line of text; the times of the steps are those since it arrived."""
        start = self.arrived or self.taken
        done = self.applied or self.planned
        endpoints = [*(f"+{each}" for each in self.added), *(f"-{each}" for each in self.removed)]
        if self.more:
            endpoints.append(f"and {self.more} more")
        steps = [f"arrived {clock(start)}"] if self.arrived is not None else [f"written again {clock(start)}"]
        steps.append(f"planned +{_ms(start, self.planned)}")
        if self.refused:
            steps.append(f"REFUSED: {self.refused}")
        else:
            steps.append(f"in the kernel +{_ms(start, done)}")
        if self.forgotten is not None:
            flows = "flow" if self.flows_forgotten == 1 else "flows"
            steps.append(f"{self.flows_forgotten} {flows} forgotten +{_ms(start, self.forgotten)}")
        if self.revision:
            steps.append(f"revision {self.revision}")
        if self.trigger:
            steps.append(f"cause {self.trigger}")
        what = " ".join(endpoints) or "same endpoints"
        return clean(f"{clock(done)}  {self.service} {self.family}  {what}  {', '.join(steps)}", _LONGEST)


_LONGEST = 4096


class ChangeList(msgspec.Struct, frozen=True):
    """Changes, the oldest first, and the number of the last one that the agent knows."""

    last: int
    changes: tuple[Change, ...]


def fetch(address: str, service: str | None = None, after: int = 0) -> ChangeList:
    """Ask the kproxy that listens at `host:port`. Raises AgentUnavailable."""
    query = {"after": str(after)} | ({"service": service} if service else {})
    return get(address, f"{PATH}?{urlencode(query)}", ChangeList)


def follow(
    address: str,
    service: str | None = None,
    ask: Callable[[str, str | None, int], ChangeList] = fetch,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Change]:
    """Yield the changes that the agent knows and then each new one. Raises AgentUnavailable."""
    last = 0
    while True:
        found = ask(address, service, last)
        if found.last < last:
            found = ask(address, service, 0)  # the agent was started again
        yield from found.changes
        last = found.last
        pause(PAUSE)


def clock(at: datetime) -> str:
    """The time of day here, to the millisecond."""
    return f"{at.astimezone():%H:%M:%S}.{at.microsecond // 1000:03}"


def _ms(start: datetime, end: datetime) -> str:
    return f"{round((end - start).total_seconds() * 1000)} ms"
