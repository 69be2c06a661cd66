"""Replace names and addresses in a recording, so that it can be published and its rules stay the same.

Names are numbered in their order, so that what is decided by the order of names is decided alike: `ns-1`,
`service-3`, `node-2`, `pod-4`, `zone-1`, `port-2`, `policy-1`. Numbers have leading zeros where there are
more than nine. Words of the API and of the settings stay, and so do ports, protocols, times and interfaces.
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from kproxy.addresses import join_host_port, parse_cidr, parse_ip, split_host_port
from kproxy.plan.schedulers import parse_scheduler
from kproxy.plan.weights import WeightsError, parse_weights
from kproxy.sources.anonymous_addresses import AddressMap
from kproxy.sources.anonymous_policies import replaced_part
from kproxy.sources.recording import (
    AgentReport,
    Deleted,
    Entry,
    ListComplete,
    Listed,
    RecordedNode,
    RecordedSettings,
    Recording,
    Rejected,
    Upserted,
)
from kproxy.state.kinds import KINDS, Kind
from kproxy.state.problems import Problem

Json = Any

HIDDEN = "hidden"
"""Replaces free text, which may hold any name."""

_WORDS = frozenset(
    (
        *("TCP", "UDP", "SCTP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "None", "ClientIP"),
        *("Cluster", "Local", "VIP", "Proxy", "IPv4", "IPv6", "FQDN", "InternalIP", "ExternalIP", "Hostname"),
        *("InternalDNS", "ExternalDNS", "ToBeDeletedByClusterAutoscaler", "Pod", "Node"),
    )
)
"""Values of the API that stay; other text in their place is invalid."""

_NAMED = {"nodeName": "node", "zone": "zone", "topology.kubernetes.io/zone": "zone"}
"""Fields with a name -> the kind of the name."""

_ADDRESSES = ("clusterIP", "clusterIPs", "externalIPs", "ip", "addresses", "address")
_CIDRS = ("loadBalancerSourceRanges", "cidrs", "podCIDR", "podCIDRs")
_TIMES = ("creationTimestamp", "deletionTimestamp", "endpoints.kubernetes.io/last-change-trigger-time")
_TIME = re.compile(r"[-0-9TZ:.+]+")
_SERVICE, _SLICE, _CIDR = "service", "slice", "servicecidr"
_OF_KIND = {
    Kind.SERVICE: _SERVICE,
    Kind.ENDPOINT_SLICE: _SLICE,
    Kind.NODE: "node",
    Kind.SERVICE_CIDR: _CIDR,
    Kind.POD: "pod",
    Kind.NAMESPACE: "namespace",
    Kind.NETWORK_POLICY: "policy",
}


def anonymize(recording: Recording, secret: bytes | None = None) -> Recording:
    """Replace every name and address. `secret` is by default a random one, which is not kept."""
    found = _Found()
    _rewrite(recording, found)
    names = _Names(found, secret or secrets.token_bytes(32))
    return _rewrite(recording, names)


class _Found:
    """Collects names and addresses: the first pass. See _Names for what replaces them."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.addresses: set[str] = set()

    def name(self, what: str, text: str) -> str:
        self.names.setdefault(what, set()).add(text)
        return text

    def address(self, text: str) -> str:
        for read in (parse_ip, parse_cidr):
            try:
                self.addresses.add(read(text.strip())[1].partition("/")[0])
            except ValueError:
                continue
        return text

    def weights(self, text: str) -> str:
        return text


class _Names:
    """Replaces names and addresses: the second pass."""

    def __init__(self, found: _Found, secret: bytes) -> None:
        self._addresses = AddressMap(secret, found.addresses)
        self._texts = {
            what: dict(zip(ordered, _numbered(_PREFIXES.get(what, what), texts), strict=True))
            for what, texts in found.names.items()
            if (ordered := sorted(texts, key=_ORDERS.get(what)))
        }
        self._invalid: dict[str, str] = {}

    def name(self, what: str, text: str) -> str:
        return self._texts[what][text]

    def address(self, text: str) -> str:
        """An address or a CIDR; text that is neither stays different from other text, and invalid."""
        for replace in (self._addresses.address, self._addresses.cidr):
            try:
                return replace(text.strip())
            except ValueError:
                continue
        return self._invalid.setdefault(text, f"invalid-{len(self._invalid) + 1}")

    def weights(self, text: str) -> str:
        """The same weights by the replaced names of all pods, nodes and zones that a selector matches."""
        try:
            selectors = parse_weights(text)
        except WeightsError:
            return "invalid"
        found: dict[str, int] = {}
        for each in selectors:
            if not each.kind:
                found.setdefault("*", each.weight)
                continue
            for name, replaced in self._texts.get(each.kind, {}).items():
                if each.matches(name):
                    found.setdefault(f"{each.kind}:{replaced}", each.weight)
        return json.dumps(found)


_PREFIXES = {"namespace": "ns"}

_ORDERS: Mapping[str, Callable[[str], Any]] = {"namespace": lambda text: f"{text}/"}
"""Keys are ordered as `namespace/name`."""


