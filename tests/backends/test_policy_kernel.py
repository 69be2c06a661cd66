"""The table of network policies in the real kernel: written as nft would, read back, and kept in step."""

from __future__ import annotations

import socket
import subprocess

import pytest

from kproxy.addresses import Family
from kproxy.backends.policy import names
from kproxy.backends.policy.config import Unknown
from kproxy.backends.policy.probe import holding, probe
from kproxy.backends.policy.text import render
from kproxy.kernel.nft import dump as dumped
from kproxy.kernel.nft import json_ruleset, ruleset
from kproxy.kernel.nft.commands import AddTable, DeleteTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.operations import Foreign, Load
from kproxy.kernel.nft.types import NftError
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, RuleMatch
from tests.backends.policy_node import PolicyNode, sample, tcp, with_config
from tests.kernel import nft_oracle
from tests.kernel.namespace import fresh_network, without_capabilities
from tests.kernel.nft_raw import raw_table

FAMILIES = pytest.mark.parametrize("family", list(Family))
CIDRS = ("10.1.0.0/16", "10.2.3.0/25", "fd00:1::/64")


def node_of(family: Family, **settings: object) -> PolicyNode:
    """A node over the real kernel, with rules of every kind."""
    node = PolicyNode(with_config(family=family, **settings), NetlinkNft())
    node.tables = sample(family)
    node.start()
    return node


@pytest.mark.parametrize("unknown", [Unknown.ALLOW, Unknown.DROP])
@FAMILIES
def test_the_table_is_the_one_that_nft_makes_of_what_render_prints(family: Family, unknown: Unknown) -> None:
    _same(family, unknown)


@fresh_network
def _same(family: Family, unknown: Unknown) -> None:
    node = node_of(family, unknown=unknown, pod_cidrs=CIDRS)
    assert node.done().changes["transactions"] == 1
    ours = raw_table(family, names.TABLE)
    NetlinkNft().commit(Transaction(family, names.TABLE, [AddTable(), DeleteTable()]))
    nft_oracle.write(render(node.tables.table, node.config))
    theirs = raw_table(family, names.TABLE)
    assert ours.rules == theirs.rules
    assert ours == theirs


@FAMILIES
def test_a_restart_writes_nothing(family: Family) -> None:
    _restart(family)


@fresh_network
def _restart(family: Family) -> None:
    node = node_of(family, unknown=Unknown.DROP, pod_cidrs=CIDRS)
    node.done()
    node.start()
    before = node.nft.generation()
    report = node.done()
    assert report.changes == {}
    assert node.nft.generation() == before
    assert node.backend.check(full=True) == ()


@FAMILIES
def test_every_expression_is_understood_in_the_kernel_and_in_a_dump(family: Family) -> None:
    _understood(family)


@fresh_network
def _understood(family: Family) -> None:
    node_of(family, unknown=Unknown.DROP, pod_cidrs=CIDRS).done()
    (kernel,) = ruleset.read(family)
    (dump,) = json_ruleset.parse(nft_oracle.nft("-j", "list", "ruleset"), family) or ()
    assert kernel.chains.keys() == dump.chains.keys()
    assert kernel.sets.keys() == dump.sets.keys()
    for name, chain in kernel.chains.items():
        assert len(chain.rules) == len(dump.chains[name].rules)
        for rule in (*chain.rules, *dump.chains[name].rules):
            assert not any(isinstance(each, Foreign) for each in rule)
            assert not any(isinstance(each, Load) and not each.what for each in rule)


@FAMILIES
def test_a_kernel_that_can_hold_packets_gets_a_table_that_is_recognised(family: Family) -> None:
    _holding(family)


@fresh_network
def _holding(family: Family) -> None:
    nft = NetlinkNft()
    config = holding(nft, with_config(family=family))
    if config is None:
        pytest.skip("the kernel has no queue for packets")
    assert nft.reading(family, f"{names.TABLE}-probe") is None
    node = node_of(family, unknown=Unknown.HOLD, pod_cidrs=CIDRS, queue_by_target=config.queue_by_target)
    node.done()
    node.start()
    assert node.done().changes == {}
    assert node.backend.check(full=True) == ()


@fresh_network
def test_the_probe_leaves_nothing_and_names_what_is_missing() -> None:
    nft = NetlinkNft()
    for family in Family:
        probe(nft, family)
        assert nft.reading(family, f"{names.TABLE}-probe") is None
    without_capabilities()
    with pytest.raises(NftError, match="Operation not permitted"):
        probe(nft, Family.IPV4)


@FAMILIES
def test_packets_of_a_group_are_counted_and_refused_flows_remembered(family: Family) -> None:
    _counted(family)


@fresh_network
def _counted(family: Family) -> None:
    """On the loopback interface a packet of the pod comes to the node, where its egress is judged."""
    local = "127.0.0.1" if family is Family.IPV4 else "::1"
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    node = PolicyNode(with_config(family=family), NetlinkNft())
    udp = tcp(*range(5000, 5008), protocol=Protocol.UDP)
    group = node.tables.group(Direction.EGRESS, RuleMatch((udp,)), policy="default/out")
    node.tables.pod(local, egress=group)
    node.done()
    with socket.socket(kind, socket.SOCK_DGRAM) as receiver:
        receiver.bind((local, 5001))
        receiver.settimeout(5)
        for port in (5001, 7, 7, 9):
            with socket.socket(kind, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"hello", (local, port))
        assert receiver.recv(100) == b"hello"
    assert node.backend.counts() == {group: (1, 3)}
    assert node.backend.counts() == {group: (1, 3)}
    flows = dumped.counts(family, names.TABLE, names.drops(names.EGRESS)) or {}
    packets = {flow: (counted[0] + 1) // 2 for flow, counted in flows.items()}
    assert packets == {f"{local} . {local} . 17 . 7": 2, f"{local} . {local} . 17 . 9": 1}
    assert node.backend.check(full=True) == ()
    node.start()
    assert node.done().changes == {}
    assert node.backend.counts() == {group: (1, 3)}
