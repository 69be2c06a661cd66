"""The refused flows of this node, each with both pods, the isolating policies and the nearest miss.

The kernel reports a flow once, when it refuses its first packet, and counts the others in a set. A report has
the source port, the moment and the group; it is judged when it comes, for the policies may be others later.
The set is read for each question; it also has the flows whose report was lost or over the limits. So a flood
costs little, and its flows are shown nevertheless. Everything is bounded: the ring, the reports that are read
in a second, and those that are judged at once.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import cast

import msgspec
from msgspec import UNSET, UnsetType

from kproxy.backends.policy.refusals import FlowKey, RefusedCount
from kproxy.inspect.drops import (
    NETWORK_POLICY,
    DropList,
    FlowSource,
    FlowWanted,
    NumberedFlow,
    RefusedFlow,
)
from kproxy.kernel.nflog import Logged
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, DirectionJudgement
from kproxy.plan.policy.planner import PolicyPlanner

KEPT = 4096
"""Flows in the ring, of about a kilobyte each."""
JUDGED_AT_ONCE = 200
"""Reports that are judged as they come, and as many more each second; the others when they are asked for."""
SOON = 0.2
"""Seconds within which a report comes, unless there is a flood."""
LATE = 5.0
"""Seconds within which a report is that of a flow that was counted before."""

_UNKNOWN = "unknown"
_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMP", 58: "ICMPv6"}
_JUDGED = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}


class _Words(msgspec.Struct, frozen=True):
    """What the plan says of a flow."""

    detail: str
    policies: tuple[str, ...] = ()
    nearest: str = ""
    source: str | None = None
    destination: str | None = None


class _Entry(msgspec.Struct):
    number: int
    at: float
    source_port: int = 0
    packets: int = 1
    group: str = ""
    words: _Words | None = None
    asked: tuple[str, int] = ("", 0)


Ask = Callable[[Callable[[PolicyPlanner], _Words]], _Words | None]
"""Asks the planner a question, while its plan does not change; None if nothing is enforced."""


ServiceOf = Callable[[str, int, str], str | None]
"""The Service, `namespace/name`, that has an address and port of a protocol, or that port of the node."""


def no_service(_ip: str, _port: int, _protocol: str) -> str | None:
    """See ServiceOf; no Service is known."""
    return None


class RefusedRing:
    """The last refused flows. Methods may be called from any thread."""

    def __init__(
        self,
        ask: Ask,
        clock: Callable[[], float] = time.time,
        kept: int = KEPT,
        service_of: ServiceOf = no_service,
    ) -> None:
        self._ask = ask
        self._service_of = service_of
        self._clock = clock
        self._kept = kept
        self._lock = threading.Condition()
        self._entries: OrderedDict[FlowKey, _Entry] = OrderedDict()
        self._number = 0
        self._tokens = float(JUDGED_AT_ONCE)
        self._filled = clock()

    def reported(self, packets: Iterable[Logged], directions: Callable[[str], str]) -> None:
        """Add packets that the kernel reported; `directions` gives the direction of a prefix."""
        for each in packets:
            direction = directions(each.prefix)
            flow = FlowKey(each.source, each.destination, each.protocol, each.port, direction)
            words = self._judge(flow, each.prefix) if self._may_judge() else None
            at = self._clock() if each.at is None else each.at
            with self._lock:
                known = self._entries.get(flow)
                if known is not None and not known.source_port and abs(at - known.at) < LATE:
                    known.source_port, known.group, known.words = each.source_port, each.prefix, words
                else:
                    known = _Entry(self._next(), at, each.source_port, 1, each.prefix, words)
                    self._put(flow, known)
                known.asked = each.asked, each.asked_port
                self._lock.notify_all()

    def counted(self, found: Iterable[RefusedCount], *, reports: bool = False) -> None:
        """Take over all that the kernel counted: unreported flows, and how often each was refused.

        If there are `reports`, those of the last moment are waited for.
        """
        now = self._clock()
        newest = sorted(found, key=lambda each: -each.age)[-self._kept :]
        with self._lock:
            if reports:
                fresh = [each.flow for each in newest if each.age < SOON]
                self._lock.wait_for(lambda: all(flow in self._entries for flow in fresh), SOON)
            for each in newest:
                known = self._entries.get(each.flow)
                if known is None:
                    self._put(each.flow, _Entry(self._next(), now - each.age, 0, each.packets))
                elif each.packets != known.packets:
                    known.packets, known.number = each.packets, self._next()
                    known.at = max(known.at, now - each.age)
                    self._entries.move_to_end(each.flow)

    def list(self, since: float | None, after: int, most: int, notes: tuple[str, ...]) -> DropList:
        """The flows after a number and of the last `since` seconds; `most`: how many at most, 0: all.

        They are sorted by time.
        """
        oldest = None if since is None else self._clock() - since
        with self._lock:
            last = self._number
            found = [
                (flow, each)
                for flow, each in self._entries.items()
                if each.number > after and (oldest is None or each.at >= oldest)
            ]
        found.sort(key=lambda each: each[1].at)
        chosen = found[-most:] if most else found
        flows = tuple(self._public(flow, each) for flow, each in chosen)
        return DropList(last, flows, len(found) - len(chosen), notes)

    def _public(self, flow: FlowKey, entry: _Entry) -> NumberedFlow:
        words = entry.words
        if words is None:
            words = self._judge(flow, entry.group)
            if words.source or words.destination:  # at a start the pods are not known at once
                entry.words = words
        shown = RefusedFlow(
            datetime.fromtimestamp(entry.at, UTC),
            FlowSource(flow.source, entry.source_port, words.source or UNSET),
            FlowWanted(flow.destination, flow.port, self._service(flow, entry), words.destination or UNSET),
            protocol_name(flow.protocol),
            entry.packets,
            NETWORK_POLICY,
            words.detail,
            flow.direction,
            words.policies,
            words.nearest,
        )
        return NumberedFlow(entry.number, shown)

    def _service(self, flow: FlowKey, entry: _Entry) -> str | UnsetType:
        """The Service that was asked, if the destination was translated."""
        ip, port = entry.asked
        if not ip or (ip, port) == (flow.destination, flow.port):
            return UNSET
        return self._service_of(ip, port, protocol_name(flow.protocol)) or UNSET

    def _put(self, flow: FlowKey, entry: _Entry) -> None:
        self._entries[flow] = entry
        self._entries.move_to_end(flow)
        while len(self._entries) > self._kept:
            self._entries.popitem(last=False)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _may_judge(self) -> bool:
        now = self._clock()
        self._tokens = min(JUDGED_AT_ONCE, self._tokens + max(0.0, now - self._filled) * JUDGED_AT_ONCE)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _judge(self, flow: FlowKey, group: str) -> _Words:
        found = self._ask(lambda planner: words_of(planner, flow, group))
        return _Words("NetworkPolicies are not enforced any more") if found is None else found


def words_of(planner: PolicyPlanner, flow: FlowKey, group: str) -> _Words:
    """What the plan says of a flow that a group refused ("": it is not known which)."""
    source, destination = planner.pod_at(flow.source), planner.pod_at(flow.destination)
    if flow.direction == _UNKNOWN:
        detail = "an end is in this node's pod ranges, and no pod with its address is known"
        return _Words(detail, source=source, destination=destination)
    direction = Direction(flow.direction)
    # No policy can name another protocol: only rules without ports allow it.
    protocol = _JUDGED.get(flow.protocol) or cast("Protocol", protocol_name(flow.protocol))
    judged = None
    with contextlib.suppress(ValueError):  # an IPv4 address within IPv6
        judgement = planner.judge(protocol, flow.source, flow.destination, flow.port)
        judged = next((each for each in judgement.by if each.direction is direction), None)
    if judged is not None and not judged.allowed:
        nearest = judged.nearest
        if flow.protocol not in _JUDGED:
            nearest = nearest.replace(f"{protocol} {flow.port}", protocol)
        isolated = f"{direction} of {judged.pod} is isolated by {', '.join(judged.policies)}"
        return _Words(f"{isolated}: {nearest}", judged.policies, nearest, source, destination)
    table = planner.tables.get(flow.family)
    former = table.groups.get(group) if table is not None else None
    policies = former.policies if former is not None else ()
    pod = destination if direction is Direction.INGRESS else source
    return _Words(_since_changed(direction, pod, judged), policies, "", source, destination)


def _since_changed(direction: Direction, pod: str | None, judged: DirectionJudgement | None) -> str:
    """Why the plan refuses no such flow."""
    if judged is None:
        who = "no pod of this node has the address any more" if pod is None else f"{pod} is not on this node"
        return f"its {direction} was refused; {who}"
    if judged.allowed_by is None:
        return f"{direction} of {judged.pod} was refused; now no policy isolates it"
    return f"{direction} of {judged.pod} was refused; now {judged.allowed_by} allows it"


def protocol_name(number: int) -> str:
    """The name of a protocol, or its number."""
    return _PROTOCOLS.get(number, str(number))
