"""Services as elements and chains: goldens of a line per object, shares, and what `kproxy render` prints."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.backends.core.shares import FEWEST_SLOTS, MAX_SLOTS, SERVICE_SLOTS, slots, slots_of_port
from kproxy.backends.nftables import names
from kproxy.backends.nftables.chains import base_chains, fixed_chains
from kproxy.backends.nftables.render import canonical, render_service
from kproxy.cli.main import main
from tests.backends.nftables_node import CONFIG, with_config
from tests.builders import endpoint, endpoint_slice, plan_of, port, service
from tests.kernel.namespace import fresh_network
from tests.kernel.nft_oracle import listing, read_chains, read_containers, read_elements, write

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
ONE_NODE = with_config(node_addresses=("192.168.0.2",))
HERE, THERE = endpoint("10.1.0.1", node="node1"), endpoint("10.1.0.2", node="node2")

ASKED = "ip daddr . meta l4proto . th dport"
DNAT = f"meta l4proto {{ 6, 17, 132 }} dnat ip to {ASKED}"
MARK = "meta mark set meta mark | 0x4000"
TO_ONE = f"all-1 | {DNAT} map @endpoint-0"
TO_TWO = (
    f"all-2-0 | {DNAT} . numgen random mod 2 map @endpoints-2-0",
    f"all-2-0 | {DNAT} map @endpoint-0",
)
CLUSTER_IP = "cluster-ips { 10.96.0.1 }"
FIREWALL = "firewall-TSIDNUUWGIUOLYR3"
TO_ADMITTED = (
    f"{FIREWALL} | ip saddr @ranges-TSIDNUUWGIUOLYR3 {ASKED} vmap @admitted",
    f"{FIREWALL} | drop",
)
HAIRPIN = "hairpin { 10.1.0.1 . 10.1.0.1 . 6 . 8080 }"


def lines(document: dict[str, Any], *endpoints: Any, config: Any = ONE_NODE) -> list[str]:
    """Every object of a service, in order: elements, then each chain's rules."""
    backing = [endpoint_slice(*endpoints, ports=[port(8080)])] if endpoints else []
    found = render_service(plan_of(document, *backing), config)
    shown = [f"{e.container} {{ {e.key}{f' : {e.value}' if e.value else ''} }}" for e in found.elements]
    return shown + [f"{name} | {rule}" for name, rules in found.chains.items() for rule in rules]


