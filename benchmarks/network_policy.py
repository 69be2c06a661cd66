"""What planning NetworkPolicies costs: the first plan, and each kind of change, in milliseconds of CPU.

    python -m benchmarks.network_policy
    python -m benchmarks.network_policy --pods 10000 --policies 1000 --local 110

One node of a random cluster (from a seed): pods of workloads in namespaces of teams, one in ten with a label
of its own; policies with selectors, blocks, numbers and names of ports. Decoding is measured apart from
planning, and nothing is written to the kernel.
"""

import gc
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind

Json = dict[str, Any]
NODE: Final = "node-0"
_KINDS: Final = {"pods": Kind.POD, "namespaces": Kind.NAMESPACE, "policies": Kind.NETWORK_POLICY}


class RandomCluster:
    """Plain objects of a cluster; the same seed gives the same ones."""

    def __init__(self, seed: int, pods: int, policies: int, local: int) -> None:
        self.chance = random.Random(seed)
        self.namespaces = [f"ns-{n}" for n in range(max(1, pods // 50))]
        self._number = pods
        self.local = local
        self.pods = [self.pod(n) for n in range(pods)]
        self.policies = [self.policy(n) for n in range(policies)]

    def pod(self, number: int, version: int = 0) -> Json:
        """Pods of one workload follow each other; one in ten has a label of its own, as of a StatefulSet."""
        workload = number // 5
        name = f"pod-{number}" if not version else f"pod-{number}-{version}"
        labels = {
            "app": f"app-{workload % 7}",
            "tier": ("front", "back", "data")[workload % 3],
            "pod-template-hash": f"{workload:08x}",
        }
        if number % 10 == 0:
            labels["statefulset.kubernetes.io/pod-name"] = name
        node = NODE if number % (self._number // self.local) == 0 else f"node-{1 + number % 50}"
        high, low = divmod(number + 1, 250)
        return {
            "metadata": {
                "name": name,
                "namespace": self.namespaces[workload % len(self.namespaces)],
                "uid": f"{number:08x}-0000-4000-8000-{version:012x}",
                "labels": labels,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "nodeName": node,
                "containers": [
                    {"name": "c", "ports": [{"name": "web", "containerPort": 8080 + workload % 3}]},
                    {
                        "name": "side",
                        "ports": [{"name": "metrics", "containerPort": 9090}] * (workload % 3 == 0),
                    },
                ],
            },
            "status": {
                "phase": "Running",
                "podIPs": [
                    {"ip": f"10.{high // 250}.{high % 250}.{low + 1}"},
                    {"ip": f"fd00::{high + 1:x}:{low + 1:x}"},
                ],
            },
        }

    def namespace(self, name: str, team: str | None = None) -> Json:
        """A namespace of one of ten teams."""
        number = self.namespaces.index(name)
        return {"metadata": {"name": name, "labels": {"team": team or f"team-{number % 10}"}}}

    def policy(self, number: int, version: int = 0) -> Json:
        """Two rules of ingress and one of egress; one in five denies by default."""
        chance = random.Random(f"{number} {version}")
        metadata = {"name": f"policy-{number}", "namespace": self.namespaces[number % len(self.namespaces)]}
        if number % 5 == 0 and not version:
            return {"metadata": metadata, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}
        spec = {
            "podSelector": chance.choice([{}, self._labels(chance), self._labels(chance)]),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [self._peer(chance) for _ in range(chance.randrange(1, 4))],
                    "ports": self._ports(chance),
                }
                for _ in range(2)
            ],
            "egress": [{"to": [self._peer(chance), self._peer(chance)], "ports": self._ports(chance)}],
        }
        return {"metadata": metadata, "spec": spec}

    @staticmethod
    def _labels(chance: random.Random) -> Json:
        key = chance.choice(["app", "tier"])
        if key == "app":
            return {"matchLabels": {"app": f"app-{chance.randrange(7)}"}}
        return {
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", chance.choice(["back", "data"])]}
            ]
        }

    def _peer(self, chance: random.Random) -> Json:
        kind = chance.randrange(10)
        if kind < 5:
            return {"podSelector": self._labels(chance)}
        if kind < 8:
            team = {"matchLabels": {"team": f"team-{chance.randrange(10)}"}}
            return {"namespaceSelector": team, "podSelector": self._labels(chance)}
        net = f"10.{chance.randrange(200)}.0.0/16"
        return {
            "ipBlock": {"cidr": net, "except": [net.replace(".0.0/16", f".{chance.randrange(200)}.0/24")]}
        }

    @staticmethod
    def _ports(chance: random.Random) -> list[Json]:
        return chance.choice(
            [
                [{"port": 8080}],
                [{"port": "web"}, {"port": "metrics"}],
                [{"protocol": "UDP", "port": 53}, {"port": 53}],
                [{"port": 8000, "endPort": 8100}],
            ]
        )


def decoded(kind: str, *plain: Json) -> dict[str, Any]:
    """Objects by key, as the store has them."""
    found = [decode(_KINDS[kind], json.dumps(each).encode()) for each in plain]
    return {each.key: each for each in found}


def cpu_ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU of this thread."""
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1e6


def memory_mb() -> float:
    """Resident memory now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


Change = dict[str, dict[str, Any]]


def changes(cluster: RandomCluster, repeats: int) -> dict[str, list[Change]]:
    """For each kind of change, changes that follow each other; each is one update."""
    count = len(cluster.pods)
    step = count // cluster.local
    local = [n * step for n in range(repeats)]
    remote = [n for n in range(1, 2 * repeats) if n % step][:repeats]
    busy = cluster.namespaces[:repeats]
    made: dict[str, list[Change]] = {}

    def pods(numbers: list[int], version: int, **labels: str) -> list[Change]:
        found = []
        for n in numbers:
            plain = cluster.pod(n, version)
            plain["metadata"]["labels"] |= labels
            found.append({"pods": decoded("pods", plain)})
        return found

    def gone(numbers: list[int], version: int) -> list[Change]:
        return [{"pods": {key: None}} for each in pods(numbers, version) for key in each["pods"]]

    for name, numbers in (("local", local), ("remote", remote)):
        made[f"{name} pod removed"] = gone(numbers, 0)
        made[f"{name} pod added"] = pods(numbers, 0)
        made[f"{name} pod relabelled"] = pods(numbers, 0, app="app-3")
        made[f"{name} pod back"] = pods(numbers, 0)
    policies = [1 + n for n in range(repeats)]
    made["policy changed"] = [{"policies": decoded("policies", cluster.policy(n, 1))} for n in policies]
    made["policy removed"] = [
        {"policies": {key: None}} for each in made["policy changed"] for key in each["policies"]
    ]
    made["policy added"] = [{"policies": decoded("policies", cluster.policy(n))} for n in policies]
    made["namespace relabelled"] = [
        {"namespaces": decoded("namespaces", cluster.namespace(n, "team-x"))} for n in busy
    ]
    made["namespace back"] = [{"namespaces": decoded("namespaces", cluster.namespace(n))} for n in busy]
    return made


@click.command(help=__doc__)
@click.option("--pods", default=5000, show_default=True)
@click.option("--policies", default=500, show_default=True)
@click.option("--local", default=110, show_default=True, help="Pods of the node.")
@click.option("--repeats", default=50, show_default=True, help="Changes of each kind.")
@click.option("--seed", default=1, show_default=True)
def main(pods: int, policies: int, local: int, repeats: int, seed: int) -> None:
    """Print two tables."""
    cluster = RandomCluster(seed, pods, policies, local)
    raw = {
        "pods": [json.dumps(each).encode() for each in cluster.pods],
        "namespaces": [json.dumps(cluster.namespace(each)).encode() for each in cluster.namespaces],
        "policies": [json.dumps(each).encode() for each in cluster.policies],
    }
    gc.collect()
    start = memory_mb()
    given: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}

    def decode_all() -> None:
        for kind, texts in raw.items():
            for text in texts:
                found = decode(_KINDS[kind], text)
                given[kind][found.key] = found

    decoding = cpu_ms(decode_all)
    gc.collect()
    objects = memory_mb()
    planner = PolicyPlanner(NODE, tuple(Family))
    planning = cpu_ms(lambda: planner.update(**given))
    gc.collect()
    planned = memory_mb()
    gc.freeze()
    table = planner.tables[Family.IPV4]
    sizes = Table("groups", "rules", "pod sets", "members", "ranges", "isolated", "local", "problems")
    sizes.add_row(
        *map(
            str,
            (
                len(table.groups),
                sum(len(each.rules) for each in table.groups.values()),
                len(table.peers),
                sum(map(len, table.peers.values())),
                len(table.ranges),
                sum(map(len, table.isolated.values())),
                len(table.local),
                len(planner.problems),
            ),
        )
    )
    figures = Table("step", "CPU ms", "largest", "touching")
    figures.add_row("decode", f"{decoding:.1f}", f"{objects - start:.1f} MB", "")
    figures.add_row("first plan, both families", f"{planning:.1f}", f"{planned - objects:.1f} MB", "")
    for name, updates in changes(cluster, repeats).items():
        if not updates:
            continue
        costs, touched = [], 0
        for each in updates:
            whole = {kind: each.get(kind, {}) for kind in _KINDS}
            found: dict[Family, Any] = {}
            costs.append(cpu_ms(lambda w=whole, f=found: f.update(planner.update(**w))))  # type: ignore[misc]
            touched += any(found.values())
        figures.add_row(
            name, f"{sum(costs) / len(costs):.2f}", f"{max(costs):.2f}", f"{touched}/{len(updates)}"
        )
    judged = cpu_ms(lambda: _judge(planner, cluster, 1000)) / 1000
    figures.add_row("judge a flow", f"{judged:.3f}", "", "")
    console = Console()
    console.print(sizes)
    console.print(figures)


def _judge(planner: PolicyPlanner, cluster: RandomCluster, flows: int) -> None:
    addresses = [each["status"]["podIPs"][0]["ip"] for each in cluster.pods]
    for _ in range(flows):
        source, destination = cluster.chance.sample(addresses, 2)
        planner.judge(Protocol.TCP, source, destination, 8080)


if __name__ == "__main__":
    main()
