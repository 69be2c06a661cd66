"""`kproxy explain` and `changes` beside a running kproxy: the kernel agrees, and planted faults are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.nodes import EXAMPLES, FLAGS, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

MODES = {
    "nftables": ("--proxy-mode=nftables",),
    "nft": ("--proxy-mode=iptables", "--iptables-variant=nft", "--iptables-layout=standard"),
}
POD = "10.244.1.99"
WEB = {f"10.244.{node}.{pod}:8080" for node in (1, 2) for pod in (10, 11)}


def a_node() -> None:
    """Give the namespace the addresses and routes of a node with a bridge of pods."""
    for command in (
        "link set lo up",
        "link add eth0 type veth peer name wire",
        "address add 192.168.100.10/24 dev eth0",
        "-6 address add fd00:192:168:100::10/64 dev eth0 nodad",
        "link set eth0 up",
        "link set wire up",
        "link add pods type bridge",
        "address add 10.244.1.1/24 dev pods",
        "link set pods up",
        "route add default via 192.168.100.1",
        "-6 route add default via fd00:192:168:100::1 dev eth0",
    ):
        do("ip", *command.split())
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{name}").write_text("1")


def explain(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of the command, which asks the running agent."""
    done = kproxy("explain", "-o", "json", *arguments)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def changes() -> list[dict[str, Any]]:
    """What `kproxy changes` lists of one Service."""
    return [json.loads(line) for line in kproxy("changes", "-o", "json", "demo/web").stdout.splitlines()]


def outcomes(found: dict[str, Any], side: str) -> dict[str, tuple[float, bool]]:
    return {
        each["endpoint"] or each["verdict"]: (round(each["probability"], 2), each["masquerade"])
        for each in found[side]["outcomes"]
    }


@pytest.mark.parametrize("mode", MODES)
@fresh_network
def test_the_kernel_agrees_with_what_is_desired(mode: str) -> None:
    a_node()
    with Running(*MODES[mode]) as running:
        running.ready()
        status, found = explain(POD, "tcp", "demo/web")
        assert (status, found["differences"]) == (0, [])
        assert outcomes(found, "actual") == outcomes(found, "desired") == dict.fromkeys(WEB, (0.25, False))
        assert all(each["steps"] for each in found["actual"]["outcomes"])
        assert found["since"]["applied"] is not None
        assert f"--proxy-mode={found['mode']}" in MODES[mode]
        status, found = explain("fd00:192:168:100::10", "tcp", "demo/web:http")
        assert (status, found["source"]["where"], found["differences"]) == (0, "node", [])
        assert {each["masquerade"] for each in found["actual"]["outcomes"]} == {True}


@fresh_network
def test_rules_that_others_changed_are_named_by_what_they_do() -> None:
    a_node()
    with Running(*MODES["nftables"]) as running:
        running.ready()
        do("nft", "add table ip other")
        do("nft", "add chain ip other forward { type filter hook forward priority -10; }")
        do("nft", "add rule ip other forward ip daddr 10.244.2.0/24 drop")
        status, found = explain(POD, "tcp", "demo/web")
        assert status == 2
        (difference,) = found["differences"]
        assert "ip other forward: ip daddr 10.244.2.0/24 drop" in difference
        assert outcomes(found, "actual")["drop"] == (0.5, False)
        assert outcomes(found, "desired") == dict.fromkeys(WEB, (0.25, False))
        text = kproxy("explain", "--rules", POD, "tcp", "demo/web")
        assert text.returncode == 2
        assert "  kernel    DIFFERS: 50 % of connections, what should go to 10.244.2.10:8080" in text.stdout


@fresh_network
def test_a_change_is_desired_at_once_and_listed_with_its_times(tmp_path: Path) -> None:
    a_node()
    objects = tmp_path / "objects"
    shutil.copytree(EXAMPLES, objects)
    flags = tuple(str(objects) if each == str(EXAMPLES) else each for each in FLAGS)
    with Running(*MODES["nftables"], objects=flags) as running:
        running.ready()
        before = [
            json.loads(line) for line in kproxy("changes", "-o", "json", "demo/web").stdout.splitlines()
        ]
        assert {each["family"] for each in before} == {"IPv4", "IPv6"}
        file = objects / "10-web.yaml"
        other = tmp_path / "new"
        other.write_text(file.read_text().replace("10.244.2.11]", "10.244.2.12]"))
        other.rename(file)
        running.wait("synced", "IPv4", "elements=", times=2)
        change = next(each for each in reversed(changes()) if each["family"] == "IPv4")
        assert (change["added"], change["removed"]) == (["10.244.2.12:8080"], ["10.244.2.11:8080"])
        assert change["arrived"] <= change["taken"] <= change["planned"] <= change["applied"]
        status, found = explain(POD, "tcp", "demo/web")
        assert status == 0
        assert "10.244.2.12:8080" in outcomes(found, "actual")
        assert found["since"]["applied"] == change["applied"]
