"""Whether a connection is allowed, straight from the text of the NetworkPolicy API.

It shares nothing with the program: it reads objects as YAML has them and walks all of them for each question.
What the API server would have refused makes a policy unreadable: it isolates the pods that it may select, and
allows nothing.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

JSON = dict[str, Any]
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
NAME_LABEL: Final = "kubernetes.io/metadata.name"
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")


class UnreadableError(Exception):
    """A policy that the API server would not have accepted; `str()` says why."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection by its address; `own_node`: the node itself is the source."""

    ip: str
    own_node: bool = False


class Oracle:
    """The verdict of all policies among `objects` at one node, which judges the ends that it hosts."""

    def __init__(self, objects: Iterable[JSON], node: str) -> None:
        found = list(objects)
        self._node = node
        self._policies = [each for each in found if each["kind"] == "NetworkPolicy"]
        self._spaces = {
            each["metadata"]["name"]: {
                **(each["metadata"].get("labels") or {}),
                NAME_LABEL: each["metadata"]["name"],
            }
            for each in found
            if each["kind"] == "Namespace"
        }
        self._holders: dict[str, JSON] = {}
        for pod in sorted((each for each in found if each["kind"] == "Pod"), key=_precedence):
            for ip in addresses(pod):
                self._holders[ip] = pod

    def allowed(self, source: End, destination: End, protocol: str, port: int) -> bool:
        """Whether a new connection passes this node, once service addresses are translated."""
        here, there = self._holders.get(_canonical(source.ip)), self._holders.get(_canonical(destination.ip))
        if source.own_node:
            return True
        if self._local(here) and not self._passes(
            here, "Egress", destination.ip, there, protocol, port, there
        ):
            return False
        return not self._local(there) or self._passes(
            there, "Ingress", source.ip, here, protocol, port, there
        )

    def _local(self, pod: JSON | None) -> bool:
        return pod is not None and pod["spec"].get("nodeName") == self._node

    def _passes(
        self, subject: JSON | None, direction: str, ip: str, peer: JSON | None, protocol: str, port: int,
        target: JSON | None,
    ) -> bool:  # fmt: skip
        assert subject is not None
        isolating = [each for each in self._policies if isolates(each, subject, direction)]
        if not isolating:
            return True
        return any(
            self._allows(policy, direction, ip, peer, protocol, port, target)
            for policy in isolating
            if not problem(policy)
        )

    def _allows(
        self, policy: JSON, direction: str, ip: str, peer: JSON | None, protocol: str, port: int,
        target: JSON | None,
    ) -> bool:  # fmt: skip
        peers_field = "from" if direction == "Ingress" else "to"
        return any(
            _ports_match(rule.get("ports") or [], protocol, port, target)
            and self._peers_match(rule.get(peers_field) or [], _namespace(policy), ip, peer)
            for rule in policy["spec"].get(direction.lower()) or []
        )

    def _peers_match(self, peers: list[JSON], home: str, ip: str, pod: JSON | None) -> bool:
        if not peers:
            return True
        for peer in peers:
            if (block := peer.get("ipBlock")) is not None:
                inside = _contains(block["cidr"], ip)
                if inside and not any(_contains(hole, ip) for hole in block.get("except") or []):
                    return True
                continue
            if pod is None:
                continue
            spaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
            if spaces is None:
                where = _namespace(pod) == home
            else:
                name = _namespace(pod)
                where = matches(spaces, self._spaces.get(name) or {NAME_LABEL: name})
            if where and (pods is None or matches(pods, pod["metadata"].get("labels") or {})):
                return True
        return False


def isolates(policy: JSON, pod: JSON, direction: str) -> bool:
    """Whether a policy isolates a pod in a direction ("Ingress" or "Egress")."""
    if _namespace(policy) != _namespace(pod):
        return False
    spec = policy.get("spec") or {}
    try:
        selected = matches(
            _checked_selector(spec.get("podSelector") or {}), pod["metadata"].get("labels") or {}
        )
    except UnreadableError:
        selected = True
    return selected and direction in directions(spec)


def directions(spec: JSON) -> list[str]:
    """The directions in which a policy isolates; what cannot be read counts as both."""
    types = spec.get("policyTypes")
    if types:
        known = isinstance(types, list) and all(each in ("Ingress", "Egress") for each in types)
        return types if known else ["Ingress", "Egress"]
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def matches(selector: JSON, labels: Mapping[str, str]) -> bool:
    """Whether labels match a label selector; the empty one matches all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for each in selector.get("matchExpressions") or []:
        key, values = each["key"], each.get("values") or []
        match each["operator"]:
            case "In":
                good = key in labels and labels[key] in values
            case "NotIn":
                good = key not in labels or labels[key] not in values
            case "Exists":
                good = key in labels
            case _:
                good = key not in labels
        if not good:
            return False
    return True


def addresses(pod: JSON) -> list[str]:
    """The addresses that are a pod's own: none of a finished or host-network one."""
    status = pod.get("status") or {}
    if pod["spec"].get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return []
    listed = [each["ip"] for each in status.get("podIPs") or []] or [status.get("podIP")]
    return [_canonical(ip) for ip in listed if ip]


