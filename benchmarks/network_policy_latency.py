"""How soon packets obey NetworkPolicies, what they cost in memory, and what a first packet pays.

    python -m benchmarks.network_policy_latency
    python -m benchmarks.network_policy_latency --pods 1000 --policies 100 --samples 50 --skip memory

As root. An API server serves the pods of many namespaces; a few of them are real, in network namespaces, and
kproxy runs in the node between them. Latency is from the begin of a write to the first packet with the new
verdict, which a probe notices within about a millisecond. The cost of a first packet is the CPU time of
sending it through the node, forwarding included, with ten rules to pass at each end and without any.
"""

import itertools
import random
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kproxy_lab.apiserver import ApiServer
from kproxy_lab.lab import Lab, LabSpec, Pod
from kproxy_lab.lab.flows import Flow, FlowTester, ends_of
from tests.packets.program import Kproxy
from tests.policy.objects import (
    blocks,
    labels_in,
    pods_with,
    policy,
    rule_from,
    rule_to,
    spaces_with,
    spec,
)

Object = dict[str, Any]

SPACES = 50
APPS = 20
PROBE = 7000
PATIENCE = 60.0
RULES = 10
FIRST_PACKETS = 8000
CREATED = "2026-01-01T00:00:00Z"
SERVER, NEIGHBOUR = pods_with(app="server"), pods_with(app="neighbour")


def namespace(number: int) -> Object:
    labels = {"team": f"t{number % 10}", "env": ("prod", "test")[number % 2]}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns-{number}", "labels": labels}}


def pod(
    name: str, space: str, labels: dict[str, str], ips: Sequence[str], node: str, padding: int = 0
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": space,
            "labels": labels,
            "annotations": {"padding": "x" * padding},
            "creationTimestamp": CREATED,
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": "main", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}
            ],
        },
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips]},
    }


