"""What follows from the node: local traffic, node-port addresses, primary addresses."""

from typing import Any

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.backends.core.base import LocalTraffic
from kproxy.config.model import ProxyConfig
from kproxy.node.facts import node_addresses, node_facts, remembered, wants_service_cidrs
from kproxy.state.wire import Node

V4, V6 = Family.IPV4, Family.IPV6
INTERFACES = ("127.0.0.1", "192.168.1.5", "10.0.0.7", "::1", "fd00::5")


def config(**fields: Any) -> ProxyConfig:
    return ProxyConfig(node_name="node-a", **fields)


def node(**fields: Any) -> Node:
    return msgspec.convert({"metadata": {"name": "node-a"}, **fields}, Node)


def test_cluster_cidrs_tell_local_traffic_by_family() -> None:
    facts = node_facts(config(cluster_cidrs=("10.244.0.0/16", "fd00:10::/48")), None, ())
    assert facts is not None
    assert facts.families[V4].local_traffic == LocalTraffic(cidr="10.244.0.0/16")
    assert facts.families[V6].local_traffic == LocalTraffic(cidr="fd00:10::/48")


def test_without_a_cidr_of_a_family_its_local_traffic_is_unknown() -> None:
    facts = node_facts(config(cluster_cidrs=("10.244.0.0/16",)), None, ())
    assert facts is not None
    assert facts.families[V6].local_traffic is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"detect_local_mode": "BridgeInterface", "pod_bridge_interface": "cbr0"},
            LocalTraffic(interface="cbr0"),
        ),
        (
            {"detect_local_mode": "InterfaceNamePrefix", "pod_interface_name_prefix": "veth"},
            LocalTraffic(interface="veth+"),
        ),
        (
            {"detect_local_mode": "InterfaceNamePrefix", "pod_interface_name_prefix": "lxc012345678901"},
            LocalTraffic(interface="lxc012345678901"),
        ),
    ],
)
def test_interfaces_tell_local_traffic(fields: dict[str, Any], expected: LocalTraffic) -> None:
    facts = node_facts(config(**fields), None, ())
    assert facts is not None
    assert {f.local_traffic for f in facts.families.values()} == {expected}


def test_node_cidr_mode_waits_for_the_pod_cidrs() -> None:
    settings = config(detect_local_mode="NodeCIDR")
    assert node_facts(settings, None, ()) is None
    assert node_facts(settings, node(), ()) is None
    facts = node_facts(settings, node(spec={"podCIDRs": ["10.244.7.0/24", "fd00:7::/64"]}), ())
    assert facts is not None
    assert facts.families[V4].local_traffic == LocalTraffic(cidr="10.244.7.0/24")
    assert facts.families[V6].local_traffic == LocalTraffic(cidr="fd00:7::/64")


def test_pod_cidrs_that_cannot_be_read_cost_only_themselves() -> None:
    settings = config(detect_local_mode="NodeCIDR")
    assert node_facts(settings, node(spec={"podCIDRs": ["nonsense"], "podCIDR": "nonsense"}), ()) is None
    facts = node_facts(settings, node(spec={"podCIDRs": ["10.244.7.0", "fd00:7::/64"]}), ())
    assert facts is not None
    assert facts.families[V4].local_traffic is None
    assert facts.families[V6].local_traffic == LocalTraffic(cidr="fd00:7::/64")


