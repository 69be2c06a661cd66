"""`kproxy drops` beside a running kproxy, with real packets: who was refused, by what, and how often."""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kproxy.agent.policy.refused import KEPT
from kproxy.cli.main import main
from kproxy.inspect import drops as inspected
from kproxy.inspect.drops import DropList
from kproxy.inspect.explain.report import REFUSED
from kproxy_lab.forked import Child
from kproxy_lab.lab import Lab
from kproxy_lab.lab.namespaces import new_socket
from tests.packets.program import DEADLINE, Kproxy
from tests.peer.objects import SPEC, address, node

JSON = dict[str, Any]
FLOOD = int(os.environ.get("KPROXY_FLOOD", "20000"))
"""Packets of each flood."""

WEB, CLIENT, JOB = "shop/web", "shop/client", "batch/job"
PLACES = {WEB: "local-0", CLIENT: "remote-0", JOB: "local-1"}


def pod(key: str) -> JSON:
    namespace, name = key.split("/")
    place = PLACES[key]
    ips = [address(place, 4), address(place, 6)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": key, "labels": {"app": name}},
        "spec": {"nodeName": SPEC.node_name if place.startswith("local") else SPEC.peer_name},
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]},
    }


def policy(key: str, **spec: Any) -> JSON:
    namespace, name = key.split("/")
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


OBJECTS = [
    {"apiVersion": "v1", "kind": "Node", **node()},
    *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("shop", "batch")),
    *map(pod, PLACES),
    policy(
        "shop/allow-client",
        podSelector={"matchLabels": {"app": "web"}},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 8080}]}],
    ),
    policy("batch/quiet", podSelector={}, policyTypes=["Egress"], egress=[]),
]


class Node:
    """A lab whose node runs kproxy."""

    def __init__(self, lab: Lab, objects: Path) -> None:
        self.lab = lab
        self.objects = objects
        flags = ("--manifests", str(objects), "--hostname-override", SPEC.node_name)
        self.program = Kproxy(lab.node, ["run", *flags, "--network-policy", "--proxy-mode", "nftables"])
        self.program.wait_log("policy_synced", "IPv4")
        self.program.wait_log("policy_synced", "IPv6")
        self.program.wait_log("synced", "IPv6")  # the servers are there before services are synced
        self.pods = {each.name: each.namespace for each in lab.pods}

    def kproxy(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.lab.node.run([sys.executable, "-m", "kproxy", *arguments])

    def drops(self, *arguments: str) -> list[JSON]:
        return [
            json.loads(line) for line in self.kproxy("drops", "-o", "json", *arguments).stdout.splitlines()
        ]

    def counted(self, name: str, namespace: str, direction: str) -> float:
        """The number of packets that a policy refused, as /metrics has it."""
        script = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:10249/metrics').read().decode())"
        )
        text = self.lab.node.run([sys.executable, "-c", script]).stdout
        labels = f'direction="{direction}",namespace="{namespace}",policy="{name}"'
        series = "kproxy_network_policy_drops_total{"
        found = [line for line in text.splitlines() if line.startswith(series)]
        wanted = [line for line in found if all(label in line for label in labels.split(","))]
        return float(wanted[0].rpartition(" ")[2]) if wanted else 0.0

    def send(self, source: str, ip: str, port: int, count: int = 1, *, source_port: int = 0) -> int:
        """Send datagrams from a pod; the port they were sent from."""
        kind = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with self.pods[PLACES[source]].call(new_socket, kind, socket.SOCK_DGRAM) as sender:
            sender.setblocking(True)  # noqa: FBT003
            sender.bind(("", source_port))
            for _ in range(count):
                sender.sendto(b"?", (ip, port))
            return int(sender.getsockname()[1])

    def flood(self, source: str, ip: str, port: int, count: int, *, sources: bool) -> None:
        """Send many datagrams as fast as it goes; from or, if `port` is 0, to a port each."""
        namespace = self.pods[PLACES[source]]
        with namespace.call(new_socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_CHECKSUM, 6)
            for number in range(count):
                ports = (10000 + number % 50000 if sources else 9999, port or 10000 + number % 50000)
                sender.sendto(struct.pack("!HHHHI", *ports, 12, 0, number), (ip, 0))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if reasons := Lab.missing():
        pytest.skip("; ".join(reasons))
    objects = tmp_path_factory.mktemp("objects")
    (objects / "all.yaml").write_text(yaml.safe_dump_all(OBJECTS))
    with Lab(SPEC) as lab:
        made = Node(lab, objects)
        try:
            yield made
        finally:
            assert made.program.end() == 0


