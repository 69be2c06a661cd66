"""Expected outcomes from manifests alone: the pods behind each service address, and the source they see.

Written from the API reference (v1 ServiceSpec, discovery/v1 Endpoint), independent of `kproxy.plan`. It
covers what the examples use, but not topology hints, source ranges and external IPs.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kproxy_lab.demo.examples import Examples, Json, UnusableExamplesError, key
from kproxy_lab.lab.servers import Protocol, host_port
from kproxy_lab.lab.topology import NODE_IP4, Pod

FAMILIES: Final = ("IPv4", "IPv6")
PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"


class Asker(enum.Enum):
    """Where requests come from."""

    POD = "a pod that serves nothing"
    ENDPOINT = "a pod that is an endpoint itself"
    NODE = "the node"
    CLIENT = "a client outside"
    CLIENTS = "several clients outside"


class Source(enum.Enum):
    """The source address that the pod sees."""

    OWN = "the client's own"
    NODE = "the node's"


class Outcome(enum.StrEnum):
    """The outcome when no pod may answer; the values are names of the lab's exceptions."""

    REFUSED = "Refused"
    DROPPED = "NoAnswer"


@dataclass(frozen=True, slots=True)
class Question:
    """One service address, the origin of the requests, and the expected answer.

    `answers` maps the names of the pods that may answer to the source they see; if it is empty, `otherwise`
    is expected. With `sticky` each client address reaches one pod only.
    """

    service: str
    kind: str
    ip: str
    port: int
    protocol: Protocol
    asker: Asker
    answers: Mapping[str, Source]
    otherwise: Outcome = Outcome.REFUSED
    sticky: bool = False

    @property
    def address(self) -> str:
        """`ip:port/protocol`."""
        return f"{host_port(self.ip, self.port)}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Topic:
    """A service: its traits, the questions about it, or the reason why a proxy ignores it."""

    service: str
    traits: str
    questions: tuple[Question, ...]
    not_proxied: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of one service port; `port` is the pod's."""

    pod: Pod
    port: int
    ready: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class Listener:
    """A pod that must serve for the examples to make sense."""

    pod: Pod
    protocol: Protocol
    port: int


def topics(examples: Examples, pods: Sequence[Pod]) -> list[Topic]:
    """Every service of the examples, in order. Raises UnusableExamplesError for endpoints outside the lab."""
    return [_topic(examples, service, pods) for service in examples.services]


def listeners(examples: Examples, pods: Sequence[Pod]) -> list[Listener]:
    """What the pods must serve: every endpoint of every slice, ready or not."""
    found: dict[tuple[str, Protocol, int], Listener] = {}
    for service in examples.services:
        for port in service["spec"].get("ports") or ():
            protocol = port.get("protocol", "TCP")
            for family in FAMILIES:
                for each in endpoints(examples, service, port, family, pods):
                    found[each.pod.name, protocol, each.port] = Listener(each.pod, protocol, each.port)
    return list(found.values())


def endpoints(
    examples: Examples, service: Json, port: Json, family: str, pods: Sequence[Pod]
) -> list[Endpoint]:
    """The endpoints of one port of a service, of one family ("IPv4", "IPv6")."""
    by_ip = {ip: pod for pod in pods for ip in (pod.ip4, pod.ip6)}
    found = []
    for each in examples.slices(service):
        numbers = [
            own["port"]
            for own in each.get("ports") or ()
            if own.get("name", "") == port.get("name", "")
            and own.get("protocol", "TCP") == port.get("protocol", "TCP")
        ]
        if each["addressType"] != family or not numbers:
            continue
        for endpoint in each["endpoints"]:
            ip = endpoint["addresses"][0]
            if ip not in by_ip:
                known = f"{pods[0].ip4} to {pods[-1].ip4}"
                raise UnusableExamplesError(f"{key(each)}: {ip} is no pod of the lab ({known})")
            conditions = endpoint.get("conditions") or {}
            ready = conditions.get("ready") is not False
            draining = bool(conditions.get("terminating") and conditions.get("serving"))
            found.append(Endpoint(by_ip[ip], numbers[0], ready, draining))
    return found


def usable(candidates: Sequence[Endpoint]) -> list[Pod]:
    """Ready endpoints; without any, those that still serve while they terminate (KEP-1669)."""
    return [e.pod for e in candidates if e.ready] or [e.pod for e in candidates if e.draining]


