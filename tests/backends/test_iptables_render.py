"""The rules as text: goldens checked by hand, a lint, and facts that are known of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core import hashes
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.iptables import names
from kproxy.backends.iptables.base_chains import JUMPS, SHARED
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import Layout, StandardLayout
from kproxy.backends.iptables.port_rules import probability
from kproxy.backends.iptables.render import render_service
from kproxy.backends.iptables.scalable import ScalableLayout
from kproxy.backends.iptables.text import render_text
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from kproxy.state.tables import ServiceInput
from tests.backends import reference_rules, strict
from tests.backends.iptables_node import divided
from tests.builders import endpoint, endpoint_slice, plans_of, port, service
from tests.builders import given as given_service
from tests.kernel.namespace import fresh_network
from tests.support.fake_xtables import FakeXtables

V4, V6 = Family.IPV4, Family.IPV6
GOLDENS = Path(__file__).parent / "goldens"
UPDATE = "KPROXY_UPDATE_GOLDENS"
PODS = LocalTraffic(cidr="10.1.0.0/16")


class Case(NamedTuple):
    """A small cluster and the settings it is rendered with."""

    config: IptablesConfig
    inputs: Sequence[ServiceInput]


HERE, ELSEWHERE = endpoint("10.180.0.1", node="node1"), endpoint("10.180.0.2", node="node2")
PLAIN = given_service(service(), endpoint_slice("10.180.0.1"))
EXPOSED: dict[str, Any] = {
    "type": "LoadBalancer",
    "externalIPs": ["203.0.113.5"],
    "ingress": ["198.51.100.1"],
    "ports": [port(nodePort=30080)],
}
BASE = IptablesConfig(V4, local_traffic=PODS)


def _with(**changes: Any) -> IptablesConfig:
    return msgspec.structs.replace(BASE, **changes)


def _local(*endpoints: Any, **fields: Any) -> ServiceInput:
    document = service(externalTrafficPolicy="Local", healthCheckNodePort=32000, **EXPOSED, **fields)
    return given_service(document, endpoint_slice(*endpoints))


CASES: dict[str, Case] = {
    "empty": Case(BASE, []),
    "clusterip": Case(
        BASE,
        [
            PLAIN,
            given_service(
                service(
                    "dns",
                    "10.96.0.10",
                    ports=[port(53, "dns", "UDP"), port(53, "dns-tcp"), port(9, "s", "SCTP")],
                ),
                endpoint_slice(
                    "10.180.0.3",
                    "10.180.0.4",
                    "10.180.0.5",
                    service="dns",
                    ports=[port(5353, "dns", "UDP"), port(5353, "dns-tcp"), port(9, "s", "SCTP")],
                ),
            ),
            given_service(
                service("unnamed", "10.96.0.11", ports=[port(80, None)]),
                endpoint_slice("10.180.0.6", service="unnamed", ports=[port(8080, None)]),
            ),
        ],
    ),
    "no-endpoints": Case(BASE, [given_service(service(**EXPOSED))]),
    "nodeport": Case(
        BASE,
        [given_service(service(type="NodePort", ports=[port(nodePort=30080)]), endpoint_slice("10.180.0.1"))],
    ),
    "external-ips": Case(
        BASE,
        [given_service(service(externalIPs=["203.0.113.5", "203.0.113.6"]), endpoint_slice("10.180.0.1"))],
    ),
    "loadbalancer-source-ranges": Case(
        BASE,
        [
            given_service(
                service(
                    **EXPOSED, loadBalancerSourceRanges=["203.0.113.0/24", "192.168.0.77/24", "10.9.9.9/32"]
                ),
                endpoint_slice("10.180.0.1"),
            )
        ],
    ),
    "affinity": Case(
        BASE,
        [
            given_service(
                service(
                    sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 900}}
                ),
                endpoint_slice("10.180.0.1", "10.180.0.2"),
            )
        ],
    ),
    "external-local": Case(BASE, [_local(HERE, ELSEWHERE)]),
    "external-local-none-here": Case(BASE, [_local(ELSEWHERE)]),
    "external-local-no-endpoints": Case(BASE, [_local()]),
    "internal-local": Case(
        BASE,
        [
            given_service(
                service(internalTrafficPolicy="Local", type="NodePort", ports=[port(nodePort=30080)]),
                endpoint_slice(HERE, ELSEWHERE),
            ),
            given_service(
                service("elsewhere", "10.96.0.2", internalTrafficPolicy="Local"),
                endpoint_slice(endpoint("10.180.0.2", node="node2"), service="elsewhere"),
            ),
        ],
    ),
    "both-local": Case(BASE, [_local(HERE, ELSEWHERE, internalTrafficPolicy="Local")]),
    "large-cluster": Case(
        _with(large_cluster_endpoints=1),
        [given_service(service(sessionAffinity="ClientIP", **EXPOSED), endpoint_slice(HERE, ELSEWHERE))],
    ),
    "masquerade-all": Case(_with(masquerade_all=True, masquerade_bit=9, random_fully=False), [PLAIN]),
    "detect-none": Case(_with(local_traffic=None), [PLAIN, _local(HERE, name="other", ip="10.96.0.2")]),
    "detect-bridge": Case(_with(local_traffic=LocalTraffic(interface="cbr0")), [_local(HERE)]),
    "detect-prefix": Case(_with(local_traffic=LocalTraffic(interface="veth+")), [_local(HERE)]),
    "nodeport-addresses": Case(
        _with(node_port_addresses=("127.0.0.1", "192.168.0.2")),
        [given_service(service(type="NodePort", ports=[port(nodePort=30080)]), endpoint_slice("10.180.0.1"))],
    ),
    "localhost-off": Case(
        _with(localhost_node_ports=False, count_localhost=True),
        [given_service(service(type="NodePort", ports=[port(nodePort=30080)]), endpoint_slice("10.180.0.1"))],
    ),
    "localhost-off-addresses": Case(
        _with(localhost_node_ports=False, node_port_addresses=("127.0.0.1", "192.168.0.2")), []
    ),
    "counters": Case(
        _with(count_invalid=True, count_localhost=True),
        [given_service(service(type="NodePort", ports=[port(nodePort=30080)]), endpoint_slice("10.180.0.1"))],
    ),
    "liberal-conntrack": Case(_with(drop_invalid=False, count_invalid=True), []),
    "ipv6": Case(
        IptablesConfig(V6, local_traffic=LocalTraffic(cidr="fd00:1::/48"), count_localhost=True),
        [
            given_service(
                service(
                    ip="fd00:96::1",
                    type="LoadBalancer",
                    externalIPs=["2001:db8::5"],
                    ingress=["2001:db8::9"],
                    loadBalancerSourceRanges=["2001:db8:1::/48", "fd00:168::/64"],
                    sessionAffinity="ClientIP",
                    ports=[port(nodePort=30080)],
                ),
                endpoint_slice("fd00:180::1", "fd00:180::2"),
            ),
            given_service(service("none", "fd00:96::2")),
        ],
    ),
    "ipv6-nodeport-addresses": Case(
        IptablesConfig(V6, node_port_addresses=("::1", "fd00:168::2")),
        [given_service(service(ip="fd00:96::1", type="NodePort", ports=[port(nodePort=30080)]))],
    ),
}


def _text(case: Case, layout: Callable[[IptablesConfig], Layout] = StandardLayout) -> str:
    plans = plans_of(case.inputs, case.config.family)
    assert [p.problems for p in plans] == [()] * len(plans)
    return render_text(plans, layout(case.config))


by_case = pytest.mark.parametrize("name", list(CASES))


@by_case
def test_golden(name: str) -> None:
    """Set the variable KPROXY_UPDATE_GOLDENS to write them anew, then read each changed line."""
    text = _text(CASES[name])
    path = GOLDENS / f"{name}.txt"
    if os.environ.get(UPDATE):
        path.write_text(text, encoding="ascii")
    assert path.read_text(encoding="ascii") == text


def test_no_golden_is_left_over() -> None:
    assert {p.stem for p in GOLDENS.glob("*.txt")} == set(CASES)


@by_case
def test_every_jump_leads_somewhere_and_every_chain_is_used(name: str) -> None:
    sections = re.findall(r"^\*(\w+)\n(.*?)^COMMIT\n", _text(CASES[name]), re.MULTILINE | re.DOTALL)
    assert [table for table, _ in sections] == ["mangle", "filter", "nat"]
    for table, body in sections:
        lines = body.splitlines()
        declared = [line[1:].split()[0] for line in lines if line.startswith(":")]
        assert declared == sorted(set(declared))
        assert all(len(chain) <= 28 for chain in declared)
        rules = [line for line in lines if not line.startswith(":")]
        assert len(rules) == len(set(rules))
        own_targets = {m[1] for line in rules if (m := re.search(r" -j (KUBE-\S+)$", line))}
        assert own_targets <= set(declared)
        unused = set(declared) - own_targets - {names.CANARY}
        assert unused <= ({names.KUBE_MARK_MASQ} if table == "nat" else set())
        filled = {line.split()[1] for line in rules if line.startswith("-A ")}
        own = {chain for chain in declared if chain.startswith(names.SERVICE_CHAIN_PREFIXES)}
        assert own <= filled


@by_case
def test_every_rule_of_a_service_has_a_known_form(name: str) -> None:
    case = CASES[name]
    for plan in plans_of(case.inputs, case.config.family):
        rules = render_service(plan, case.config)
        shared = [line for field in SHARED for line in getattr(rules.shared, field)]
        own = "".join(rules.chains.values()).splitlines(keepends=True)
        for line in [*shared, *own]:
            strict.check(line, case.config.family)


@pytest.mark.parametrize("variant", list(Variant))
@by_case
def test_it_loads_as_it_is(name: str, variant: Variant) -> None:
    fake = FakeXtables(CASES[name].config.family, variant)
    text = _text(CASES[name])
    fake.restore(text.encode())
    _compare_with_dump(text, fake.save().decode())


def test_the_scalable_layout_translates_in_the_service_s_own_chain() -> None:
    plans = plans_of(CASES["affinity"].inputs, Family.IPV4)
    layout = ScalableLayout(CASES["affinity"].config)
    (chains,) = [layout.render(plan, comments=False).chains for plan in plans]
    ends = [("KUBE-SEP-SXIVWICOYRO3J4NJ", "10.180.0.1:80"), ("KUBE-SEP-LXVODXWDISEETFEF", "10.180.0.2:80")]
    start, mask = "-A KUBE-SVC-XPGD46QRK7WJZT7O", "--mask 255.255.255.255 --rsource"
    share = ["-m statistic --mode random --probability 0.50000000000 ", ""]
    assert chains["KUBE-SVC-XPGD46QRK7WJZT7O"].splitlines() == [
        f"{start} ! -s 10.1.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ",
        *(
            f"{start} -p tcp -m recent --update --seconds 900 --reap --name {name} {mask} "
            f"-j DNAT --to-destination {to}"
            for name, to in ends
        ),
        *(
            f"{start} -p tcp {s}-m recent --set --name {name} {mask} -j DNAT --to-destination {to}"
            for s, (name, to) in zip(share, ends, strict=True)
        ),
    ]
    assert set(chains) == {"KUBE-SVC-XPGD46QRK7WJZT7O"}


@pytest.mark.parametrize("layout", [StandardLayout, divided])
@pytest.mark.parametrize("variant", list(Variant))
@fresh_network
def test_both_variants_load_it_and_print_it_unchanged(
    variant: Variant, layout: Callable[[IptablesConfig], Layout]
) -> None:
    """All cases in turn, without those whose counters need nfacct objects in the kernel."""
    for name, case in CASES.items():
        if case.config.count_invalid or (case.config.count_localhost and case.config.localhost):
            continue
        try:
            tools = find_tools(case.config.family, variant, probe=False)
        except XtablesUnavailable as error:
            pytest.skip(error.reason)
        xtables = SubprocessXtables(case.config.family, tools)
        for table, chains in _chains(xtables.save().decode()).items():
            flush = "".join(f"-F {c}\n" for c in chains) + "".join(f"-X {c}\n" for c in chains if "-" in c)
            xtables.restore(f"*{table}\n{flush}COMMIT\n".encode())
        text = _text(case, layout)
        xtables.restore(text.encode())
        _compare_with_dump(text, xtables.save().decode(), name)


def _chains(dump: str) -> dict[str, dict[str, list[str]]]:
    tables: dict[str, dict[str, list[str]]] = {}
    for line in dump.splitlines():
        if line.startswith("*"):
            current = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            current[line[1:].split()[0]] = []
        elif line.startswith("-A "):
            current[line.split()[1]].append(line)
    return tables


def _compare_with_dump(text: str, dump: str, name: str = "") -> None:
    """The dump has the built-in chains besides, and the insertions in reverse."""
    wanted = _chains(text)
    for jump in JUMPS:
        wanted[jump.table].setdefault(jump.chain, []).insert(0, jump.line.strip())
    found = {
        table: {c: rules for c, rules in chains.items() if rules or c in wanted[table]}
        for table, chains in _chains(dump).items()
    }
    assert found == wanted, name


def test_chain_names_are_kube_proxy_s() -> None:
    assert hashes.port_hash("ns1/svc1:p80", "tcp") == "XPGD46QRK7WJZT7O"
    assert names.endpoint_chain("ns1/svc1:p80", "tcp", "10.180.0.1:80") == "KUBE-SEP-SXIVWICOYRO3J4NJ"


@pytest.mark.parametrize("left", [2, 3, 4, 5, 6, 7, 10, 33, 100, 999, 1000, 5000])
def test_a_probability_is_printed_as_the_kernel_keeps_it(left: int) -> None:
    printed = probability(1, left)
    assert re.fullmatch(r"0\.[0-9]{11}", printed)
    assert round(float(printed) * 2**31) == round(float(f"{1 / left:.10f}") * 2**31)
    assert abs(float(printed) - 1 / left) < 1e-9


def test_known_probabilities() -> None:
    assert [probability(1, n) for n in (2, 3, 4)] == ["0.50000000000", "0.33333333349", "0.25000000000"]


@pytest.mark.parametrize(("count", "endpoints"), [(0, 0), (1, 0), (3, 0), (1, 1), (2, 5), (10, 3)])
def test_the_number_of_rules_of_cluster_ip_services(count: int, endpoints: int) -> None:
    """kube-proxy's own counts (number_generated_rules_test): filter 4, nat 5, and so on."""
    filters, nats = _count(count, endpoints)
    assert filters == 4 + (count if not endpoints else 0)
    assert nats == 5 + (count * (2 + 3 * endpoints) if endpoints else 0)


