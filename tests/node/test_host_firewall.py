"""Firewalls of the host that shut services in IPVS mode: found where they are, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kproxy.kernel.xtables.types import Variant
from kproxy.node.host_firewall import shadowed_by, shadowing, shutting
from tests.kernel.namespace import fresh_network

FIREWALL = """
table inet host {
  chain entering { type filter hook input priority 0; policy drop; }
  chain late { type filter hook input priority 200; policy drop; }
  chain through { type filter hook forward priority 0; policy drop; }
  chain leaving { type filter hook output priority 0; policy accept; }
}
table ip6 six {
  chain leaving { type filter hook output priority 0; policy drop; }
}
"""


def run(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True)


@pytest.mark.root
@fresh_network
def test_chains_of_other_tables_that_drop_by_policy_are_named() -> None:
    if shutil.which("nft") is None:
        pytest.skip("no program nft")
    run("nft", "-f", "-", stdin=FIREWALL)
    expected = {"chain entering of nftables table inet host", "chain leaving of nftables table ip6 six"}
    for variant in Variant:
        assert set(shutting(variant)) == expected


@pytest.mark.root
@pytest.mark.parametrize("variant", list(Variant), ids=str)
@fresh_network
def test_the_policy_of_the_own_variant_is_opened_by_rules_and_that_of_the_other_is_not(
    variant: Variant,
) -> None:
    program = f"iptables-{variant}"
    if shutil.which(program) is None:
        pytest.skip(f"no program {program}")
    run(program, "-P", "INPUT", "DROP")
    other = Variant.LEGACY if variant is Variant.NFT else Variant.NFT
    assert list(shutting(variant)) == []
    assert [told.partition(" of ")[0] for told in shutting(other)] == ["chain INPUT"]


@pytest.mark.root
@pytest.mark.parametrize("variant", list(Variant), ids=str)
@fresh_network
def test_a_rule_that_drops_everything_counts_where_it_stands_first(variant: Variant) -> None:
    program = f"iptables-{variant}"
    if shutil.which(program) is None:
        pytest.skip(f"no program {program}")
    run(program, "-N", "KUBE-IPVS-FILTER")
    run(program, "-A", "INPUT", "-j", "KUBE-IPVS-FILTER")
    run(program, "-A", "INPUT", "-j", "REJECT")
    assert list(shadowing(variant)) == []
    run(program, "-I", "INPUT", "-j", "DROP")
    assert list(shadowing(variant)) == ["rule 1 of chain INPUT (IPv4)"]


@pytest.mark.parametrize(
    ("rules", "place"),
    [
        (["-A INPUT -j DROP", "-A INPUT -j X"], 1),
        (["-A INPUT -s 192.0.2.1/32 -j DROP", "-A INPUT -j X"], None),
        (['-A INPUT -m comment --comment "a b" -j REJECT --reject-with tcp-reset', "-A INPUT -j X"], 1),
        (["-A INPUT -j X", "-A INPUT -j DROP"], None),
        (["-A INPUT -j DROP"], None),
    ],
)
def test_only_what_drops_all_before_the_own_rule_shadows_it(rules: list[str], place: int | None) -> None:
    assert shadowed_by(rules, "X") == place