@pytest.mark.parametrize(
    ("ranges", "v4", "v6", "localhost"),
    [
        ((), None, None, True),
        (("0.0.0.0/0",), None, None, True),
        (("192.168.0.0/16",), ("192.168.1.5",), None, False),
        (("192.168.0.0/16", "127.0.0.0/8"), ("127.0.0.1", "192.168.1.5"), None, True),
        (("fd00::/16",), None, ("fd00::5",), True),
        (("172.16.0.0/12",), (), None, False),
        (("primary",), ("10.0.0.7",), ("::1",), False),
    ],
)
def test_node_port_addresses(
    ranges: tuple[str, ...], v4: tuple[str, ...] | None, v6: tuple[str, ...] | None, localhost: bool
) -> None:
    primary = node(status={"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]})
    facts = node_facts(config(node_port_addresses=ranges), primary, INTERFACES)
    assert facts is not None
    assert facts.families[V4].node_port_addresses == v4
    assert facts.families[V6].node_port_addresses == v6
    assert facts.families[V4].localhost_node_ports is localhost


def test_internal_addresses_come_before_external_ones() -> None:
    given = [
        {"type": "Hostname", "address": "node-a"},
        {"type": "ExternalIP", "address": "203.0.113.7"},
        {"type": "InternalIP", "address": "not an address"},
        {"type": "InternalIP", "address": "10.0.0.7"},
        {"type": "ExternalIP", "address": "2001:db8::7"},
    ]
    assert node_addresses(node(status={"addresses": given})) == {V4: "10.0.0.7", V6: "2001:db8::7"}


@pytest.mark.parametrize("now", [None, node(), node(status={"addresses": []})])
def test_a_node_whose_addresses_are_gone_keeps_the_former_ones(now: Node | None) -> None:
    told = node(status={"addresses": [{"type": "InternalIP", "address": "192.168.1.5"}]})
    facts = node_facts(config(node_port_addresses=("primary",)), remembered(now, told), INTERFACES)
    assert facts is not None
    assert facts.view.addresses == {V4: "192.168.1.5", V6: "::1"}
    assert facts.families[V4].node_port_addresses == ("192.168.1.5",)


def test_the_current_addresses_of_a_node_replace_the_former_ones() -> None:
    before = node(status={"addresses": [{"type": "InternalIP", "address": "fd00::5"}]})
    now = node(status={"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]})
    facts = node_facts(config(), remembered(now, before), ())
    assert facts is not None
    assert facts.view.addresses == {V4: "10.0.0.7", V6: "::1"}


def test_the_zone_comes_from_the_label() -> None:
    labelled = node(metadata={"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z1"}})
    facts = node_facts(config(), labelled, ())
    assert facts is not None
    assert facts.view.zone == "z1"


def test_the_bind_address_stands_for_the_primary_address_of_its_family() -> None:
    primary = node(
        status={
            "addresses": [
                {"type": "InternalIP", "address": "10.0.0.7"},
                {"type": "InternalIP", "address": "fd00::7"},
            ]
        }
    )
    for given, expected in (
        ("0.0.0.0", {V4: "10.0.0.7", V6: "fd00::7"}),
        ("::", {V4: "10.0.0.7", V6: "fd00::7"}),
        ("192.168.1.5", {V4: "192.168.1.5", V6: "fd00::7"}),
        ("fd00::5", {V4: "10.0.0.7", V6: "fd00::5"}),
    ):
        facts = node_facts(config(bind_address=given), primary, ())
        assert facts is not None
        assert facts.view.addresses == expected


def known(*addresses: str, zone: str = "", cidrs: tuple[str, ...] = ()) -> Node:
    return node(
        metadata={"name": "node-a", "labels": {"topology.kubernetes.io/zone": zone} if zone else {}},
        spec={"podCIDRs": cidrs},
        status={"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    )


FULL = known("10.0.0.7", "fd00::7", zone="a", cidrs=("10.244.7.0/24",))


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (None, None, None),
        (None, FULL, FULL),
        (FULL, None, FULL),
        (known(zone="b"), None, known(zone="b")),
        (known(zone="b"), FULL, known("10.0.0.7", "fd00::7", zone="b", cidrs=("10.244.7.0/24",))),
        (known("10.0.0.8"), FULL, known("10.0.0.8", cidrs=("10.244.7.0/24",))),
        (known(cidrs=("10.244.8.0/24",)), FULL, known("10.0.0.7", "fd00::7", cidrs=("10.244.8.0/24",))),
    ],
    ids=["never there", "gone", "new", "new and bare", "bare again", "other addresses", "other pod CIDRs"],
)
def test_what_the_object_lacks_is_as_it_was(
    now: Node | None, before: Node | None, expected: Node | None
) -> None:
    settings = config(detect_local_mode="NodeCIDR", node_port_addresses=("primary",))
    assert node_facts(settings, remembered(now, before), INTERFACES) == node_facts(
        settings, expected, INTERFACES
    )


def test_limits_of_outside_addresses() -> None:
    """The node's addresses are those of its interfaces and of its object, where a cloud translates them."""
    addresses = [{"type": "ExternalIP", "address": "203.0.113.9"}, {"type": "Hostname", "address": "n"}]
    facts = node_facts(
        config(
            healthz_bind_address="0.0.0.0:10256",
            metrics_bind_address="[::1]:10249",
            external_ip_cidrs=("198.51.100.7/24", "::ffff:10.0.0.0/104"),
        ),
        node(status={"addresses": addresses}),
        (*INTERFACES, "fe80::1", "169.254.20.10"),
        api_servers=[("192.168.1.1", 6443)],
    )
    assert facts is not None
    limits = facts.view.outside
    assert limits.local == {"192.168.1.5", "10.0.0.7", "fd00::5", "203.0.113.9", "169.254.20.10"}
    assert limits.listeners == {("", 10256), ("::1", 10249)}
    assert limits.external_ip_cidrs == ("198.51.100.0/24", "10.0.0.0/8")
    assert limits.api_servers == {("192.168.1.1", 6443)}
    assert not limits.holds_addresses


def test_servers_that_are_off_keep_no_port() -> None:
    facts = node_facts(
        config(healthz_bind_address="", metrics_bind_address="[::]:9", proxy_mode="ipvs"), None, ()
    )
    assert facts is not None
    assert facts.view.outside.listeners == {("", 9)}
    assert facts.view.outside.holds_addresses


@pytest.mark.parametrize(
    ("mode", "given", "wanted"),
    [
        ("nftables", (), True),
        ("nftables", ("10.96.0.0/16",), False),
        ("iptables", (), False),
        ("iptables", ("10.96.0.0/16",), False),
    ],
)
def test_service_ranges_come_from_the_cluster_where_no_setting_has_them(
    mode: str, given: tuple[str, ...], wanted: bool
) -> None:
    settings = config(proxy_mode=mode, service_cidrs=given)
    assert wants_service_cidrs(settings) == wanted
    facts = node_facts(settings, None, (), ("10.97.0.0/16", "fd00::/112"))
    assert facts is not None
    expected = {"nftables": given or ("10.97.0.0/16",), "iptables": ()}[mode]
    assert facts.families[V4].service_ranges == expected
    assert facts.without_ranges().families[V4].service_ranges == ()