def _numbered(prefix: str, texts: Collection[str]) -> list[str]:
    """As many new names in order, none of which is one of the old ones."""
    width = len(str(len(texts)))
    while True:
        every = (f"{prefix}-{number:0{width}}" for number in range(1, 10**width))
        found = list(islice((each for each in every if each not in texts), len(texts)))
        if len(found) == len(texts):
            return found
        width += 1


Names = _Found | _Names


def _rewrite(recording: Recording, names: Names) -> Recording:
    header = msgspec.structs.replace(
        recording.header, node=names.name("node", recording.header.node), anonymized=True
    )
    return Recording(header, tuple(_entries(recording.entries, names)))


def _entries(entries: Iterable[Entry], names: Names) -> Iterator[Entry]:
    replace = msgspec.structs.replace
    kinds = {kind.name: kind for kind in KINDS}
    for entry in entries:
        match entry:
            case Listed() | Upserted():
                yield replace(entry, object=_object(kinds[entry.kind], entry.object, names))
            case ListComplete():
                keys = (_key(kinds[entry.kind], key, names) for key in entry.unreadable)
                yield replace(entry, unreadable=tuple(sorted(keys)))
            case Deleted():
                yield replace(entry, key=_key(kinds[entry.kind], entry.key, names))
            case Rejected():
                key = None if entry.key is None else _key(kinds[entry.kind], entry.key, names)
                problem = Problem(f"{entry.kind} {key or '?'}", HIDDEN, HIDDEN, HIDDEN)
                yield replace(entry, key=key, problem=problem)
            case RecordedNode():
                servers = tuple((names.address(ip), port) for ip, port in entry.api_servers)
                own = None if entry.addresses is None else tuple(map(names.address, entry.addresses))
                yield RecordedNode(own, servers, entry.kernel)
            case RecordedSettings():
                yield RecordedSettings(tuple(_setting(each, names) for each in entry.documents))
            case AgentReport():
                continue
            case _:
                yield entry


def _key(kind: Kind, key: str, names: Names) -> str:
    what = _OF_KIND[kind]
    if not kind.namespaced:
        return names.name(what, key)
    namespace, _, name = key.partition("/")
    return f"{names.name('namespace', namespace)}/{names.name(what, name)}"


def _object(kind: Kind, raw: msgspec.Raw, names: Names) -> msgspec.Raw:
    plain = msgspec.json.decode(raw)
    metadata = plain["metadata"]
    metadata["name"] = names.name(_OF_KIND[kind], metadata["name"])
    if kind.namespaced:
        metadata["namespace"] = names.name("namespace", metadata.get("namespace", "default"))
    if kind.for_policies:
        return msgspec.Raw(msgspec.json.encode(replaced_part(plain, names)))
    return msgspec.Raw(
        msgspec.json.encode({key: _field(key, value, names, "") for key, value in plain.items()})
    )


def _field(name: str, value: Json, names: Names, above: str) -> Json:
    """The value of a field of an object; `above` is the field that holds it."""
    if name == "metadata":
        return value | {key: _field(key, each, names, name) for key, each in value.items() if key not in _OWN}
    if isinstance(value, dict):
        return {key: _field(key, each, names, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_field(name, each, names, above) for each in value]
    return _text(name, value, names, above) if isinstance(value, str) else value


_OWN = ("name", "namespace")


def _text(name: str, text: str, names: Names, above: str) -> str:
    if text == "" or (name in _TIMES and _TIME.fullmatch(text)):
        return text
    if name in _ADDRESSES or name in _CIDRS:
        return text if text == "None" else names.address(text)
    if name == "name":
        what = {"forZones": "zone", "forNodes": "node", "targetRef": "pod", "ports": "port"}[above]
        return names.name(what, text)
    if name in _NAMED:
        return names.name(_NAMED[name], text)
    match name:
        case "kubernetes.io/service-name":
            return names.name(_SERVICE, text)
        case "kproxy.io/weights":
            return names.weights(text)
        case "kproxy.io/scheduler" | "kube-router.io/service.scheduler":
            return _scheduler(text)
    return text if text in _WORDS else "unknown"


def _scheduler(text: str) -> str:
    try:
        parse_scheduler(text)
    except ValueError:
        return "unknown"
    return text


def _setting(value: Json, names: Names) -> Json:
    """A value of the settings: addresses, CIDRs and host:port are replaced, also in lists with commas."""
    if isinstance(value, dict):
        return {key: _setting(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_setting(each, names) for each in value]
    return ",".join(_part(each, names) for each in value.split(",")) if isinstance(value, str) else value


def _part(text: str, names: Names) -> str:
    bare = text.strip()
    for read in (parse_ip, parse_cidr):
        try:
            read(bare)
        except ValueError:
            continue
        return names.address(bare)
    try:
        host, port = split_host_port(bare)
        parse_ip(host)
    except ValueError:
        return text
    return join_host_port(names.address(host), port)