def problem(policy: JSON) -> str:
    """Why a policy cannot be obeyed; "" if it can."""
    try:
        _check(policy.get("spec"))
    except UnreadableError as error:
        return str(error)
    return ""


def _precedence(pod: JSON) -> tuple[bool, str]:
    """Of live pods with the same address, the last in this order counts."""
    metadata = pod["metadata"]
    return not metadata.get("deletionTimestamp"), metadata.get("creationTimestamp") or ""


def _namespace(obj: JSON) -> str:
    return str(obj["metadata"].get("namespace") or "default")


def _canonical(ip: str) -> str:
    return str(ipaddress.ip_address(ip))


def _contains(cidr: str, ip: str) -> bool:
    network, address = ipaddress.ip_network(cidr, strict=False), ipaddress.ip_address(ip)
    return network.version == address.version and address in network


def _ports_match(ports: list[JSON], protocol: str, port: int, target: JSON | None) -> bool:
    if not ports:
        return True
    for each in ports:
        if (each.get("protocol") or "TCP") != protocol:
            continue
        wanted = each.get("port")
        if wanted is None:
            return True
        if isinstance(wanted, str):
            if port in _named(target, wanted, protocol):
                return True
        elif wanted <= port <= (each.get("endPort") or wanted):
            return True
    return False


def _named(pod: JSON | None, name: str, protocol: str) -> set[int]:
    if pod is None:
        return set()
    spec = pod["spec"]
    containers = list(spec.get("containers") or [])
    containers += [each for each in spec.get("initContainers") or [] if each.get("restartPolicy") == "Always"]
    return {
        port["containerPort"]
        for container in containers
        for port in container.get("ports") or []
        if port.get("name") == name and (port.get("protocol") or "TCP") == protocol
    }


# -- what the API server would refuse


def _check(spec: Any) -> None:
    _fields("spec", {} if spec is None else spec, {"podSelector", "policyTypes", "ingress", "egress"})
    spec = spec or {}
    _checked_selector(spec.get("podSelector") or {})
    types = spec.get("policyTypes") or []
    if not isinstance(types, list) or any(each not in ("Ingress", "Egress") for each in types):
        raise UnreadableError(f"policyTypes: {types}")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in _list(direction, spec.get(direction)):
            _fields(direction, rule, {peers, "ports"})
            for peer in _list(peers, rule.get(peers)):
                _check_peer(peer)
            for port in _list("ports", rule.get("ports")):
                _check_port(port)


def _list(name: str, value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UnreadableError(f"{name}: not a list")
    return value or []


def _fields(name: str, value: Any, known: set[str]) -> None:
    if not isinstance(value, dict):
        raise UnreadableError(f"{name}: not an object")
    if unknown := value.keys() - known:
        raise UnreadableError(f"{name}: unknown {sorted(unknown)}")


def _checked_selector(selector: Any) -> JSON:
    _fields("selector", selector, {"matchLabels", "matchExpressions"})
    labels = selector.get("matchLabels") or {}
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        raise UnreadableError(f"matchLabels: {labels}")
    for each in _list("matchExpressions", selector.get("matchExpressions")):
        _fields("matchExpressions", each, {"key", "operator", "values"})
        values = _list("values", each.get("values"))
        if not isinstance(each.get("key"), str) or not each["key"]:
            raise UnreadableError("matchExpressions: no key")
        if each.get("operator") not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise UnreadableError(f"operator: {each.get('operator')}")
        if bool(values) != (each["operator"] in ("In", "NotIn")):
            raise UnreadableError(f"{each['operator']} with values {values}")
    result: JSON = selector
    return result


def _check_peer(peer: Any) -> None:
    _fields("peer", peer, {"podSelector", "namespaceSelector", "ipBlock"})
    given = {name for name, value in peer.items() if value is not None}
    if not given or ("ipBlock" in given and len(given) > 1):
        raise UnreadableError(f"peer: {sorted(given)}")
    for name in given - {"ipBlock"}:
        _checked_selector(peer[name])
    if "ipBlock" in given:
        _fields("ipBlock", peer["ipBlock"], {"cidr", "except"})
        outer = _network(peer["ipBlock"].get("cidr"))
        for text in _list("except", peer["ipBlock"].get("except")):
            hole = _network(text)
            if hole.version != outer.version or hole == outer or not hole.subnet_of(outer):  # type: ignore[arg-type]
                raise UnreadableError(f"except {hole} is not strictly inside {outer}")


def _network(text: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if not isinstance(text, str) or "/" not in text:
            raise ValueError(text)
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise UnreadableError(f"cidr: {text}") from error


def _check_port(port: Any) -> None:
    _fields("port", port, {"protocol", "port", "endPort"})
    number, end = port.get("port"), port.get("endPort")
    if (port.get("protocol") or "TCP") not in PROTOCOLS:
        raise UnreadableError(f"protocol: {port['protocol']}")
    if isinstance(number, str) and not _PORT_NAME.fullmatch(number):
        raise UnreadableError(f"port: {number}")
    if isinstance(number, int) and not 1 <= number <= 65535:
        raise UnreadableError(f"port: {number}")
    if end is not None and (not isinstance(number, int) or not number <= end <= 65535):
        raise UnreadableError(f"endPort: {end}")