def _topic(examples: Examples, service: Json, pods: Sequence[Pod]) -> Topic:
    spec, name = service["spec"], key(service)
    if other := (service["metadata"].get("labels") or {}).get(PROXY_NAME):
        return Topic(name, "labelled for another proxy", (), f"it is left to {other}")
    if spec.get("type") == "ExternalName":
        reason = f"DNS answers with the alias {spec.get('externalName')}"
        return Topic(name, "ExternalName", (), reason)
    if spec.get("clusterIP") == "None":
        return Topic(name, "headless", (), "DNS answers with the pods' own addresses")
    traits = [spec.get("type", "ClusterIP")]
    if len(_cluster_ips(spec)) > 1:
        traits.append("IPv4 and IPv6")
    if spec.get("externalTrafficPolicy") == "Local":
        traits.append("externalTrafficPolicy Local: pods of this node only, source kept")
    if spec.get("internalTrafficPolicy") == "Local":
        traits.append("internalTrafficPolicy Local")
    if _sticky(spec):
        traits.append("session affinity ClientIP: a client keeps its pod")
    asked = [question for port in spec["ports"] for question in _questions(examples, service, port, pods)]
    if all(not question.answers for question in asked):
        traits.append("no endpoint is ready")
    return Topic(name, ", ".join(traits), tuple(asked))


def _questions(examples: Examples, service: Json, port: Json, pods: Sequence[Pod]) -> Iterator[Question]:
    spec = service["spec"]
    protocol: Protocol = port.get("protocol", "TCP")
    first = port is spec["ports"][0]

    def ask(
        kind: str, ip: str, number: int, asker: Asker, found: tuple[Mapping[str, Source], Outcome]
    ) -> Question:
        return Question(key(service), kind, ip, number, protocol, asker, *found, sticky=_sticky(spec))

    for ip in _cluster_ips(spec):
        family = "IPv6" if ":" in ip else "IPv4"
        internal, otherwise = _internal(spec, endpoints(examples, service, port, family, pods))
        from_pods = dict.fromkeys((pod.name for pod in internal), Source.OWN)
        yield ask("ClusterIP", ip, port["port"], Asker.POD, (from_pods, otherwise))
        own = next((pod for pod in internal if pod.local), None)
        plain = spec.get("type", "ClusterIP") == "ClusterIP" and protocol == "TCP" and not _sticky(spec)
        if first and plain and own is not None and family == "IPv4":
            # Without masquerading the pod would answer itself directly, and the reply would not be
            # translated.
            yield ask(
                "ClusterIP",
                ip,
                port["port"],
                Asker.ENDPOINT,
                (from_pods | {own.name: Source.NODE}, otherwise),
            )
            from_node = dict.fromkeys(from_pods, Source.NODE)
            yield ask("ClusterIP", ip, port["port"], Asker.NODE, (from_node, otherwise))
    candidates = endpoints(examples, service, port, "IPv4", pods)
    external = _external(spec, candidates)
    if port.get("nodePort"):
        yield ask("NodePort", NODE_IP4[0], port["nodePort"], Asker.CLIENT, external)
        if spec["type"] == "NodePort":
            everybody = dict.fromkeys((pod.name for pod in usable(candidates)), Source.NODE)
            yield ask("NodePort", "127.0.0.1", port["nodePort"], Asker.NODE, (everybody, Outcome.REFUSED))
    for ingress in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
        if "ip" not in ingress or ":" in ingress["ip"] or ingress.get("ipMode") == "Proxy":
            continue
        outside = Asker.CLIENTS if _sticky(spec) else Asker.CLIENT
        yield ask("LoadBalancer", ingress["ip"], port["port"], outside, external)
        if spec.get("externalTrafficPolicy") == "Local":
            # Requests of pods do not leave the node: for them the address works like the cluster IP.
            short = dict.fromkeys((pod.name for pod in usable(candidates)), Source.OWN)
            yield ask("LoadBalancer", ingress["ip"], port["port"], Asker.POD, (short, Outcome.REFUSED))


def _internal(spec: Json, candidates: Sequence[Endpoint]) -> tuple[list[Pod], Outcome]:
    if spec.get("internalTrafficPolicy") != "Local":
        return usable(candidates), Outcome.REFUSED
    local = usable([each for each in candidates if each.pod.local])
    return local, Outcome.DROPPED if usable(candidates) else Outcome.REFUSED


def _external(spec: Json, candidates: Sequence[Endpoint]) -> tuple[Mapping[str, Source], Outcome]:
    everywhere = usable(candidates)
    if spec.get("externalTrafficPolicy") != "Local":
        return dict.fromkeys((pod.name for pod in everywhere), Source.NODE), Outcome.REFUSED
    local = usable([each for each in candidates if each.pod.local])
    otherwise = Outcome.DROPPED if everywhere else Outcome.REFUSED
    return dict.fromkeys((pod.name for pod in local), Source.OWN), otherwise


def _cluster_ips(spec: Json) -> list[str]:
    return [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip]


def _sticky(spec: Json) -> bool:
    return spec.get("sessionAffinity") == "ClientIP"