@pytest.mark.root
@pytest.mark.parametrize("family", [4, 6])
def test_a_refused_flow_is_named_with_both_pods_the_policies_and_the_nearest_miss(
    running: Node, family: Any
) -> None:
    source, web = address("remote-0", family), address("local-0", family)
    port = running.send(CLIENT, web, 9090, 3)
    (found,) = [each for each in running.drops() if each["wanted"] == {"ip": web, "port": 9090, "pod": WEB}]
    assert (datetime.now(UTC) - datetime.fromisoformat(found["time"])).total_seconds() < DEADLINE
    nearest = "shop/allow-client ingress[0] allows this source, but only TCP 8080"
    assert {name: value for name, value in found.items() if name != "time"} == {
        "source": {"ip": source, "port": port, "pod": CLIENT},
        "wanted": {"ip": web, "port": 9090, "pod": WEB},
        "protocol": "UDP",
        "packets": 3,
        "reason": "network_policy",
        "detail": f"ingress of shop/web is isolated by shop/allow-client: {nearest}",
        "direction": "ingress",
        "policies": ["shop/allow-client"],
        "nearest": nearest,
    }


@pytest.mark.root
def test_egress_is_named_at_the_pod_that_sends(running: Node) -> None:
    outside = SPEC.client_ip4[0]
    running.send(JOB, outside, 53, 2)
    (found,) = [
        each for each in running.drops() if each["direction"] == "egress" and each["wanted"]["port"] == 53
    ]
    assert found["source"]["pod"] == JOB
    assert found["wanted"] == {"ip": outside, "port": 53}
    assert (found["policies"], found["packets"]) == (["batch/quiet"], 2)
    assert found["detail"] == "egress of batch/job is isolated by batch/quiet: batch/quiet allows nothing"


@pytest.mark.root
def test_text_has_a_line_for_a_flow(running: Node) -> None:
    running.send(CLIENT, address("local-0", 4), 9091)
    lines = running.kproxy("drops", "--since", "1h").stdout.splitlines()
    (line,) = [each for each in lines if ":9091)" in each]
    assert f"shop/client ({address('remote-0', 4)}:" in line
    assert f"→ shop/web ({address('local-0', 4)}:9091) UDP  1 packet  ingress of shop/web is isolated" in line


@pytest.mark.root
def test_following_shows_each_flow_as_it_comes_and_again_when_it_is_refused_again(running: Node) -> None:
    follower = running.lab.node.popen(
        [sys.executable, "-m", "kproxy", "drops", "-f", "-o", "json"], stdout=subprocess.PIPE
    )
    web = address("local-0", 4)
    try:
        assert follower.stdout is not None
        running.send(CLIENT, web, 9200)
        first = _next(follower, 9200)
        assert first["packets"] == 1
        running.send(CLIENT, web, 9200, 2)
        assert _next(follower, 9200)["packets"] == 3
    finally:
        follower.kill()
        follower.wait()


def _next(follower: Child, port: int) -> JSON:
    assert follower.stdout is not None
    for line in follower.stdout:
        found: JSON = json.loads(line)
        if found["wanted"]["port"] == port:
            return found
    raise AssertionError("it has ended")


@pytest.mark.root
def test_a_port_that_other_users_can_reach_says_nothing(running: Node) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:10249{}').status)"
    for path in ("/drops", "/policies"):
        done = running.lab.node.run([sys.executable, "-c", script.format(path)], check=False)
        assert "HTTP Error 404" in done.stderr
    status = running.lab.node.run([sys.executable, "-c", script.format("/metrics")])
    assert status.stdout.strip() == "200"


@pytest.mark.root
def test_packets_are_counted_by_policy(running: Node) -> None:
    before = running.counted("allow-client", "shop", "ingress")
    running.send(CLIENT, address("local-0", 4), 9300, 7)
    assert running.counted("allow-client", "shop", "ingress") == before + 7
    before = running.counted("quiet", "batch", "egress")
    running.send(JOB, address("local-0", 4), 9301, 3)
    assert running.counted("quiet", "batch", "egress") == before + 3


