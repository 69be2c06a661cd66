"""What others did to the rules: what is noticed and repaired, who is blamed, and what is left alone."""

from __future__ import annotations

import pytest

from kproxy.addresses import Family
from kproxy.kernel.xtables.types import Variant
from tests.backends.iptables_node import IptablesNode, State, WatchedXtables
from tests.backends.programmed import SEP1, SVC1, done, pods_of, programmed, ways
from tests.builders import service

FOREIGN = (
    "*filter\n:INPUT ACCEPT [0:0]\n:MY-FIREWALL - [0:0]\n:DOCKER-USER - [0:0]\n-A INPUT -j MY-FIREWALL\n"
    '-A MY-FIREWALL -m comment --comment "KUBE-SERVICES -j KUBE-" -j ACCEPT\n'
    "-A FORWARD -j DOCKER-USER\nCOMMIT\n"
    "*nat\n:CNI-HOSTPORT - [0:0]\n:KUBE-ROUTER-X - [0:0]\n-A PREROUTING -j CNI-HOSTPORT\n"
    "-A CNI-HOSTPORT -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.0.7:80\n"
    "-A POSTROUTING -s 10.1.0.0/16 -j MASQUERADE\nCOMMIT\n"
    "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
    "*raw\n:OTHER - [0:0]\n-A PREROUTING -j OTHER\nCOMMIT\n"
)


@ways
def test_rules_of_others_are_left_alone(variant: Variant, piece: int | None) -> None:
    fake = WatchedXtables(Family.IPV4, variant)
    fake.edit(FOREIGN)
    before = _foreign(_state(fake))
    cluster = IptablesNode(variant, piece=piece, fake=fake)
    cluster.put(service(), pods_of("svc1", "10.1.1.1"))
    done(cluster)
    cluster.drop("ns1/svc1")
    done(cluster)
    cluster.start()
    done(cluster)
    assert _foreign(_state(fake)) == before


def _state(fake: WatchedXtables) -> State:
    return {table: fake.chains(table) for table in ("filter", "nat", "mangle", "raw")}


def _foreign(state: State) -> State:
    ours = {line.split()[1] for line in _static_names()} | {"KUBE-PROXY-CANARY"}
    return {
        table: {
            chain: [rule for rule in rules if " -j KUBE-" not in rule or 'comment "KUBE' in rule]
            for chain, rules in chains.items()
            if chain not in ours
        }
        for table, chains in state.items()
    }


def _static_names() -> list[str]:
    cluster = IptablesNode()
    done(cluster)
    state = cluster.state()
    return [f"x {c}" for chains in state.values() for c in chains if c.startswith("KUBE-")]


DAMAGE: list[tuple[str, str, str]] = [
    ("*nat\n-F KUBE-SERVICES\nCOMMIT\n", "chain nat/KUBE-SERVICES", "lacks 4"),
    (f"*nat\n-F {SVC1}\nCOMMIT\n", f"chain nat/{SVC1}", "lacks 3"),
    (f"*nat\n-A {SEP1} -j RETURN\nCOMMIT\n", f"chain nat/{SEP1}", "has 1 that are not ours"),
    ("*nat\n-I KUBE-SERVICES 1 -j RETURN\nCOMMIT\n", "chain nat/KUBE-SERVICES", "has 1 that are not ours"),
    ("*nat\n-F KUBE-POSTROUTING\nCOMMIT\n", "chain nat/KUBE-POSTROUTING", "lacks 3"),
    ("*nat\n-F KUBE-MARK-MASQ\nCOMMIT\n", "chain nat/KUBE-MARK-MASQ", "lacks 1"),
    (
        "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\nCOMMIT\n",
        "chain nat/KUBE-SVC-AAAAAAAAAAAAAAAA",
        "is unexpected",
    ),
    ("*nat\n-F PREROUTING\nCOMMIT\n", "jump nat/PREROUTING", "is missing"),
    ("*filter\n-F FORWARD\nCOMMIT\n", "jump filter/FORWARD", "is missing"),
    ("*filter\n-F KUBE-FIREWALL\nCOMMIT\n", "chain filter/KUBE-FIREWALL", "lacks 1"),
    ("*filter\n-A KUBE-SERVICES -j DROP\nCOMMIT\n", "chain filter/KUBE-SERVICES", "has 1 that are not ours"),
    ("*mangle\n-X KUBE-PROXY-CANARY\nCOMMIT\n", "chain mangle/KUBE-PROXY-CANARY", "is missing"),
    ("*filter\n-F\nCOMMIT\n", "chain filter/KUBE-FORWARD", "lacks 3"),
    ("*nat\n-F\nCOMMIT\n", "chain nat/KUBE-NODEPORTS", "lacks 3"),
]


@ways
@pytest.mark.parametrize(("edit", "name", "found"), DAMAGE)
def test_damage_is_noticed_named_and_repaired(
    variant: Variant, piece: int | None, edit: str, name: str, found: str
) -> None:
    cluster = programmed(variant, piece)
    assert cluster.backend.check() == ()
    intact = _sorted(cluster.state())
    cluster.fake.edit(edit)
    drifts = cluster.backend.check()
    assert any(d.object.startswith(name) and found in str(d) for d in drifts), drifts
    done(cluster)
    assert _sorted(cluster.state()) == intact
    assert cluster.backend.check(full=True) == ()
    assert cluster.backend.check() == ()


def _sorted(state: State) -> State:
    """Jumps that are put back come first in their chain, so order counts only in chains of ours."""
    return {
        table: {chain: rules if "-" in chain else sorted(rules) for chain, rules in chains.items()}
        for table, chains in state.items()
    }


@ways
@pytest.mark.parametrize("table", ["nat", "filter", "mangle"])
def test_a_flushed_table_is_restored_in_order(variant: Variant, piece: int | None, table: str) -> None:
    cluster = programmed(variant, piece)
    intact = cluster.state()
    cluster.fake.flush_table(table)
    assert cluster.backend.check()
    done(cluster)
    assert cluster.state() == intact


def test_a_check_reads_nothing_without_foreign_writes() -> None:
    cluster = programmed()
    cluster.backend.check()
    reads = cluster.fake.saves
    assert cluster.backend.check() == ()
    cluster.put(None, pods_of("svc1", "10.1.1.7"))
    done(cluster)
    assert cluster.backend.check() == ()
    assert cluster.fake.saves == reads
    cluster.fake.edit("*filter\n:MINE - [0:0]\nCOMMIT\n")
    assert cluster.backend.check() == ()
    assert cluster.fake.saves == reads + 1
    assert cluster.backend.check(full=True) == ()
    assert cluster.fake.saves == reads + 2


def test_changes_that_wait_are_no_drift() -> None:
    cluster = programmed()
    cluster.drop("ns1/svc2")
    cluster.put(service("svc1", "10.96.0.9"), pods_of("svc1", "10.1.1.9"))
    cluster.put(None, pods_of("svc3"))
    cluster.plan()
    assert cluster.backend.check(full=True) == ()
    done(cluster)
    assert cluster.state() == cluster.fresh()


def test_damage_during_a_change_is_blamed_on_no_service() -> None:
    """The rule to delete is gone already: the kernel refuses the edit, and no service is at fault."""
    cluster = programmed()
    cluster.fake.edit("*nat\n-F KUBE-SERVICES\nCOMMIT\n*filter\n-F KUBE-SERVICES\nCOMMIT\n")
    cluster.drop("ns1/svc1")
    cluster.put(service("svc4", "10.96.0.4"), pods_of("svc4", "10.1.4.1"))
    done(cluster)
    assert cluster.state() == cluster.fresh()
