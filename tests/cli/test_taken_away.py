"""What a sync needs and others took away, by hand and in any order, is made again while kproxy runs."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy.kernel import nfacct
from tests.cli.nodes import EXAMPLES, FLAGS, PATIENCE, do, rules
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
COUNTERS = {"ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"}
ANOTHER = """apiVersion: v1
kind: Service
metadata: {name: later, namespace: default}
spec: {clusterIP: 10.96.77.77, clusterIPs: [10.96.77.77], ports: [{port: 80}]}
"""
MODES = {
    "nft": ("--proxy-mode=iptables", "--iptables-variant=nft", "--iptables-layout=standard"),
    "nft scalable": ("--proxy-mode=iptables", "--iptables-variant=nft", "--iptables-layout=scalable"),
    "legacy": ("--proxy-mode=iptables", "--iptables-variant=legacy", "--iptables-layout=standard"),
    "legacy scalable": ("--proxy-mode=iptables", "--iptables-variant=legacy", "--iptables-layout=scalable"),
    "nftables": ("--proxy-mode=nftables",),
}


def flush_all(mode: str, chance: random.Random) -> None:
    """Everything goes, as an operator's script would have it."""
    if not mode.startswith("legacy"):
        do("nft", "flush ruleset")
    else:
        names = [f"{name}-legacy" for name in ("iptables", "ip6tables")]
        for name, command, table in itertools.product(names, ("-F", "-X"), ("nat", "filter", "mangle")):
            do(name, "-w", "5", "-t", table, command)
    forget_counters()


def delete_one_by_one(mode: str, chance: random.Random) -> None:
    """Rules, chains and objects, in random order; what is in use stays."""
    if mode == "nftables":
        for line in do("nft", "-s", "list", "table", "ip", "kproxy").splitlines():
            words = line.split()
            if words[:1] in (["chain"], ["map"], ["set"]):
                run(("nft", f"flush {words[0]} ip kproxy {words[1]}"))
                run(("nft", f"delete {words[0]} ip kproxy {words[1]}"))
        return
    variant = mode.partition(" ")[0]
    commands, table = [], ""
    for line in do(f"iptables-{variant}-save").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":KUBE-"):
            chain = line[1:].split()[0]
            commands += [("-t", table, "-F", chain), ("-t", table, "-X", chain)]
        elif "-j KUBE-" in line and not line.startswith("-A KUBE-"):
            commands.append(("-t", table, "-F", line.split()[1]))
    for arguments in chance.sample(commands, 40):
        run((f"iptables-{variant}", "-w", "5", *arguments))
    forget_counters()


def delete_one_of_each_kind(mode: str, chance: random.Random) -> None:
    """A map or set of nftables that chains use, or a chain deep in the tables."""
    if mode == "nftables":
        do("nft", "delete table ip kproxy; add table ip kproxy; add chain ip kproxy services")
        do("nft", "flush table ip6 kproxy")
        return
    variant = mode.partition(" ")[0]
    dump = do(f"iptables-{variant}-save", "-t", "nat").splitlines()
    chains = [line[1:].split()[0] for line in dump if line.startswith(":KUBE-")]
    for chain in chance.sample(chains, 5):
        do(f"iptables-{variant}", "-w", "5", "-t", "nat", "-F", chain)


def run(command: tuple[str, ...]) -> None:
    subprocess.run(command, check=False, capture_output=True)


def forget_counters() -> None:
    for name in COUNTERS:
        try:
            nfacct.delete(name)
        except nfacct.NfacctError:
            continue  # rules use it


def state(mode: str) -> list[str]:
    """All that kproxy makes here."""
    if mode == "nftables":
        lines = [
            do("nft", "-s", "-n", "list", "table", family, "kproxy")
            for family in ("ip", "ip6")
            if f"table {family} kproxy" in do("nft", "list", "tables").splitlines()
        ]
        return sorted(" ".join(lines).replace(",", " ").split())
    own = [line for line in rules().splitlines() if "KUBE-" in line]
    return sorted([*own, *nfacct.read(), LOCALNET.read_text()])


def until(observe: Callable[[], list[str]], expected: list[str], running: Running) -> None:
    """Rules announce no change, so this looks again and again."""
    deadline = time.monotonic() + PATIENCE / 2
    while (found := observe()) != expected:
        missing, extra = set(expected) - set(found), set(found) - set(expected)
        assert time.monotonic() < deadline, (missing, extra, running.lines[-10:])
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("mode", "damage"),
    [
        *((mode, flush_all) for mode in MODES),
        *((mode, delete_one_by_one) for mode in ("nft", "legacy scalable", "nftables")),
        *((mode, delete_one_of_each_kind) for mode in ("nft scalable", "legacy", "nftables")),
    ],
)
@fresh_network
def test_it_is_made_again(
    mode: str,
    damage: Callable[[str, random.Random], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    objects = tmp_path_factory.mktemp("m") / "objects"
    shutil.copytree(EXAMPLES, objects)
    flags = [str(objects) if each == str(EXAMPLES) else each for each in FLAGS]
    chance = random.Random(f"{mode}")
    with Running(*MODES[mode], objects=tuple(flags)) as running:
        running.ready()
        before = state(mode)
        assert before
        # Nothing else changes: it is noticed.
        damage(mode, chance)
        until(lambda: state(mode), before, running)
        # A change arrives at the same time: its sync makes all again.
        (objects / "later.yaml").write_text(ANOTHER)
        damage(mode, chance)
        running.wait("drift_found")
        (objects / "later.yaml").unlink()
        until(lambda: state(mode), before, running)
        assert running.end() == 0


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@fresh_network
def test_route_localnet_is_set_again(variant: str) -> None:
    with Running("--proxy-mode=iptables", f"--iptables-variant={variant}") as running:
        running.ready()
        LOCALNET.write_text("0")
        running.wait("sysctl_set", "route_localnet", times=2)
        assert LOCALNET.read_text() == "1\n"
        assert running.end() == 0