@pytest.mark.parametrize(("count", "endpoints"), [(1, 0), (3, 0), (1, 1), (2, 5)])
def test_the_number_of_rules_of_load_balancer_services(count: int, endpoints: int) -> None:
    filters, nats = _count(
        count,
        endpoints,
        type="LoadBalancer",
        loadBalancerSourceRanges=["1.2.3.4/28"],
    )
    assert filters == 4 + count * (1 if endpoints else 4)
    assert nats == 5 + (count * (10 + 3 * endpoints) if endpoints else 0)


def _count(count: int, endpoints: int, **fields: Any) -> tuple[int, int]:
    inputs = []
    for n in range(count):
        exposed: dict[str, Any] = {}
        if fields:
            exposed = {"externalIPs": [f"1.2.4.{n}"], "ingress": [f"1.2.3.{n}"]}
            exposed["ports"] = [port(nodePort=30000 + n)]
        pods = [f"10.{n}.0.{e}" for e in range(1, endpoints + 1)]
        inputs.append(
            given_service(
                service(f"svc{n}", f"10.96.0.{n}", **exposed, **fields),
                endpoint_slice(*pods, service=f"svc{n}"),
            )
        )
    rules = reference_rules.parse(render_text(plans_of(inputs), StandardLayout(_with(count_localhost=True))))
    totals = {"filter": 0, "nat": 0}
    for (table, _), lines in rules.items():
        totals[table] += len(lines)
    return totals["filter"], totals["nat"]


def test_the_order_of_plans_does_not_matter() -> None:
    case = CASES["clusterip"]
    plans = plans_of(case.inputs)
    assert render_text(plans, StandardLayout(BASE)) == render_text(reversed(plans), StandardLayout(BASE))
