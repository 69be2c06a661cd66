"""Node ports at loopback addresses: where they cannot be had, an operator who asks for them is told."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.config.documents import read_documents
from kproxy.config.loading import log_settings
from kproxy.config.loopback import unserved
from kproxy.config.model import ProxyConfig
from kproxy.inspect.preflight.report import check_settings
from kproxy.modes.findings import Level

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
