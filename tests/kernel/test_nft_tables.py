"""Tables that are switched off: iptables-save prints their rules, but no packet passes them."""

from __future__ import annotations

import pytest

from kproxy.addresses import Family
from kproxy.kernel import nft_tables
from tests.cli.nodes import do, iptables, rules
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

KINDS = [(family, table) for family in ("ip", "ip6") for table in ("nat", "filter")]


def is_dormant(family: str, table: str) -> bool:
    return "dormant" in do("nft", "list", "table", family, table)


@fresh_network
def test_only_named_tables_are_switched_on() -> None:
    for table in ("nat", "theirs"):
        do("nft", "add", "table", "ip", table, "{ flags dormant; }")
    assert nft_tables.wake(Family.IPV4, {"nat", "filter"}) == ("nat",)
    assert (is_dormant("ip", "nat"), is_dormant("ip", "theirs")) == (False, True)
    assert nft_tables.wake(Family.IPV4, {"nat", "filter"}) == ()


@pytest.mark.parametrize(("family", "table"), KINDS)
@fresh_network
def test_a_running_kproxy_switches_its_tables_on_again(family: str, table: str) -> None:
    with Running("--iptables-variant=nft") as running:
        running.ready()
        before = rules()
        do("nft", "add", "table", family, table, "{ flags dormant; }")
        name = "IPv4" if family == "ip" else "IPv6"
        running.wait("table_switched_on", f"family={name}", f"table={table}")
        assert not is_dormant(family, table)
        assert rules() == before
        assert running.end() == 0


@fresh_network
def test_tables_are_switched_on_at_the_start() -> None:
    iptables("nft", "-t nat -L")
    do("nft", "add", "table", "ip", "nat", "{ flags dormant; }")
    with Running("--iptables-variant=nft") as running:
        running.wait("table_switched_on", "family=IPv4", "table=nat")
        running.ready()
        assert not is_dormant("ip", "nat")
        assert running.end() == 0
