"""Probes and their outcomes: every frontend of every service, from every vantage point.

Probes are derived from the stored Services alone, so a case consists of objects only.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from kproxy_lab.lab import Answer, AskError, Lab, Namespace, Pod, Protocol
from kproxy_lab.lab.topology import NODE, NODE_IP4, NODE_IP6, Family
from tests.peer.objects import JSON, SPEC

Frontend = Literal["cluster", "external", "balancer", "node", "localhost", "unserved"]
Outcome = frozenset[str]
"""The distinct results of requests: `local-0:8080 own` (pod, port, source that it saw), or `Refused`."""

SILENCE = 0.4
"""Seconds of silence that count as a drop, at first."""
PATIENCE = 2.5
"""The same once contenders differ; it includes one retransmission of a SYN."""
FEW, MANY = 6, 48
"""Requests in a first round, and in a second one where contenders differ in the answering endpoints."""
CLIENTS: Final = 31
"""Source addresses of the outside client that take turns where a service has session affinity."""

VANTAGES: Final = (
    "client",
    "other-client",
    "node",
    "peer",
    "local-0",
    "local-2",
    "remote-0",
)
"""Outside, the node itself, another node, and pods here and there, some of which are endpoints as a rule."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests from one place to one address and port; `service` is the name of whose frontend it is."""

    service: str
    frontend: Frontend
    vantage: str
    ip: str
    port: int
    protocol: Protocol = "TCP"
    sticky: bool = False

    def __str__(self) -> str:
        return f"{self.service} {self.frontend} from {self.vantage}: {self.protocol} [{self.ip}]:{self.port}"

    @property
    def family(self) -> Family:
        """Its address family."""
        return 6 if ":" in self.ip else 4


def probes(services: Sequence[JSON], vantages: Sequence[str] = VANTAGES) -> list[Probe]:
    """Every probe of every service, those of one service together; the other client only where it matters."""
    return [
        probe
        for service in services
        for probe in _of(service, vantages)
        if probe.vantage != "other-client" or service["spec"].get("loadBalancerSourceRanges")
    ]


def _of(service: JSON, vantages: Sequence[str]) -> Iterator[Probe]:
    spec, name = service["spec"], service["metadata"]["name"]
    sticky = spec.get("sessionAffinity") == "ClientIP"
    ports = spec.get("ports") or ()
    numbers = {p["port"] for p in ports}
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
    frontends: dict[Frontend, list[str]] = {
        "cluster": [ip for ip in spec.get("clusterIPs") or () if ip not in {"", "None"}],
        "external": list(spec.get("externalIPs") or ()),
        "balancer": [entry["ip"] for entry in ingress if entry.get("ip")],
    }
    for frontend, ips in frontends.items():
        for ip, vantage in itertools.product(ips, vantages):
            for p in ports:
                yield Probe(name, frontend, vantage, ip, p["port"], p.get("protocol", "TCP"), sticky)
            if vantage in {"client", "local-2"}:
                yield Probe(name, "unserved", vantage, ip, max(numbers, default=80) + 1)
    for p in ports:
        if p.get("nodePort"):
            for frontend, vantage, ip in _node_frontends(vantages):
                yield Probe(name, frontend, vantage, ip, p["nodePort"], p.get("protocol", "TCP"), sticky)


def _node_frontends(vantages: Sequence[str]) -> Iterator[tuple[Frontend, str, str]]:
    for vantage in vantages:
        yield from (("node", vantage, ip) for ip in (NODE_IP4[0], NODE_IP6[0]))
        if vantage == "client":
            yield from (("node", vantage, ip) for ip in (NODE_IP4[1], NODE_IP6[1]))
        if vantage == "local-2":
            yield from (("node", vantage, ip) for ip in NODE.gateways)
        if vantage == "node":
            yield from (("localhost", vantage, ip) for ip in ("127.0.0.1", "::1"))


class Asker:
    """Sends probes in one lab; `fresh` if no client has met the service before."""

    def __init__(self, lab: Lab, *, fresh: bool) -> None:
        self._lab = lab
        self._fresh = fresh

    def ask(self, probe: Probe, n: int, timeout: float) -> Outcome:
        """Ask `n` times, or, where the service has affinity, each client three times in turn."""
        if probe.sticky:
            return self._ask_sticky(probe, timeout)
        return frozenset(self._say(probe, ended) for ended in self._each(probe, n, timeout))

    def _ask_sticky(self, probe: Probe, timeout: float) -> Outcome:
        """Return failures, whether each client always reached one endpoint, and all endpoints reached.

        The endpoint of a client is random, so the last is included for the outside client only, which has
        enough addresses, and only where no earlier endpoints are remembered.
        """
        found: set[str] = set()
        for source in self._sources(probe):
            met = {self._say(probe, ended) for ended in self._each(probe, 3, timeout, source, at_once=1)}
            answers = {one for one in met if " " in one}
            found |= met - answers
            if answers:
                found.add("sticks" if len(answers) == 1 else "wanders")
            if probe.vantage == "client" and self._fresh:
                found |= answers
        return frozenset(found)

    def _sources(self, probe: Probe) -> Sequence[str | None]:
        if probe.vantage != "client":
            return (None,)
        return (SPEC.client_ip4 if probe.family == 4 else SPEC.client_ip6)[:CLIENTS]

    def _each(
        self, probe: Probe, n: int, timeout: float, source_ip: str | None = None, at_once: int = MANY
    ) -> list[Answer | AskError]:
        source, own = self._source(probe)
        chosen = source_ip or own
        return self._lab.ask_each(
            source,
            probe.ip,
            probe.port,
            n,
            probe.protocol,
            source_ips=[chosen] if chosen else (),
            timeout=timeout,
            concurrency=at_once,
        )

    def _source(self, probe: Probe) -> tuple[Namespace | Pod, str | None]:
        lab = self._lab
        clients = SPEC.client_ip4 if probe.family == 4 else SPEC.client_ip6
        match probe.vantage:
            case "client":
                return lab.client, clients[0]
            case "other-client":
                return lab.client, clients[-1]
            case "node":
                return lab.node, None
            case "peer":
                return lab.peer, None
            case name:
                return next(pod for pod in lab.pods if pod.name == name), None

    @staticmethod
    def _say(probe: Probe, ended: Answer | AskError) -> str:
        if not isinstance(ended, Answer):
            return type(ended).__name__
        seen = "own" if ended.source_ip_seen == ended.local_ip else ended.source_ip_seen
        return f"{ended.pod}:{ended.port_seen} {seen}"