@pytest.mark.parametrize(
    ("document", "endpoints", "expected"),
    [
        pytest.param(
            service(),
            [THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-1 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.2 . 8080 }",
                TO_ONE,
                f"cluster-all-1 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-1 | goto all-1",
            ],
            id="one endpoint elsewhere",
        ),
        pytest.param(
            service(),
            [],
            [CLUSTER_IP, "refusals { 10.96.0.1 . 6 . 80 : goto refuse }"],
            id="no endpoint",
        ),
        pytest.param(
            service(internalTrafficPolicy="Local"),
            [THERE],
            [CLUSTER_IP, "refusals { 10.96.0.1 . 6 . 80 : drop }"],
            id="internal Local without a local endpoint",
        ),
        pytest.param(
            service(internalTrafficPolicy="Local"),
            [HERE, THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-1 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.1 . 8080 }",
                HAIRPIN,
                TO_ONE,
                f"cluster-all-1 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-1 | goto all-1",
            ],
            id="internal Local",
        ),
        pytest.param(
            service(type="NodePort", ports=[port(nodePort=30001)]),
            [HERE, THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-2-0 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.1 . 8080 }",
                "endpoints-2-0 { 10.96.0.1 . 6 . 80 . 1 : 10.1.0.2 . 8080 }",
                "endpoint-0 { 192.168.0.2 . 6 . 30001 : 10.1.0.1 . 8080 }",
                "endpoints-2-0 { 192.168.0.2 . 6 . 30001 . 1 : 10.1.0.2 . 8080 }",
                "services { 192.168.0.2 . 6 . 30001 : goto external-all-2-0 }",
                HAIRPIN,
                *TO_TWO,
                f"cluster-all-2-0 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-2-0 | goto all-2-0",
                f"external-all-2-0 | {MARK}",
                "external-all-2-0 | goto all-2-0",
            ],
            id="node port",
        ),
        pytest.param(
            service(
                type="LoadBalancer",
                ingress=["203.0.113.7"],
                externalTrafficPolicy="Local",
                loadBalancerSourceRanges=["198.18.1.0/24", "198.18.0.0/15", "192.168.0.2/32"],
            ),
            [HERE, THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-2-0 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.1 . 8080 }",
                "endpoints-2-0 { 10.96.0.1 . 6 . 80 . 1 : 10.1.0.2 . 8080 }",
                "endpoint-0 { 203.0.113.7 . 6 . 80 : 10.1.0.1 . 8080 }",
                "endpoints-2-0 { 203.0.113.7 . 6 . 80 . 1 : 10.1.0.2 . 8080 }",
                "local-endpoint-0 { 203.0.113.7 . 6 . 80 : 10.1.0.1 . 8080 }",
                "services { 203.0.113.7 . 6 . 80 : goto " + FIREWALL + " }",
                "admitted { 203.0.113.7 . 6 . 80 : goto local-all-2-0-here-1 }",
                HAIRPIN,
                "ranges-TSIDNUUWGIUOLYR3 { 192.168.0.2 }",
                "ranges-TSIDNUUWGIUOLYR3 { 198.18.0.0/15 }",
                "ranges-TSIDNUUWGIUOLYR3 { 203.0.113.7 }",
                *TO_TWO,
                f"cluster-all-2-0 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-2-0 | goto all-2-0",
                f"here-1 | {DNAT} map @local-endpoint-0",
                "local-all-2-0-here-1 | ip saddr 10.1.0.0/16 goto all-2-0",
                f"local-all-2-0-here-1 | fib saddr type local {MARK}",
                "local-all-2-0-here-1 | fib saddr type local goto all-2-0",
                "local-all-2-0-here-1 | goto here-1",
                *TO_ADMITTED,
            ],
            id="restricted load balancer with the Local policy",
        ),
        pytest.param(
            service(
                type="LoadBalancer",
                externalIPs=["203.0.113.7"],
                ingress=["203.0.113.7"],
                loadBalancerSourceRanges=["198.18.0.0/15"],
            ),
            [THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-1 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.2 . 8080 }",
                "endpoint-0 { 203.0.113.7 . 6 . 80 : 10.1.0.2 . 8080 }",
                "services { 203.0.113.7 . 6 . 80 : goto " + FIREWALL + " }",
                "admitted { 203.0.113.7 . 6 . 80 : goto external-all-1 }",
                "ranges-TSIDNUUWGIUOLYR3 { 198.18.0.0/15 }",
                TO_ONE,
                f"cluster-all-1 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-1 | goto all-1",
                f"external-all-1 | {MARK}",
                "external-all-1 | goto all-1",
                *TO_ADMITTED,
            ],
            id="a restricted load balancer's address that is an external one too",
        ),
        pytest.param(
            service(
                type="LoadBalancer",
                ingress=["10.96.0.1"],
                loadBalancerSourceRanges=["198.18.0.0/15"],
            ),
            [THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto " + FIREWALL + " }",
                "admitted { 10.96.0.1 . 6 . 80 : goto cluster-all-1 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.2 . 8080 }",
                "ranges-TSIDNUUWGIUOLYR3 { 198.18.0.0/15 }",
                TO_ONE,
                f"cluster-all-1 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-1 | goto all-1",
                f"external-all-1 | {MARK}",
                "external-all-1 | goto all-1",
                *TO_ADMITTED,
            ],
            id="a restricted load balancer's address that is the cluster IP too",
        ),
        pytest.param(
            service(externalIPs=["203.0.113.7"], externalTrafficPolicy="Local"),
            [THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-1 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.2 . 8080 }",
                "endpoint-0 { 203.0.113.7 . 6 . 80 : 10.1.0.2 . 8080 }",
                "services { 203.0.113.7 . 6 . 80 : goto local-all-1-none }",
                "refusals { 203.0.113.7 . 6 . 80 : drop }",
                TO_ONE,
                f"cluster-all-1 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-1 | goto all-1",
                "local-all-1-none | ip saddr 10.1.0.0/16 goto all-1",
                f"local-all-1-none | fib saddr type local {MARK}",
                "local-all-1-none | fib saddr type local goto all-1",
            ],
            id="external Local without a local endpoint",
        ),
        pytest.param(
            service(annotations={"kproxy.io/weights": '{"node:node2": 4, "*": 2}'}),
            [HERE, THERE],
            [
                CLUSTER_IP,
                "services { 10.96.0.1 . 6 . 80 : goto cluster-all-3-0 }",
                "endpoint-0 { 10.96.0.1 . 6 . 80 : 10.1.0.1 . 8080 }",
                "endpoints-3-0 { 10.96.0.1 . 6 . 80 . 1 : 10.1.0.2 . 8080 }",
                "endpoints-3-0 { 10.96.0.1 . 6 . 80 . 2 : 10.1.0.2 . 8080 }",
                HAIRPIN,
                f"all-3-0 | {DNAT} . numgen random mod 3 map @endpoints-3-0",
                f"all-3-0 | {DNAT} map @endpoint-0",
                f"cluster-all-3-0 | ip saddr != 10.1.0.0/16 {MARK}",
                "cluster-all-3-0 | goto all-3-0",
            ],
            id="weights",
        ),
    ],
)
def test_a_service_is_its_elements(document: Any, endpoints: list[Any], expected: list[str]) -> None:
    assert lines(document, *endpoints) == expected


