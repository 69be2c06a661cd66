"""Names refused flows while NetworkPolicies are enforced, and answers root's questions about them.

Its thread sleeps until the kernel reports something, or settings change. Without reports, because another
program reads the group or the kernel has none, the set of refused flows still has all but the source ports.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.agent.policy.refused import RefusedRing, ServiceOf, no_service
from kproxy.agent.policy.refused_counts import RefusedCounts
from kproxy.backends.policy.config import PolicyConfig
from kproxy.backends.policy.refusals import RefusedCount, direction_of, refused_flows
from kproxy.config.model import ProxyConfig
from kproxy.inspect import drops, isolation
from kproxy.kernel.nflog import Nflog, NflogError
from kproxy.plan.policy.model import PolicyTable, Touched
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.telemetry.http.local import LocalServer
from kproxy.telemetry.http.message import Answer
from kproxy.telemetry.metrics import Sample

log = structlog.stdlib.get_logger(__name__)

AGAIN = 60.0
"""Seconds until a group that cannot be read is tried again."""
REST = 0.05
"""Seconds between two readings, each of at most 64 packets: of a flood, the kernel counts the rest."""

_GROUP = PolicyConfig(Family.IPV4).nflog_group
_MOST_DIGITS = 15
_NOT_ENFORCED = Answer(b"NetworkPolicies are not enforced (--network-policy)\n", status=HTTPStatus.CONFLICT)

T = TypeVar("T")


class Asked(Protocol):
    """Answers questions about the plan; see PolicyAgent."""

    def ask(self, question: Callable[[PolicyPlanner], T]) -> T | None:
        """The planner's answer, while its plan does not change; None if nothing is enforced."""

    def waits_for(self) -> str | None:
        """What the plan waits for, in words; None if it is made."""


class RefusedFlows:
    """A companion of the enforcement, see Companion. `read` reads what the kernel counted."""

    name = "refused"

    def __init__(
        self,
        agent: Asked,
        config: ProxyConfig,
        read: Callable[[Family], Iterable[RefusedCount]] = refused_flows,
        group: int = _GROUP,
        service_of: ServiceOf = no_service,
    ) -> None:
        self._agent = agent
        self._on = config.network_policy
        self._limit = config.metrics_service_limit
        self._read = read
        self._group = group
        self._ring = RefusedRing(agent.ask, service_of=service_of)
        self._counts = RefusedCounts()
        self._woken = threading.Event()
        self._reader: Nflog | None = None
        self._unheard = ""
        self._lost = 0

    # -- as a companion

    def follow(self, config: ProxyConfig) -> None:
        """See Companion.follow."""
        if self._on and not config.network_policy:
            self._counts.forget()
        self._on = config.network_policy
        self.wake()

    def applied(self, family: Family, touched: Touched) -> None:
        """Do nothing."""

    def planned(self, family: Family, table: PolicyTable, touched: Touched) -> None:
        """Note what will be applied next; called on the thread of the policies."""
        self._counts.planned(family, table, touched)

    def run(self, stop: threading.Event) -> None:
        """See Companion.run."""
        while not stop.is_set():
            if not self._on:
                self._wait(None)
                continue
            with self._serving():
                while self._on and not stop.is_set():
                    self._listen(stop)

    def wake(self) -> None:
        """See Companion.wake."""
        self._woken.set()
        reader = self._reader
        if reader is not None:
            reader.wake()

    def samples(self) -> list[Sample]:
        """The packets that each policy refused."""
        return list(self._counts.samples(self._limit))

    # -- the kernel's reports

    def _listen(self, stop: threading.Event) -> None:
        """Read reports until a stop, or until they cannot be read for a while."""
        try:
            self._reader = reader = Nflog(self._group)
        except NflogError as error:
            if str(error) != self._unheard:
                log.warning(
                    "refused_flows_unreported",
                    reason=str(error),
                    effect="they are shown without source ports",
                )
            self._unheard = str(error)
            self._wait(AGAIN)
            return
        self._unheard = ""
        try:
            while self._on and not stop.is_set():
                if packets := reader.wait():
                    self._ring.reported(packets, direction_of)
                    self._lost = reader.lost
                    stop.wait(REST)
        except OSError as error:
            log.warning("refused_flows_unread", reason=error.strerror or str(error), retry_seconds=AGAIN)
            self._wait(AGAIN)
        finally:
            self._reader = None
            reader.close()

    def _wait(self, seconds: float | None) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    # -- questions

    @contextmanager
    def _serving(self) -> Iterator[None]:
        server = LocalServer({drops.PATH: self.drops, isolation.PATH: self.policies})
        try:
            server.start(hard_fail=False)
        except OSError as error:  # no descriptors; packets are refused nevertheless
            log.warning("local_server_failed", reason=error.strerror or str(error))
        try:
            yield
        finally:
            server.stop()

    def drops(self, query: str) -> Answer:
        """Answer `since=SECONDS&after=NUMBER&most=NUMBER`, all optional, with refused flows."""
        asked = parse_qs(query, max_num_fields=8)
        try:
            since, after, most = (_number(asked, name) for name in ("since", "after", "most"))
        except ValueError as error:
            return _refused(str(error))
        families = self._agent.ask(lambda planner: tuple(planner.tables))
        if families is None:
            return _NOT_ENFORCED
        notes = [note for note in (self._unplanned(), self._unheard) if note]
        if self._lost:
            notes.append(
                f"{self._lost} reports were lost in floods; their flows are shown without source ports"
            )
        counted: list[RefusedCount] = []
        for family in families:
            try:
                counted += self._read(family)
            except OSError as error:
                notes.append(f"{family}: the refused flows cannot be read: {error.strerror or error}")
        self._ring.counted(counted, reports=self._reader is not None)
        found = self._ring.list(since, int(after or 0), int(most or 0), tuple(notes))
        return Answer(msgspec.json.encode(found), "application/json")

    def policies(self, query: str) -> Answer:
        """Answer `pod=NAMESPACE/NAME` with what holds for a pod, and without it with all of this node."""
        pod = parse_qs(query, max_num_fields=8).get("pod")
        if reason := self._unplanned():
            return _refused(reason)
        try:
            if pod is None:
                found = self._agent.ask(lambda planner: msgspec.json.encode(isolation.describe_all(planner)))
            else:
                found = self._agent.ask(
                    lambda planner: msgspec.json.encode(isolation.describe_one(planner, pod[0]))
                )
        except isolation.PodUnknown as error:
            return _refused(str(error))
        return _NOT_ENFORCED if found is None else Answer(found, "application/json")

    def _unplanned(self) -> str:
        """Why nothing can be said of pods and policies; "" once the first lists have arrived."""
        waits = self._agent.waits_for()
        return f"pods and policies are not known yet: kproxy waits for {waits}" if waits else ""


def _number(asked: dict[str, list[str]], name: str) -> float | None:
    """A number of a query; None if it is left out. Raises ValueError."""
    text = asked.get(name, [""])[0]
    if not text:
        return None
    if len(text) > _MOST_DIGITS or not text.replace(".", "", 1).isdecimal():
        raise ValueError(f"{name}: not a number")
    return float(text)


def _refused(reason: str) -> Answer:
    return Answer(f"{reason}\n".encode(), status=HTTPStatus.BAD_REQUEST)
