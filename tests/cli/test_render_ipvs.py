"""`kproxy render --proxy-mode ipvs` prints what `kproxy run` makes, in the words of the tools."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from tests.kernel.namespace import fresh_network

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
CLUSTER = "10.244.0.0/16,fd00:10:244::/56"
FLAGS = ["--manifests", str(EXAMPLES), "--proxy-mode", "ipvs", "--cluster-cidr", CLUSTER]
NODE = "node-a"
NODE_ADDRESSES = ("192.168.100.10/24", "fd00:192:168:100::10/64")
TOOLS = {"ipvsadm-restore", "ip -batch", "ipset restore", "iptables-restore", "ip6tables-restore"}


def render(*flags: str) -> dict[str, list[str]]:
    """The sections that are printed, by the program that reads them."""
    result = CliRunner().invoke(main, ["render", *FLAGS, "--node", NODE, *flags])
    assert result.exit_code == 0, result.output
    sections: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        if line.removeprefix("# ") in TOOLS:
            sections[line.removeprefix("# ")] = current = []
        else:
            current.append(line)
    return sections


@pytest.mark.parametrize("family", ["4", "6"])
def test_every_object_is_a_line(family: str) -> None:
    sections = render("--ip-family", family)
    servers = sections["ipvsadm-restore"]
    web = "10.96.0.80" if family == "4" else "[fd00:10:96::80]"
    assert f"-A -t {web}:80 -s rr" in servers
    assert all(line.startswith(("-A ", "-a ")) for line in servers)
    assert [line for line in sections["ipset restore"] if not line.startswith(("create ", "add "))] == []
    assert len({*servers}) == len(servers)


def test_the_scheduler_is_the_operators() -> None:
    assert all(
        line.split(" -s ")[1].startswith("mh") and line.endswith("-b mh-port")
        for line in render("--ipvs-scheduler", "mh")["ipvsadm-restore"]
        if line.startswith("-A") and not line.startswith("-A -f ")
    )


@pytest.mark.parametrize("name", ["fastest", "rr,sh-port"])
def test_an_unknown_scheduler_is_refused(name: str) -> None:
    result = CliRunner().invoke(main, ["render", *FLAGS, "--ipvs-scheduler", name])
    assert result.exit_code == 1
    assert f'--ipvs-scheduler: "{name}" is ' in result.output


def printed(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.root
@pytest.mark.ipvs
@fresh_network
def test_a_node_has_exactly_what_is_printed() -> None:
    addresses = [["address", "add", address, "dev", "lo"] for address in NODE_ADDRESSES]
    for command in (["link", "set", "lo", "up"], *addresses):
        subprocess.run(["ip", *command], check=True)
    flags = [*FLAGS, "--hostname-override", NODE, "--once", "--iptables-variant", "legacy"]
    run = subprocess.run(
        [sys.executable, "-m", "kproxy", "run", *flags, "--healthz-bind-address", ""],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    wanted = {family: render("--ip-family", family) for family in ("4", "6")}

    def both(program: str) -> list[str]:
        return sorted(line for sections in wanted.values() for line in sections[program])

    assert sorted(printed("ipvsadm", "-Sn")) == both("ipvsadm-restore")
    created = re.compile(r" hashsize \d+| bucketsize \d+| initval 0x[0-9a-f]+")
    assert sorted(created.sub("", line) for line in printed("ipset", "save")) == both("ipset restore")
    held = [line.split()[3] for line in printed("ip", "-o", "address", "show", "dev", "kube-ipvs0")]
    assert sorted(f"address add {ip} dev kube-ipvs0" for ip in held) == both("ip -batch")
    for family, program in (("4", "iptables"), ("6", "ip6tables")):
        saved = {line for line in printed(f"{program}-legacy-save") if line.startswith("-A KUBE-")}
        lines = wanted[family][f"{program}-restore"]
        assert saved == {line for line in lines if line.startswith("-A KUBE-")}