def test_affinity_has_a_chain_that_remembers() -> None:
    resting = endpoint("10.1.0.3", node="node2", ready=False, serving=False)
    found = lines(service(sessionAffinity="ClientIP"), HERE, THERE, resting)
    hashed = "XPGD46QRK7WJZT7O"  # as in the iptables mode's KUBE-SVC- chain
    chain, clients = f"all-{hashed}", f"@affinity-{hashed}"
    first, second, third = "849589998", "1838941021", "221053072"

    def remember(number: str, ip: str) -> str:
        key = f"ip saddr . numgen inc mod 1 offset {number}"
        return f"update {clients} {{ {key} timeout 10800s }} meta l4proto 6 dnat ip to {ip}:8080"

    both = "0 : 10.1.0.1 . 8080, 1 : 10.1.0.2 . 8080"
    assert [line for line in found if chain in line] == [
        f"services {{ 10.96.0.1 . 6 . 80 : goto cluster-{chain} }}",
        f"{chain} | delete {clients} {{ ip saddr . numgen inc mod 1 offset {third} }}",
        f"{chain} | ip saddr . numgen inc mod 1 offset {first} {clients} {remember(first, '10.1.0.1')}",
        f"{chain} | ip saddr . numgen inc mod 1 offset {second} {clients} {remember(second, '10.1.0.2')}",
        f"{chain} | numgen random mod 2 < 1 {remember(first, '10.1.0.1')}",
        f"{chain} | {remember(second, '10.1.0.2')}",
        f"{chain} | meta l4proto 6 dnat ip to numgen random mod 2 map {{ {both} }}",
        f"cluster-{chain} | ip saddr != 10.1.0.0/16 {MARK}",
        f"cluster-{chain} | goto {chain}",
    ]


def test_a_service_made_anew_under_its_name_remembers_no_clients() -> None:
    def remembered(created: str) -> set[str]:
        found = lines(service(sessionAffinity="ClientIP", created=created), HERE, THERE)
        return set(
            re.findall(
                r"update @affinity-XPGD46QRK7WJZT7O \{ ip saddr \. numgen inc mod 1 offset (\d+)",
                "\n".join(found),
            )
        )

    first, again = remembered("2026-01-01T00:00:00Z"), remembered("2026-01-01T00:00:01Z")
    assert len(first) == len(again) == 2
    assert not first & again
    assert remembered("2026-01-01T00:00:00Z") == first


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"masquerade_all": True, "masquerade_bit": 0}, ["meta mark set meta mark | 0x1", "goto all-1"]),
        ({"local_traffic": None}, ["goto all-1"]),
        (
            {"local_traffic": LocalTraffic(interface="cbr0")},
            [f'iifname != "cbr0" {MARK}', "goto all-1"],
        ),
    ],
)
def test_who_is_masqueraded_at_a_cluster_ip(settings: dict[str, Any], expected: list[str]) -> None:
    found = lines(service(), THERE, config=with_config(**settings))
    assert [line for line in found if line.startswith("cluster-all-1 |")] == [
        f"cluster-all-1 | {rule}" for rule in expected
    ]


def test_what_no_service_has_is_refused_or_dropped_as_set() -> None:
    closed = base_chains(with_config(service_cidrs=("10.96.0.0/16",)))
    refusals = f"ct state new {ASKED} vmap @refusals"
    assert closed["filter-forward"].rules == (
        refusals,
        "ct state new ip daddr @cluster-ips goto refuse",
        "ct state new ip daddr { 10.96.0.0/16 } drop",
    )
    assert closed["filter-input"].rules == (refusals,)
    assert base_chains(with_config(reject_unallocated=False))["filter-output"].rules == (refusals,)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40).filter(any))
