"""Kernel parameters as they should be and as they are: what each mode asks for, and in what it is not met."""

from pathlib import Path

import msgspec
import pytest

from kproxy.addresses import Family
from kproxy.config.model import ConntrackSettings, ProxyConfig
from kproxy.inspect.sysctls import Sysctl, current_sysctls
from kproxy.modes.registry import mode_registry

BASE = ProxyConfig(node_name="n", conntrack=ConntrackSettings(max_per_core=100, min=50))
LIBERAL = msgspec.structs.replace(BASE.conntrack, tcp_be_liberal=True, udp_timeout=40.0)


def tree(root: Path, values: dict[str, str]) -> Path:
    for name, value in values.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    return root


def found(root: Path, *, localhost: bool = True, **changed: object) -> dict[str, tuple[str, str | None]]:
    """The name of each parameter that is not as it should be, with what it should be and is."""
    config = msgspec.structs.replace(BASE, **changed)
    proc, sys = root / "proc", root / "sys"
    looked = current_sysctls(
        config, tuple(Family), mode_registry().spec(config), localhost=localhost, proc=proc, sys=sys, cores=2
    )
    return {each.name: (each.wanted, each.now) for each in looked if not each.right}


GOOD = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/route_localnet": "1",
    "net/netfilter/nf_conntrack_max": "200",
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "3600",
    "net/netfilter/nf_conntrack_tcp_be_liberal": "0",
    "net/netfilter/nf_conntrack_udp_timeout": "30",
}
LOCALNET, MAX = "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_max"
BRIDGED = "net/bridge/bridge-nf-call-iptables"
VIRTUAL = {f"net/ipv4/vs/{name}": "1" for name in ("conntrack", "expire_nodest_conn")}
VIRTUAL["net/ipv4/vs/expire_quiescent_template"] = "0"
ARP = {"net/ipv4/conf/all/arp_ignore": "0", "net/ipv4/conf/all/arp_announce": "2"}


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ({}, {}, {}),
        ({LOCALNET: "0"}, {}, {LOCALNET: ("1", "0")}),
        ({LOCALNET: "0"}, {"localhost": False}, {}),
        ({LOCALNET: "0"}, {"proxy_mode": "nftables"}, {}),
        ({MAX: "99"}, {}, {MAX: ("200", "99")}),
        ({MAX: "99"}, {"proxy_mode": "nftables"}, {MAX: ("200", "99")}),
        ({MAX: "99"}, {"conntrack": ConntrackSettings(max_per_core=0)}, {}),
        (
            {},
            {"conntrack": LIBERAL},
            {
                "net/netfilter/nf_conntrack_udp_timeout": ("40", "30"),
                "net/netfilter/nf_conntrack_tcp_be_liberal": ("1", "0"),
            },
        ),
        ({"net/ipv4/ip_forward": "0"}, {}, {"net/ipv4/ip_forward": ("1", "0")}),
        ({BRIDGED: "0"}, {}, {BRIDGED: ("1", "0")}),
        (
            {BRIDGED: "1"},
            {"detect_local_mode": "BridgeInterface"},
            {"net/bridge/bridge-nf-call-ip6tables": ("1", None)},
        ),
        (
            {**VIRTUAL, **ARP, LOCALNET: "0"},
            {"proxy_mode": "ipvs"},
            {"net/ipv4/vs/expire_quiescent_template": ("1", "0")},
        ),
        (
            {**VIRTUAL, **ARP},
            {"proxy_mode": "ipvs", "ipvs_strict_arp": True},
            {
                "net/ipv4/vs/expire_quiescent_template": ("1", "0"),
                "net/ipv4/conf/all/arp_ignore": ("1", "0"),
            },
        ),
    ],
)
def test_what_is_not_as_it_should_be(
    tmp_path: Path,
    values: dict[str, str],
    settings: dict[str, object],
    expected: dict[str, tuple[str, str | None]],
) -> None:
    tree(tmp_path / "proc", GOOD | values)
    assert found(tmp_path, **settings) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("buckets", "expected"), [("49", [("50", "49")]), ("50", []), ("51", [])])
def test_the_table_is_to_have_a_bucket_for_four_connections(
    tmp_path: Path, buckets: str, expected: list[tuple[str, str]]
) -> None:
    tree(tmp_path / "proc", GOOD)
    tree(tmp_path / "sys", {"module/nf_conntrack/parameters/hashsize": buckets})
    assert list(found(tmp_path).items()) == [
        ("/sys/module/nf_conntrack/parameters/hashsize", each) for each in expected
    ]


@pytest.mark.parametrize(
    ("name", "now", "command"),
    [
        ("net/ipv4/ip_forward", "0", "sysctl -w net.ipv4.ip_forward=1"),
        ("/sys/module/x/parameters/y", "0", "echo 1 > /sys/module/x/parameters/y"),
    ],
)
def test_the_remedy_is_a_command(name: str, now: str, command: str) -> None:
    assert Sysctl(name, "1", now, writable=True, effect="").command == command
