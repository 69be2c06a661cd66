"""Node ports at loopback addresses: where they cannot be had, an operator who asks for them is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.config.documents import read_documents
from kproxy.config.loading import log_settings
from kproxy.config.loopback import unserved
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.report import check_settings
from kproxy.kernel import sysctl
from kproxy.kernel.sysctl import SysctlError
from kproxy.kernel.xtables.types import Variant, XtablesUnavailable
from kproxy.modes.findings import Level
from kproxy.node import route_localnet

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

ASKED = [
    # ranges, and those that do not answer in nftables, IPVS and iptables mode, and in that without localhost
    (("127.0.0.0/8",), 1, 1, 0, 1),
    (("127.0.0.1/32",), 1, 1, 0, 1),
    (("127.9.9.9/32",), 1, 1, 0, 1),
    (("126.0.0.0/7",), 1, 1, 0, 1),
    (("::ffff:127.0.0.1/128",), 1, 1, 0, 1),
    (("0.0.0.0/0",), 1, 0, 0, 0),
    (("::/0",), 1, 0, 0, 0),
    (("::1/128",), 1, 1, 1, 1),
    (("::/64",), 1, 1, 1, 1),
    (("192.168.0.0/16", "127.0.0.0/8", "::1/128"), 2, 2, 1, 2),
    (("192.168.0.0/16", "fd00::/8", "128.0.0.0/1"), 0, 0, 0, 0),
    (("primary",), 0, 0, 0, 0),
    ((), 0, 0, 0, 0),
]


def config(mode: str, ranges: tuple[str, ...], **fields: Any) -> ProxyConfig:
    return ProxyConfig(node_name="n", proxy_mode=mode, node_port_addresses=ranges, **fields)


@pytest.mark.parametrize(("ranges", "nftables", "ipvs", "iptables", "forbidden"), ASKED)
def test_ranges_with_loopback_addresses(
    ranges: tuple[str, ...], nftables: int, ipvs: int, iptables: int, forbidden: int
) -> None:
    found = {mode: unserved(config(mode, ranges)) for mode in ("nftables", "ipvs", "iptables")}
    assert {mode: len(each) for mode, each in found.items()} == {
        "nftables": nftables,
        "ipvs": ipvs,
        "iptables": iptables,
    }
    assert len(unserved(config("iptables", ranges, localhost_node_ports=False))) == forbidden
    assert set(found["nftables"]) <= set(ranges)


@pytest.mark.parametrize(
    ("mode", "ranges", "bound", "expected"),
    [
        ("nftables", ("primary",), "127.0.0.1", ("primary (127.0.0.1)",)),
        ("nftables", (), "127.0.0.1", ("primary (127.0.0.1)",)),
        ("nftables", (), "::1", ("primary (::1)",)),
        ("ipvs", ("primary",), "127.0.0.1", ("primary (127.0.0.1)",)),
        ("ipvs", (), "127.0.0.1", ()),
        ("iptables", ("primary",), "127.0.0.1", ()),
        ("iptables", ("primary",), "::1", ("primary (::1)",)),
        ("nftables", ("primary",), "192.168.0.2", ()),
    ],
)
def test_the_primary_address_may_be_one(
    mode: str, ranges: tuple[str, ...], bound: str, expected: tuple[str, ...]
) -> None:
    assert unserved(config(mode, ranges, bind_address=bound)) == expected


def test_the_log_says_so_at_the_start_and_a_reload() -> None:
    settings, defects = read_documents(
        HEAD + 'mode: nftables\nnodePortAddresses: ["127.0.0.0/8", "10.0.0.0/8"]\n'
    )
    assert defects == []
    with capture_logs() as logs:
        log_settings(settings)
    (line,) = [line for line in logs if line["event"] == "node_ports_not_on_loopback"]
    assert (line["log_level"], line["ranges"]) == ("warning", ["127.0.0.0/8"])
    assert "nftables mode" in line["reason"]


def test_a_check_says_so() -> None:
    (finding,) = check_settings(config("nftables", ("127.0.0.0/8",)))
    assert (finding.level, finding.subject) == (Level.WARNING, "--nodeport-addresses")
    assert "127.0.0.0/8" in finding.found
    assert finding.remedy
    assert list(check_settings(config("iptables", ("127.0.0.0/8",)))) == []


class Host:
    """The parameter and the rules of a host; `saved` is what each variant's program prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, value: str, saved: dict[Variant, str]) -> None:
        self.value: str = value
        self.refuses = False
        self.asked: list[Variant] = []

        def read(name: str) -> str:
            if not self.value:
                raise SysctlError(name, "it does not exist")
            return self.value

        def ensure(name: str, value: int) -> bool:
            if self.refuses:
                raise SysctlError(name, "read-only file system")
            changed, self.value = self.value != str(value), str(value)
            return changed

        def find_tools(_family: object, variant: Variant, **_: object) -> Variant:
            self.asked.append(variant)
            if variant not in saved:
                raise XtablesUnavailable("iptables is not installed")
            return variant

        def tables(_family: object, tools: Variant, **_: object) -> SimpleNamespace:
            return SimpleNamespace(save=saved[tools].encode)

        monkeypatch.setattr(sysctl, "read", read)
        monkeypatch.setattr(sysctl, "ensure", ensure)
        monkeypatch.setattr(route_localnet, "find_tools", find_tools)
        monkeypatch.setattr(route_localnet, "SubprocessXtables", tables)


GUARD = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\nCOMMIT\n"
OTHER = "*filter\n:INPUT ACCEPT [0:0]\n:KUBE-FIREWALL-2 - [0:0]\nCOMMIT\n"


@pytest.mark.parametrize(
    ("value", "saved", "present"),
    [
        ("1", {Variant.NFT: GUARD, Variant.LEGACY: OTHER}, True),
        ("1", {Variant.NFT: OTHER, Variant.LEGACY: GUARD}, True),
        ("1", {Variant.LEGACY: GUARD}, True),
        ("1", {Variant.NFT: OTHER, Variant.LEGACY: OTHER}, False),
        ("1", {}, False),
        ("0", {Variant.NFT: GUARD}, False),
        ("", {Variant.NFT: GUARD}, False),
    ],
)
def test_the_guard_is_looked_for_where_the_parameter_is_set(
    monkeypatch: pytest.MonkeyPatch, value: str, saved: dict[Variant, str], present: bool
) -> None:
    host = Host(monkeypatch, value, saved)
    assert route_localnet.is_firewall_present() == present
    assert bool(host.asked) == (value == "1")


def test_the_parameter_is_set_and_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, "0", {})
    with capture_logs() as logs:
        assert route_localnet.allow()
        assert route_localnet.allow()
        assert host.value == "1"
        route_localnet.close()
        assert host.value == "0"
    assert [(each["event"], each["value"]) for each in logs] == [("sysctl_set", 1), ("sysctl_set", 0)]


def test_a_parameter_that_cannot_be_set_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, "0", {})
    host.refuses = True
    with capture_logs() as logs:
        assert not route_localnet.allow()
    assert [(each["event"], each["effect"]) for each in logs] == [
        ("sysctl_failed", "no node ports on localhost")
    ]