def test_shares_follow_weights(weights: list[int]) -> None:
    counts = slots(weights)
    total, heaviest = sum(counts), max(weights)
    assert total <= MAX_SLOTS + len(weights)
    for count, weight in zip(counts, weights, strict=True):
        assert bool(count) == bool(weight)
        wanted = weight / sum(weights)
        assert abs(count / total - wanted) <= (len(weights) + 2) / MAX_SLOTS
    assert counts[weights.index(heaviest)] == max(counts)


@given(st.integers(1, 20_000), st.lists(st.integers(0, 65535), min_size=1, max_size=3).filter(any))
def test_all_ports_of_a_service_share_a_number_of_slots(ports: int, weights: list[int]) -> None:
    counts = slots(weights, slots_of_port(ports))
    assert ports * sum(counts) <= max(SERVICE_SLOTS, ports * FEWEST_SLOTS) + ports * len(weights)
    assert [bool(count) for count in counts] == [bool(weight) for weight in weights]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_small_weights_have_exact_shares(weights: list[int]) -> None:
    counts = slots(weights)
    assert all(a * sum(weights) == b * sum(counts) for a, b in zip(counts, weights, strict=True))


@given(st.integers(0, 2**128 - 1) | st.integers(0, 2**40))
def test_addresses_are_printed_as_nft_lists_them(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    printed = canonical(address.compressed)
    assert ipaddress.IPv6Address(printed) == address
    assert canonical(printed) == printed


@pytest.mark.parametrize("family", list(Family))
def test_what_render_prints_is_what_nft_takes_and_lists(family: Family) -> None:
    _through_the_kernel(family)


@fresh_network
def _through_the_kernel(family: Family) -> None:
    flags = ["--manifests", str(EXAMPLES), "--node", "node-a", "--proxy-mode", "nftables"]
    flags += ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56", "--ip-family", family.value[-1]]
    result = CliRunner().invoke(main, ["render", *flags])
    assert result.exit_code == 0, result.output
    printed = result.stdout
    write(printed)
    table = f"{'ip6' if family is Family.IPV6 else 'ip'} kproxy"
    listed = listing(family)
    wanted = [line for line in printed.splitlines() if line.startswith("add element ")]
    found = [
        f"add element {table} {container} {{ {key}{f' : {value}' if value else ''} }}"
        for container, elements in read_elements(listed).items()
        for key, value in elements.items()
    ]
    assert sorted(found) == sorted(wanted)
    config = with_config(family=family)
    assert set(names.declarations(family)) <= read_containers(listed)
    assert {*fixed_chains(), *base_chains(config)} <= set(read_chains(listed))


def test_a_service_cidr_that_is_none_is_named() -> None:
    flags = ["--manifests", str(EXAMPLES), "--proxy-mode", "nftables", "--service-cidr", "10.96.0.0"]
    result = CliRunner().invoke(main, ["render", *flags])
    assert result.exit_code == 1
    assert '--service-cidr[0]: "10.96.0.0" is not a CIDR' in result.output


def test_service_cidrs_are_read_from_manifests_and_a_cidr_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "cidr.yaml").write_text(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: a}\n"
        "spec: {cidrs: [10.96.0.0/16, nonsense]}\n"
    )
    flags = ["--manifests", str(tmp_path), "--cluster-cidr", "10.1.0.0/16", "--proxy-mode"]
    result = CliRunner().invoke(main, ["render", *flags, "nftables"])
    assert "ip daddr { 10.96.0.0/16 } drop" in result.output
    assert 'ServiceCIDR a: spec.cidrs[1]="nonsense": not a CIDR' in result.output
    assert "10.96" not in CliRunner().invoke(main, ["render", *flags, "iptables"]).output


def test_everything_of_a_service_is_in_a_map_that_exists() -> None:
    declared = {what.split(" ")[1] for what in names.declarations(CONFIG.family)}
    found = render_service(
        plan_of(service(ports=[port()]), endpoint_slice(HERE, THERE, ports=[port(8080)])), CONFIG
    )
    assert {e.container for e in found.elements} - declared == {names.numbered(2, 0)}
