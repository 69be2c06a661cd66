"""`kproxy cleanup --peer kube-proxy` removes what kube-proxy left in each of its modes, and nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.cli.nodes import do, iptables, kproxy, rules, run_once
from tests.kernel.namespace import fresh_network
from tests.peer_rules import IPVS_RULES
from tests.support.faultinjection import NAMES, BrokenTools, Sandbox

LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")

IPTABLES_MODE = """*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-Q3UCPZ54E6Q2R4UT - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "default/kubernetes:https cluster IP" -m tcp \
--dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https" -j KUBE-SEP-Q3UCPZ54E6Q2R4UT
-A KUBE-SEP-Q3UCPZ54E6Q2R4UT -p tcp -m tcp -j DNAT --to-destination 192.0.2.1:6443
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" \
-j KUBE-EXTERNAL-SERVICES
-I INPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FIREWALL -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
"""As kube-proxy 1.36 leaves it when it is stopped (pkg/proxy/iptables/proxier.go)."""

IPVS_SETS = """create KUBE-CLUSTER-IP hash:ip,port family inet maxelem 65536
add KUBE-CLUSTER-IP 10.96.0.1,tcp:443
create KUBE-6-CLUSTER-IP hash:ip,port family inet6 maxelem 65536
create KUBE-LOOP-BACK hash:ip,port,ip family inet maxelem 65536
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-HEALTH-CHECK-NODE-PORT bitmap:port range 0-65535
create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6 maxelem 65536
"""


def kubelet_and_others(variant: str) -> str:
    """Make what must survive; what all rules were before kube-proxy came."""
    iptables(variant, "-t mangle -N KUBE-KUBELET-CANARY")
    iptables(variant, "-t nat -N CNI-1234")
    iptables(variant, "-t nat -A POSTROUTING -s 10.244.0.5/32 -j CNI-1234")
    iptables(variant, "-A FORWARD -j ACCEPT")
    do("nft", "add table inet kube-proxy")
    do("nft", "add table ip mine; add chain ip mine kube-proxy")
    return rules()


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@fresh_network
def test_the_iptables_mode(variant: str) -> None:
    before = kubelet_and_others(variant)
    do(f"iptables-{variant}-restore", "--noflush", stdin=IPTABLES_MODE)
    do(f"ip6tables-{variant}-restore", "--noflush", stdin=IPTABLES_MODE.replace(
        "10.96.0.1/32", "fd00:10:96::1/128").replace("192.0.2.1:6443", "[2001:db8::1]:6443"))  # fmt: skip
    done = kproxy("cleanup", "--peer", "kube-proxy")
    assert done.returncode == 0, done.stderr
    after = rules().splitlines()
    # Where the kubelet is, it keeps the chains that it makes too; they hold what it put there.
    assert sorted(line for line in after if line.startswith("-A") and line not in before.splitlines()) == [
        "-A INPUT -j KUBE-FIREWALL",
        "-A KUBE-FIREWALL -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    ]
    assert [line for line in before.splitlines() if line not in after] == []


@fresh_network
def test_the_nftables_mode() -> None:
    before = kubelet_and_others("nft")
    for family in ("ip", "ip6"):
        do("nft", f'add table {family} kube-proxy {{ comment "rules for kube-proxy"; }}')
        do("nft", f"add chain {family} kube-proxy services")
        do("nft", f"add chain {family} kube-proxy nat {{ type nat hook output priority -100; }}")
        do("nft", f"add rule {family} kube-proxy nat jump services")
        do("nft", f"add set {family} kube-proxy ports {{ type inet_service; }}")
    assert kproxy("cleanup").returncode == 0
    assert "table ip kube-proxy" in do("nft", "list", "tables")
    done = kproxy("cleanup", "--peer", "kube-proxy")
    assert done.returncode == 0
    assert done.stderr.count("table=kube-proxy") == 2
    tables = do("nft", "list", "tables").splitlines()
    assert {"table inet kube-proxy", "table ip mine"} < set(tables)
    assert not {"table ip kube-proxy", "table ip6 kube-proxy"} & set(tables)
    assert rules() == before
    again = kproxy("cleanup", "--peer", "kube-proxy")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variant", "end", "kubelet"),
    [
        *itertools.product(("legacy", "nft"), ("cleanup", "nftables"), (True, False)),
        pytest.param("legacy", "ipvs", False, marks=pytest.mark.ipvs),
    ],
)
@fresh_network
def test_127_0_0_0_is_never_open_without_its_guard(variant: str, end: str, kubelet: bool) -> None:
    if kubelet:
        kubelet_and_others(variant)
    run_once("--iptables-variant", variant)
    assert ("block incoming localnet connections" in rules(), LOCALNET.read_text()) == (True, "1\n")
    do("ip", "link", "set", "lo", "up")  # IPVS takes no endpoint where the kernel has no addresses yet
    if end == "cleanup":
        assert kproxy("cleanup").returncode == 0
    else:
        run_once("--proxy-mode", end)
    guarded = "block incoming localnet connections" in rules()
    assert (guarded, LOCALNET.read_text()) == ((True, "1\n") if kubelet else (False, "0\n"))


@fresh_network
def test_a_parameter_that_came_without_a_guard_stays() -> None:
    LOCALNET.write_text("1")
    assert kproxy("cleanup").returncode == 0
    assert LOCALNET.read_text() == "1\n"


