"""NetworkPolicies and Pods as the server treats them: types, defaults, and what it refuses.

From pkg/apis/networking (defaults.go, validation.go) and pkg/apis/core (conversion.go) of Kubernetes 1.36.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from kproxy_lab.apiserver.errors import JSON, Cause

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST_PORT_NAME = 15
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_DIRECTIONS = {"ingress": ("Ingress", "from"), "egress": ("Egress", "to")}


class _Requirement(msgspec.Struct):
    key: str
    operator: str
    values: list[str] | None = None


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Requirement] | None = None


class _Block(msgspec.Struct):
    cidr: str = ""
    except_: list[str] | None = msgspec.field(name="except", default=None)


class _Peer(msgspec.Struct, rename="camel"):
    pod_selector: _Selector | None = None
    namespace_selector: _Selector | None = None
    ip_block: _Block | None = msgspec.field(name="ipBlock", default=None)


class _Port(msgspec.Struct, rename="camel"):
    port: int | str | None = None
    end_port: int | None = None
    protocol: str | None = None


class _Rule(msgspec.Struct):
    from_: list[_Peer] | None = msgspec.field(name="from", default=None)
    to: list[_Peer] | None = None
    ports: list[_Port] | None = None


class PolicySpec(msgspec.Struct, rename="camel"):
    """The types of spec of a NetworkPolicy."""

    pod_selector: _Selector | None = None
    ingress: list[_Rule] | None = None
    egress: list[_Rule] | None = None
    policy_types: list[str] | None = None


class _Container(msgspec.Struct):
    ports: list[dict[str, Any]] | None = None


class PodSpec(msgspec.Struct, rename="camel"):
    """The types of spec of a Pod, as far as they matter here."""

    node_name: str | None = None
    host_network: bool | None = None
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None


def default_policy(obj: JSON) -> None:
    """Set the protocol of ports and policyTypes, in place; parts that are changed are copied before."""
    spec = obj["spec"] = dict(obj.get("spec") or {})
    spec.setdefault("podSelector", {})
    for field in _DIRECTIONS:
        if spec.get(field):
            spec[field] = [_default_rule(rule) for rule in spec[field]]
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def _default_rule(rule: JSON) -> JSON:
    if not rule.get("ports"):
        return rule
    return rule | {"ports": [port | {"protocol": port.get("protocol") or "TCP"} for port in rule["ports"]]}


def default_pod(obj: JSON) -> None:
    """Set the protocol of ports, the phase and podIPs, of which podIP is the first, in place."""
    spec = obj["spec"] = dict(obj.get("spec") or {})
    for field in ("containers", "initContainers"):
        if spec.get(field):
            spec[field] = [_default_rule(container) for container in spec[field]]
    status = obj["status"] = dict(obj.get("status") or {})
    status.setdefault("phase", "Pending")
    first, every = status.get("podIP"), status.get("podIPs") or []
    if first and (not every or every[0].get("ip") != first):
        status["podIPs"] = [{"ip": first}]
    elif every and not first:
        status["podIP"] = every[0].get("ip")


def policy_causes(spec: JSON) -> Iterator[Cause]:
    """What is refused of a typed and defaulted spec."""
    yield from _selector("spec.podSelector", spec["podSelector"])
    for field, (_, peers) in _DIRECTIONS.items():
        for at, rule in enumerate(spec.get(field) or ()):
            where = f"spec.{field}[{at}]"
            for number, port in enumerate(rule.get("ports") or ()):
                yield from _port(f"{where}.ports[{number}]", port)
            for number, peer in enumerate(rule.get(peers) or ()):
                yield from _peer(f"{where}.{peers}[{number}]", peer)
    known = tuple(direction for direction, _ in _DIRECTIONS.values())
    for at, each in enumerate(spec["policyTypes"]):
        if each not in known:
            yield _unsupported(f"spec.policyTypes[{at}]", each, known)


def _port(where: str, port: JSON) -> Iterator[Cause]:
    number, last = port.get("port"), port.get("endPort")
    if port["protocol"] not in _PROTOCOLS:
        yield _unsupported(f"{where}.protocol", port["protocol"], _PROTOCOLS)
    if isinstance(number, int) and not 0 < number < 65_536:
        yield _bad(f"{where}.port", number, "must be between 1 and 65535, inclusive")
    if isinstance(number, str) and not (len(number) <= _LONGEST_PORT_NAME and _PORT_NAME.fullmatch(number)):
        yield _bad(f"{where}.port", number, "not the name of a port")
    if last is None:
        return
    if not isinstance(number, int):
        yield _bad(f"{where}.endPort", last, "may not be specified when `port` is not a number")
    elif not number <= last < 65_536:
        yield _bad(f"{where}.endPort", last, "must be greater than or equal to `port`, and at most 65535")


def _peer(where: str, peer: JSON) -> Iterator[Cause]:
    block = peer.get("ipBlock")
    selectors = [name for name in ("podSelector", "namespaceSelector") if peer.get(name) is not None]
    if block is None and not selectors:
        yield Cause(where, "FieldValueRequired", "Required value: must specify a peer")
    if block is not None and selectors:
        yield Cause(
            where,
            "FieldValueForbidden",
            "Forbidden: may not be specified when both ipBlock and another peer is specified",
        )
    for name in selectors:
        yield from _selector(f"{where}.{name}", peer[name])
    if block is not None:
        yield from _block(f"{where}.ipBlock", block)


def _block(where: str, block: JSON) -> Iterator[Cause]:
    whole = _network(block.get("cidr", ""))
    if whole is None:
        yield _bad(f"{where}.cidr", block.get("cidr", ""), "must be a valid CIDR value")
    for at, text in enumerate(block.get("except") or ()):
        part = _network(text)
        if part is None:
            yield _bad(f"{where}.except[{at}]", text, "must be a valid CIDR value")
        elif whole is not None and not (
            part.version == whole.version
            and part.prefixlen > whole.prefixlen
            and part.network_address in whole
        ):
            yield _bad(f"{where}.except[{at}]", text, "must be a strict subset of `cidr`")


def _selector(where: str, selector: JSON) -> Iterator[Cause]:
    for at, each in enumerate(selector.get("matchExpressions") or ()):
        of = f"{where}.matchExpressions[{at}]"
        operator, values = each["operator"], each.get("values") or ()
        if operator not in _OPERATORS:
            yield _unsupported(f"{of}.operator", operator, _OPERATORS)
        elif operator in ("In", "NotIn") and not values:
            yield Cause(f"{of}.values", "FieldValueRequired", "Required value: must be specified")
        elif operator in ("Exists", "DoesNotExist") and values:
            yield Cause(f"{of}.values", "FieldValueForbidden", "Forbidden: may not be specified")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _unsupported(where: str, value: object, known: tuple[str, ...]) -> Cause:
    listed = ", ".join(f'"{each}"' for each in known)
    return Cause(where, "FieldValueNotSupported", f"Unsupported value: {value!r}: supported: {listed}")


def _bad(where: str, value: object, why: str) -> Cause:
    return Cause(where, "FieldValueInvalid", f"Invalid value: {value!r}: {why}")
