"""Drawn services: the rules mean what a second statement of kube-proxy's rules means."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.iptables.base_chains import SHARED
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.render import render_service
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan
from kproxy.plan.topology import Candidate, select
from tests.backends import reference_rules, strict
from tests.builders import NODE
from tests.suite.matrix import examples

V4, V6 = Family.IPV4, Family.IPV6
_ADDRESSES = {
    V4: [f"10.180.0.{n}" for n in range(1, 6)],
    V6: [f"fd00:180::{n}" for n in range(1, 6)],
}
_RANGES = {V4: ["203.0.113.0/24", "10.9.9.9/32"], V6: ["2001:db8:1::/48", "2001:db8::7/128"]}


@st.composite
def _ports(draw: st.DrawFn, family: Family, name: str) -> PortPlan:
    def some(prefix: str) -> tuple[str, ...]:
        text = "203.0.113.{}" if family is V4 else "2001:db8::{}"
        return tuple(text.format(prefix + str(n)) for n in range(draw(st.integers(0, 2))))

    known = [
        Candidate(
            EndpointPlan(ip, 8080, draw(st.booleans())),
            *draw(st.sampled_from([(True, True, False), (False, True, True), (False, False, False)])),
            draw(st.sampled_from([frozenset({"zone-a"}), frozenset({"zone-b"}), frozenset()])),
        )
        for ip in sorted(draw(st.sets(st.sampled_from(_ADDRESSES[family]), max_size=4)))
    ]
    plan = PortPlan(
        name=name,
        protocol=draw(st.sampled_from(Protocol)),
        cluster_ip="10.96.0.1" if family is V4 else "fd00:96::1",
        port=draw(st.integers(1, 65535)),
        node_port=draw(st.sampled_from([0, 30080])),
        external_ips=some("1"),
        load_balancer_ips=some("2"),
        source_ranges=draw(st.none() | st.lists(st.sampled_from(_RANGES[family]), unique=True).map(tuple)),
        node_in_source_ranges=draw(st.booleans()),
        health_check_node_port=draw(st.sampled_from([0, 32000])),
        internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([None, 1, 10800])),
        endpoints=len(known),
    )
    usable = select(known, NODE, uses_cluster=plan.uses_cluster, uses_local=plan.uses_local)
    return msgspec.structs.replace(
        plan,
        cluster=usable.cluster,
        local=usable.local,
        reachable=usable.reachable,
        has_endpoints=usable.has_endpoints,
    )


@st.composite
def _rendered(draw: st.DrawFn) -> tuple[ServicePlan, IptablesConfig]:
    family = draw(st.sampled_from(Family))
    sources = [None, LocalTraffic(cidr="10.1.0.0/16" if family is V4 else "fd00:1::/48")]
    sources += [LocalTraffic(interface="cbr0"), LocalTraffic(interface="veth+")]
    config = IptablesConfig(
        family,
        masquerade_all=draw(st.booleans()),
        local_traffic=draw(st.sampled_from(sources)),
        localhost_node_ports=draw(st.booleans()),
        count_localhost=draw(st.booleans()),
    )
    named = draw(st.sampled_from([["ns1/svc1"], ["ns1/svc1:a", "ns1/svc1:b"]]))
    return ServicePlan("ns1/svc1", family, "", tuple(draw(_ports(family, n)) for n in named)), config


@given(_rendered(), st.booleans())
@settings(max_examples=examples(400), deadline=None)
def test_rules_mean_what_kube_proxy_s_mean(drawn: tuple[ServicePlan, IptablesConfig], large: bool) -> None:
    plan, config = drawn
    rendered = render_service(plan, config, comments=not large)
    ours: reference_rules.Rules = {
        ("nat", chain): text.splitlines() for chain, text in rendered.chains.items()
    }
    for field, chain_id in SHARED.items():
        ours[chain_id] = [line.strip() for line in getattr(rendered.shared, field)]
    theirs = reference_rules.rules_of(plan, config, large=large)
    assert reference_rules.canonical(ours) == reference_rules.canonical(theirs)
    for line in "".join(rendered.chains.values()).splitlines(keepends=True):
        strict.check(line, config.family)