@pytest.mark.ipvs
@fresh_network
def test_the_ipvs_mode() -> None:
    iptables("legacy", "-t nat -A POSTROUTING -s 10.244.0.5/32 -j RETURN")
    do("ipset", "create", "mine", "hash:ip")
    before = rules()
    do("ipset", "restore", stdin=IPVS_SETS)
    do("iptables-legacy-restore", "--noflush", stdin=IPVS_RULES)
    do("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    do("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
    for address in ("10.96.0.1:443", "192.0.2.10:30080"):
        do("ipvsadm", "-A", "-t", address, "-s", "rr")
        do("ipvsadm", "-a", "-t", address, "-r", "10.244.0.7:8080", "-m")
    done = kproxy("cleanup", "--peer", "kube-proxy")
    assert done.returncode == 0, done.stderr
    assert (do("ipvsadm", "-Sn"), do("ipset", "list", "-n")) == ("", "mine\n")
    assert "kube-ipvs0" not in do("ip", "-br", "link")
    left = set(rules().splitlines()) - set(before.splitlines())
    assert not any("KUBE" in line for line in left)
    assert "-A POSTROUTING -s 10.244.0.5/32 -j RETURN" in rules()


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@fresh_network
def test_kproxy_s_own_rules_go_as_without_the_flag(variant: str) -> None:
    before = kubelet_and_others(variant)
    run_once("--iptables-variant", variant)
    assert kproxy("cleanup", "--peer", "kube-proxy").returncode == 0
    made = set(rules().splitlines()) - set(before.splitlines())
    assert {line.split()[1] for line in made if line.startswith("-A")} <= {
        "INPUT", "OUTPUT", "KUBE-FIREWALL", "KUBE-MARK-MASQ",
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@fresh_network
def test_what_a_killed_trial_left_is_removed(variant: str) -> None:
    iptables(variant, "-t nat -A POSTROUTING -j RETURN")
    before = rules()
    iptables(variant, "-t nat -N KPROXY-PROBE")
    iptables(variant, "-t nat -A KPROXY-PROBE -m mark --mark 0x4000/0x4000")
    assert kproxy("cleanup").returncode == 0
    assert rules() == before


def test_another_peer_is_refused() -> None:
    done = kproxy("cleanup", "--peer", "cilium")
    assert (done.returncode, "'kube-proxy'" in done.stderr) == (1, True)


NATIVE = [
    "ip nat PREROUTING ip daddr 1.2.3.4 dnat to tcp dport map { 80 : 10.0.0.1, 81 : 10.0.0.2 }",
    "ip filter INPUT ct state established accept",
    "ip6 nat PREROUTING ct state established accept",
    "ip6 filter KUBE-FORWARD ct state established accept",
]
"""Rules that iptables-nft has no words for, at the head of a chain."""


def nft_rules() -> str:
    """Everything in nftables without counts of packets."""
    return do("nft", "-s", "list", "ruleset")


@pytest.mark.parametrize("end", ["cleanup", "nftables", "legacy"])
@fresh_network
def test_rules_beside_native_ones_go_and_these_stay(end: str) -> None:
    run_once("--iptables-variant", "nft")
    for rule in NATIVE:
        do("nft", f"insert rule {rule}")
    assert "KUBE-" in nft_rules()
    if end == "cleanup":
        done = kproxy("cleanup")
        assert done.returncode == 0, done.stderr
    else:
        run_once(*(("--proxy-mode", end) if end == "nftables" else ("--iptables-variant", end)))
    left = nft_rules()
    assert "KUBE-" not in left
    assert (left.count("ct state established accept"), left.count("dport map {")) == (2, 1)


@fresh_network
def test_what_a_native_rule_holds_is_named_and_no_success() -> None:
    run_once("--iptables-variant", "nft")
    do("nft", "insert rule ip nat PREROUTING ct state new jump KUBE-SERVICES")
    do("nft", 'insert rule ip6 filter INPUT iifname vmap { "lo" : jump KUBE-FORWARD }')
    done = kproxy("cleanup")
    assert done.returncode == 1
    kept = [line for line in done.stderr.splitlines() if "event=chain_delete_failed" in line]
    assert [("KUBE-SERVICES" in line, "KUBE-FORWARD" in line) for line in kept] == [
        (True, False),
        (False, True),
    ]
    chains = [line for line in nft_rules().splitlines() if line.startswith("\tchain KUBE-")]
    assert chains == ["\tchain KUBE-SERVICES {", "\tchain KUBE-FORWARD {"]
    do("nft", "flush chain ip nat PREROUTING")
    do("nft", "flush chain ip6 filter INPUT")
    assert kproxy("cleanup").returncode == 0
    assert "KUBE-" not in nft_rules()


@fresh_network
def test_chains_that_no_program_can_remove_are_no_success(tmp_path: Path) -> None:
    run_once("--iptables-variant", "nft")
    programs = BrokenTools(tmp_path)
    plain = [name.replace("-nft-", "-") for name in NAMES if "-nft-" in name]
    for name in (*NAMES, *plain):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    done = kproxy("cleanup", through=tuple(Sandbox(tools=programs.directory).command()))
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if "event=cleanup_failed" in line]
    assert len(failed) == 2
    assert all("chains are there, as mangle/KUBE-PROXY-CANARY" in line for line in failed)