def random_policy(number: int, draw: random.Random) -> Object:
    """A policy as applications have: some peers by labels, some ranges, a few ports."""
    app = labels_in(app=f"app-{draw.randrange(APPS)}")
    peers = [pods_with(app=f"app-{draw.randrange(APPS)}")]
    if draw.random() < 0.5:
        peers.append(spaces_with(team=f"t{draw.randrange(10)}"))
    if draw.random() < 0.3:
        peers.append({"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"10.{draw.randrange(256)}.0.0/16"]}})
    ports: list[Object] = [{"port": draw.choice((80, 443, 5432, 8080))}, {"port": 53, "protocol": "UDP"}]
    egress = [rule_to(*peers), rule_to(ports=ports[1:])] if draw.random() < 0.4 else None
    made = spec(app, ingress=[rule_from(*peers, ports=ports)], egress=egress)
    return policy(f"ns-{number % SPACES}/policy-{number}", made)


def cluster(pods: int, policies: int, local: int, padding: int) -> Iterator[Object]:
    """The objects; pods of this node come first."""
    draw = random.Random(1)
    yield from (namespace(number) for number in range(SPACES))
    for number in range(pods):
        ips = (f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", f"fd00:64::{number:x}")
        labels = {"app": f"app-{draw.randrange(APPS)}", "version": f"v{draw.randrange(3)}"}
        node = "node-a" if number < local else f"node-{number % 50}"
        yield pod(f"pod-{number}", f"ns-{number % SPACES}", labels, ips, node, padding)
    yield from (random_policy(number, draw) for number in range(policies))


class Bench:
    """A lab and its API server. Of the real pods, `server` is isolated; `client` is on another node."""

    def __init__(self, lab: Lab, api: ApiServer, kubeconfig: Path, tester: FlowTester) -> None:
        self.lab, self.api, self.tester = lab, api, tester
        self._kubeconfig = api.kubeconfig(kubeconfig)
        self.server, self.neighbour = lab.local_pods
        self.client = lab.remote_pods[0]
        self.apply(self.real(self.server, "server", {"app": "server"}))
        self.apply(self.real(self.neighbour, "neighbour", {"app": "neighbour"}))
        self.apply(self.real(self.client, "client", {"app": "client"}))
        self.apply(policy("ns-0/deny", spec(SERVER["podSelector"], ingress=[])))

    def real(self, at: Pod, name: str, labels: dict[str, str]) -> Object:
        return pod(name, "ns-0", labels, (at.ip4, at.ip6), at.node_name)

    def apply(self, obj: Object) -> None:
        self.api.apply(obj)

    def start(self, *, enforce: bool = True) -> Kproxy:
        flags = ["--kubeconfig", str(self._kubeconfig), "--hostname-override", "node-a"]
        flags += ["--proxy-mode", "nftables", "--cluster-cidr", "10.0.0.0/8,fd00::/16"]
        flags += ["--network-policy"] if enforce else []
        return Kproxy(self.lab.node, ["run", *flags])

    def passes(self, source: Pod) -> bool:
        """Whether a new datagram from a pod reaches the server."""
        flow = Flow(source.namespace, self.server.ip4, "UDP", PROBE)
        return self.tester.attempt([flow], quiet=0.0005)[0].open

    def await_quiet(self) -> None:
        """Let a start or a write come to its end: another policy shows that it is applied."""
        gate = policy("ns-0/quiet", spec(SERVER["podSelector"], ingress=[rule_from(*blocks("0.0.0.0/0"))]))
        self.apply(gate)
        self.await_verdict(passes=True)
        self.api.delete("NetworkPolicy", "ns-0", "quiet")
        self.await_verdict(passes=False)
        time.sleep(1)

    def await_verdict(self, *, passes: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.passes(self.client) is not passes:
            if time.monotonic() > deadline:
                raise click.ClickException("the verdict does not change")


@contextmanager
def bench(pods: int, policies: int, local: int, padding: int) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory() as directory,
        Lab(LabSpec(local_pods=0, routed_pods=2, remote_pods=1)) as lab,
        ApiServer(host="0.0.0.0", port=6443, sockets=lab.node.listen, history=100_000) as api,
        FlowTester(ends_of(lab.pods), {"UDP": [PROBE]}) as tester,
    ):
        api.apply_many(cluster(pods, policies, local - 2, padding))
        yield Bench(lab, api, Path(directory) / "kubeconfig", tester)


def cpu_seconds(pid: int) -> float:
    """The CPU time of the threads of a process."""
    texts = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(text.split()[0]) for text in texts) / 1e9


def startup(made: Bench, repeats: int) -> list[tuple[float, float]]:
    """Seconds from exec until packets are refused, and CPU seconds until then; an empty kernel each time."""
    found = []
    for _ in range(repeats):
        for family in ("ip", "ip6"):
            made.lab.node.run(["nft", "delete", "table", family, "kproxy-policy"], check=False)
        made.await_verdict(passes=True)
        start = time.monotonic()
        program = made.start()
        made.await_verdict(passes=False)
        found.append((time.monotonic() - start, cpu_seconds(program.pid)))
        program.end(signal.SIGKILL)
    return found


def latencies(made: Bench, pid: int, samples: int) -> dict[str, tuple[list[float], float]]:
    """Seconds from a write to the packet, and kproxy's CPU seconds of a write, by kind.

    Every write opens or closes one flow.
    """
    server = SERVER["podSelector"]
    client = made.real(made.client, "client", {"app": "client"})
    friend = made.real(made.client, "client", {"app": "friend"})
    anyone = policy("ns-0/open", spec(server, ingress=[rule_from(*blocks("0.0.0.0/0"))]))
    friends = policy("ns-0/friends", spec(server, ingress=[rule_from(pods_with(app="friend"))]))
    writes: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "policy": (
            lambda: made.apply(anyone),
            lambda: made.api.delete("NetworkPolicy", "ns-0", "open"),
        ),
        "label": (lambda: made.apply(friend), lambda: made.apply(client)),
        "pod": (lambda: made.apply(friend), lambda: made.api.delete("Pod", "ns-0", "client")),
    }
    found: dict[str, tuple[list[float], float]] = {}
    for kind, (opens, closes) in writes.items():
        if kind != "policy":
            made.apply(friends)
            made.await_quiet()
        seconds, before = [], cpu_seconds(pid)
        for number in range(samples):
            opening = number % 2 == 0
            start = time.monotonic()
            (opens if opening else closes)()
            made.await_verdict(passes=opening)
            seconds.append(time.monotonic() - start)
            time.sleep(0.02)  # the next change does not join this one
        found[kind] = seconds, (cpu_seconds(pid) - before) / samples
        closes()
        made.await_verdict(passes=False)
    return found


def resident(pid: int) -> float:
    """The resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def memory(made: Bench) -> tuple[float, float]:
    """The resident memory in MB at rest, without and with policies."""
    found = []
    for enforce in (False, True):
        program = made.start(enforce=enforce)
        program.wait_log("policy_synced" if enforce else "synced")
        last = -1.0
        while abs(resident(program.pid) - last) > 0.1:
            last = resident(program.pid)
            time.sleep(2)  # caches are freed and trimmed after the first sync
        found.append(resident(program.pid))
        program.end()
    return found[0], found[1]


def first_packets(made: Bench, batches: int) -> tuple[float, float]:
    """Microseconds of CPU time of a first packet from pod to pod, without and with ten rules at each end."""
    made.server.namespace.run(["nft", "-f", "-"], stdin=(
        "add table inet sink\n"
        "add chain inet sink c { type filter hook prerouting priority -400; }\n"
        "add rule inet sink c udp dport 8000-59999 drop\n"
    ))  # fmt: skip
    sender = made.neighbour.namespace.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
    inward, outward = [], []
    for number in range(RULES - 1):
        peer = pods_with(app=f"other-{number}")
        other = [{"port": 100 + number, "endPort": 200 + number, "protocol": "UDP"}]
        inward.append(rule_from(peer, ports=other))
        outward.append(rule_to(peer, ports=other))
    inward.append(rule_from(NEIGHBOUR, ports=[{"port": 8000, "endPort": 59999, "protocol": "UDP"}]))
    outward.append(rule_to(SERVER))
    made.apply(policy("ns-0/in", spec(SERVER["podSelector"], ingress=inward)))
    made.apply(policy("ns-0/out", spec(NEIGHBOUR["podSelector"], egress=outward)))
    ports = itertools.cycle(range(8000, 59000))

    def batch() -> float:
        made.lab.node.run(["conntrack", "-F"], check=False)
        to = [(made.server.ip4, next(ports)) for _ in range(FIRST_PACKETS)]
        begun = time.thread_time_ns()
        for each in to:
            sender.sendto(b"x", each)
        return (time.thread_time_ns() - begun) / 1000 / len(to)

    found: dict[bool, list[float]] = {False: [], True: []}
    for enforce in itertools.islice(itertools.cycle((False, True)), 2 * batches):
        for family in ("ip", "ip6"):
            made.lab.node.run(["nft", "delete", "table", family, "kproxy-policy"], check=False)
        program = made.start(enforce=enforce)
        program.wait_log("policy_synced" if enforce else "synced")
        made.await_verdict(passes=not enforce)
        batch()
        found[enforce] += [batch() for _ in range(5)]
        program.end(signal.SIGKILL)
    sender.close()
    return statistics.median(found[False]), statistics.median(found[True])


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@click.command()
@click.option("--pods", default=5000, show_default=True)
@click.option("--policies", default=500, show_default=True)
@click.option("--local", default=110, show_default=True, help="Pods of this node, two of which are real.")
@click.option("--memory-pods", default=10_000, show_default=True)
@click.option("--padding", default=2000, show_default=True, help="Bytes that kproxy skips in each pod.")
@click.option("--samples", default=200, show_default=True, help="Writes of each kind.")
@click.option(
    "--repeats", default=5, show_default=True, help="Starts, and pairs of batches of first packets."
)
@click.option("--skip", multiple=True, type=click.Choice(["start", "latency", "memory", "packets"]))
def main(
    pods: int,
    policies: int,
    local: int,
    memory_pods: int,
    padding: int,
    samples: int,
    repeats: int,
    skip: tuple[str, ...],
) -> None:
    """Print a table of figures."""
    rows: list[tuple[str, str]] = []
    with bench(pods, policies, local, padding) as made:
        if "start" not in skip:
            seconds, cpu_times = zip(*startup(made, repeats), strict=True)
            text = f"{statistics.median(seconds):.2f} s, greatest {max(seconds):.2f} s"
            rows.append(("in force after exec", f"{text}, CPU time {statistics.median(cpu_times):.2f} s"))
        if "latency" not in skip:
            program = made.start()
            made.await_verdict(passes=False)
            made.await_quiet()
            for kind, (found, cpu) in latencies(made, program.pid, samples).items():
                p50, p99 = (quantile(found, share) * 1000 for share in (0.5, 0.99))
                text = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, CPU time {cpu * 1000:.1f} ms"
                rows.append((f"{kind} write to packet", text))
            program.end()
    if "packets" not in skip:
        with bench(0, 0, 2, 0) as made:
            without, with_rules = first_packets(made, repeats)
            rows.append(
                (f"first packet, {RULES} rules a side", f"{with_rules - without:+.2f} µs on {without:.2f} µs")
            )
    if "memory" not in skip:
        with bench(memory_pods, policies, local, padding) as made:
            without, with_policies = memory(made)
            text = f"{with_policies - without:+.1f} MB on {without:.1f} MB"
            rows.append((f"memory at {memory_pods} pods", text))
    print(f"{pods} pods, {local} local, {policies} policies")
    for name, value in rows:
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
