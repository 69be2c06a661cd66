"""Ten thousand broken objects: no crash, no injected rule, and nothing lost for the others."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.iptables.base_chains import SHARED
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.render import render_service
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.problems import ObjectRejected
from kproxy.state.tables import ServiceInput, Tables
from kproxy.state.wire import EndpointSlice, Service
from tests import builders
from tests.backends import strict
from tests.builders import NODE, endpoint, endpoint_slice, port, raw, service

INJECTION = "\n-A KUBE-SERVICES -j DROP\nCOMMIT\n*filter\n:INPUT DROP [0:0]"
TEXTS: list[Any] = [
    "",
    " ",
    "a",
    "None",
    "ClientIP",
    "Local",
    "Cluster",
    "UDP",
    "tcp",
    "SCTP",
    "NodePort",
    "ExternalName",
    "10.0.0.1\n",
    "10.0.0.1" + INJECTION,
    "10.0.0.1/32" + INJECTION,
    "10.0.0.1 -j ACCEPT",
    "! 10.0.0.1",
    "-j",
    "--dport",
    '" -j DROP',
    "\\",
    "'",
    "`id`",
    "$(id)",
    "\0",
    "\u2028",
    "\x85",
    "\ud83d\ude00",
    "ä",
    "x" * 300,
    "10.0.0.7",
    "10.0.0.7/8",
    "0.0.0.0/0",
    "::/0",
    "0.0.0.0",
    "255.255.255.255",
    "::",
    "fd00::7",
    "fd00::7/64",
    "::ffff:10.0.0.7",
    "010.0.0.7",
    "1e3",
    "10.0.0.7,10.0.0.8",
    "fe80::1%eth0",
    "ns1/other",
    "p80",
    "zz.top",
    "../..",
]
NUMBERS: list[Any] = [0, -1, 1, 80, 65535, 65536, 2**31 - 1, 2**31, -(2**63), 10**30, 1.5, 80.0, 1e308]
VALUES: list[Any] = [*TEXTS, *NUMBERS, None, True, False, [], {}, [None], [[]], {"a": 1}, ["10.0.0.9"], [1]]


def _documents() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    ports = [port(80, "p80", nodePort=30080), port(53, "dns", "UDP", nodePort=30053)]
    owner = service(
        ip=["10.96.0.1", "fd00:96::1"],
        ports=ports,
        type="LoadBalancer",
        externalIPs=["203.0.113.5", "2001:db8::5"],
        ingress=["203.0.113.9", {"ip": "2001:db8::9", "ipMode": "VIP"}],
        loadBalancerSourceRanges=["198.51.100.0/24", "2001:db8:1::/48"],
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Cluster",
        healthCheckNodePort=32000,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    endpoints = [
        endpoint("10.1.0.1", node="node1", zones=["zone-a"], nodes=["node1"], ready=True),
        endpoint("10.1.0.2", node="node2", zones=["zone-b"], ready=False, serving=True, terminating=True),
    ]
    four = endpoint_slice(*endpoints, ports=ports, name="svc1-4")
    six = endpoint_slice("fd00:1::1", "fd00:1::2", ports=ports, name="svc1-6")
    return owner, four, six


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))


def _mutate(document: dict[str, Any], rng: random.Random) -> None:
    path = rng.choice(list(_paths(document)))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    action = rng.random()
    if action < 0.1:
        del place[path[-1]]
    elif action < 0.2 and isinstance(place, list):
        place.append(copy.deepcopy(rng.choice(place)))
    elif action < 0.3 and isinstance(place[path[-1]], str):
        text = place[path[-1]]
        at = rng.randrange(len(text) + 1)
        place[path[-1]] = text[:at] + rng.choice(['"', "\n", " ", "\0", "-j DROP", "/", ":", "x"]) + text[at:]
    elif action < 0.4 and isinstance(place, dict):
        place[rng.choice([*TEXTS[:8], "ports", "clusterIP", "addresses"])] = rng.choice(VALUES)
    else:
        place[path[-1]] = copy.deepcopy(rng.choice(VALUES))


def _lines(plan: ServicePlan, config: IptablesConfig) -> list[str]:
    rules = render_service(plan, config)
    shared = [line for field in SHARED for line in getattr(rules.shared, field)]
    return shared + "".join(rules.chains.values()).splitlines(keepends=True)


def _decoded(kind: Kind, document: dict[str, Any]) -> Service | EndpointSlice | None:
    try:
        decoded = decode(kind, raw(document))
    except ObjectRejected as error:
        _is_a_report(str(error))
        return None
    assert isinstance(decoded, (Service, EndpointSlice))
    return decoded


def _is_a_report(text: str) -> None:
    assert text.isprintable(), text
    name, _, rest = text.partition(": ")
    assert name.split()[0] in {"Service", "EndpointSlice"}
    assert "=" in rest


CONFIGS = [
    IptablesConfig(Family.IPV4, local_traffic=LocalTraffic(cidr="10.1.0.0/16"), count_localhost=True),
    IptablesConfig(Family.IPV6, local_traffic=LocalTraffic(cidr="fd00:1::/48")),
]


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_one_object_cost_no_other_service_anything(seed: int) -> None:
    rng = random.Random(seed)
    other = builders.given(
        service("other", ["10.96.7.7", "fd00:96::7:7"]), endpoint_slice("10.1.7.7", service="other")
    )
    seen: set[tuple[Family, str]] = set()
    expected = {}
    for config in CONFIGS:
        (plan,) = builders.plans_of([other], config.family)
        expected[config.family] = _lines(plan, config)
    rendered = 0
    for _ in range(2500):
        owner, *pieces = _documents()
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            _mutate(rng.choice([owner, owner, *pieces]), rng)
        tables = Tables()
        for kind, document in [(Kind.SERVICE, owner), *((Kind.ENDPOINT_SLICE, p) for p in pieces)]:
            decoded = _decoded(kind, document)
            if decoded is not None:
                tables.upsert(decoded)
        for config in CONFIGS:
            planner = Planner(config.family)
            plans = planner.update([other, *tables.dirty()], NODE)
            for plan in plans.values():
                lines = _lines(plan, config)
                if plan.key == "ns1/other":
                    assert lines == expected[config.family]
                    continue
                rendered += bool(lines)
                for problem in plan.problems:
                    _is_a_report(str(problem))
                for line in lines:
                    if (config.family, line) not in seen:
                        strict.check(line, config.family)
                        seen.add((config.family, line))
    assert rendered > 1000


def test_the_grammar_is_strict() -> None:
    """The check above is worth something only if it refuses what an injection would look like."""
    good = _lines(builders.plan_of(*_documents()[:2]), CONFIGS[0])
    assert len(good) > 15
    for line in good:
        strict.check(line, Family.IPV4)
        for bad in (
            line[:-1] + " -j ACCEPT\n",
            line[:-1] + "\n-A X -j DROP\n",
            line.replace("ns1/svc1:", 'ns1/svc1" -j DROP:'),
            line.replace("-p tcp", "-p tcp --syn").replace("-p udp", "-p udp -f").replace("-A ", "-I "),
            line.replace("/32", "/0").replace(":80", ":808080").replace("--dport 3", "--dport 99999"),
        ):
            if bad != line:
                with pytest.raises((AssertionError, ValueError)):
                    strict.check(bad, Family.IPV4)


def test_a_service_without_slices_or_object() -> None:
    for config in CONFIGS:
        plans = Planner(config.family).update([ServiceInput("a\nb/c", 1, None, ())], NODE)
        assert _lines(plans["a\nb/c"], config) == []