@pytest.mark.root
@pytest.mark.parametrize("kind", ["one flow", "a source port each", "a port each"])
def test_a_flood_is_counted_and_stays_bounded(running: Node, kind: str) -> None:
    web, port = address("local-0", 6), {"one flow": 9401, "a source port each": 9402, "a port each": 0}[kind]
    before = _cpu(running.program.pid)
    running.flood(CLIENT, web, port, FLOOD, sources=kind == "a source port each")
    found = running.drops()
    spent = _cpu(running.program.pid) - before
    print(f"{kind}: {FLOOD} packets, {spent:.2f} s of CPU in kproxy")  # noqa: T201
    of_web = [each for each in found if each["wanted"]["ip"] == web]
    if port:
        (flow,) = [each for each in of_web if each["wanted"]["port"] == port]
        assert (flow["packets"], flow["policies"]) == (FLOOD, ["shop/allow-client"])
    else:
        assert 1000 < len(of_web) <= len(found) <= KEPT
        assert {each["wanted"]["pod"] for each in of_web} == {WEB}
        assert sum(each["source"]["port"] > 0 for each in of_web) < FLOOD / 4
        running.send(CLIENT, address("local-0", 4), 9403)
        assert running.drops()[-1]["wanted"]["port"] == 9403


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.root
def test_explain_agrees_with_the_kernel_and_names_the_same_policies(running: Node) -> None:
    source, web = address("remote-0", 4), address("local-0", 4)
    refused = running.lab.node.run(
        [sys.executable, "-m", "kproxy", "explain", source, "udp", f"{web}:9090", "-o", "json"], check=False
    )
    assert refused.returncode == REFUSED, refused.stderr
    found = json.loads(refused.stdout)
    assert (found["differences"], found["policies"][0]["policies"]) == ([], ["shop/allow-client"])
    steps = found["actual"]["outcomes"][0]["steps"]
    assert any(step.startswith("ip kproxy-policy i-") for step in steps), steps
    allowed = running.kproxy("explain", source, "tcp", f"{web}:8080")
    assert "shop/allow-client ingress[0] allows this source (ingress of shop/web)" in allowed.stdout
    assert "kernel    agrees" in allowed.stdout


@pytest.mark.root
def test_a_changed_policy_loses_no_count(running: Node) -> None:
    running.send(CLIENT, address("local-0", 4), 9600, 5)
    before = running.counted("allow-client", "shop", "ingress")
    mark = running.program.mark()
    changed = [
        policy("shop/allow-client", podSelector={}, ingress=[{"ports": [{"port": 8081}]}])
        if each.get("metadata", {}).get("name") == "allow-client"
        else each
        for each in OBJECTS
    ]
    (running.objects / "all.yaml").write_text(yaml.safe_dump_all(changed))
    running.program.wait_log("policy_synced", "IPv4", since=mark)
    running.program.wait_log("policy_synced", "IPv6", since=mark)
    running.send(CLIENT, address("local-0", 4), 9601, 2)
    assert running.counted("allow-client", "shop", "ingress") == before + 2
    flow = running.drops()[-1]
    assert (flow["wanted"]["port"], flow["nearest"]) == (
        9601,
        "shop/allow-client ingress[0] allows this source, but only TCP 8081",
    )


def test_what_could_not_be_reported_is_said_beside_the_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    def fetch(since: float | None = None) -> DropList:
        asked.append(since)
        return DropList(0, (), 5, ("the kernel has no NFLOG",))

    monkeypatch.setattr(inspected, "fetch", fetch)
    result = CliRunner().invoke(main, ["drops", "--since", "10m"], prog_name="kproxy")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == ["note: the kernel has no NFLOG", "note: 5 more were refused"]
    assert asked == [600.0]


@pytest.mark.parametrize("since", ["10", "x", "-5m", "0"])
def test_a_time_that_is_no_duration_is_refused(since: str) -> None:
    result = CliRunner().invoke(main, ["drops", "--since", since], prog_name="kproxy")
    assert (result.exit_code, result.stdout) == (1, "")
    assert since in result.stderr


@pytest.mark.root
@pytest.mark.parametrize("family", [4, 6])
def test_an_echo_request_is_refused_and_shown_without_a_port(running: Node, family: Any) -> None:
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    number = socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
    request = struct.pack("!BBHHH", 128 if family == 6 else 8, 0, 0 if family == 6 else 0xF7FE, 1, 0)
    web = address("local-0", family)
    with running.pods[PLACES[CLIENT]].call(new_socket, kind, socket.SOCK_RAW, number) as sender:
        sender.sendto(request, (web, 0))
    word = "ICMPv6" if family == 6 else "ICMP"
    (found,) = [each for each in running.drops() if each["protocol"] == word]
    assert (found["wanted"], found["packets"]) == ({"ip": web, "port": 0, "pod": WEB}, 1)
    assert found["policies"] == ["shop/allow-client"]
