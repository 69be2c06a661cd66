"""Random clusters: policies, labels and pods that change step by step, from a seed."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from kproxy_lab.lab import Pod
from tests.policy import objects
from tests.policy.objects import JSON, Key

VALUES = {"app": ("web", "db", "api", "card"), "tier": ("front", "back"), "env": ("prod", "lab")}
SPACES = ("shop", "pay", "ops")
NAMES = ("http", "dns", "sql")
NUMBERS = (80, 8080, 8081, 9090, 5432, 53)
BLOCKS = (
    ("0.0.0.0/0", ("10.0.0.0/8", "192.0.2.0/24", "10.244.1.128/25", "192.168.100.20/32")),
    ("10.244.0.0/16", ("10.244.1.0/25", "10.244.1.130/31", "10.244.2.0/24")),
    ("192.0.2.0/24", ("192.0.2.10/32", "192.0.2.11/32")),
    ("192.168.100.0/24", ("192.168.100.10/32", "192.168.100.20/32")),
    ("::/0", ("fd00::/8", "2001:db8::/32", "fd00:10:244:1:1::/80")),
    ("fd00:10:244::/56", ("fd00:10:244:1::/80", "fd00:10:244:2::10/128")),
    ("2001:db8:1::/64", ("2001:db8:1::10/128", "2001:db8:1::11/128")),
)
BROKEN: tuple[JSON, ...] = ({"ports": [{"port": 0}]}, {"from": [{}], "to": [{}]}, {"via": []})


class History:
    """The objects of one random history; `step` changes some of them."""

    def __init__(self, seed: int, base: Mapping[Key, JSON], pods: Mapping[str, Pod]) -> None:
        self._draw = random.Random(f"policies {seed}")
        self._pods = {key: pod for key, pod in pods.items() if not key.startswith("fence/")}
        self.objects = dict(base)

    def step(self) -> list[str]:
        """Change a few objects; return what was done, for a failure's message."""
        changes: tuple[Callable[[], str], ...] = (
            self._policy, self._policy, self._policy, self._drop_policy, self._labels, self._labels,
            self._space, self._end, self._ports,
        )  # fmt: skip
        return [self._draw.choice(changes)() for _ in range(self._draw.randint(1, 6))]

    def _policy(self) -> str:
        key = f"{self._draw.choice(SPACES)}/p{self._draw.randrange(4)}"
        made = objects.policy(key, self._spec())
        self.objects[objects.key_of(made)] = made
        return f"{key} is {made['spec']}"

    def _drop_policy(self) -> str:
        keys = sorted(key for key in self.objects if key[0] == "NetworkPolicy")
        if not keys:
            return "nothing"
        key = self._draw.choice(keys)
        del self.objects[key]
        return f"{key} is gone"

    def _labels(self) -> str:
        return self._pod(labels=self._some_labels())

    def _ports(self) -> str:
        chosen = self._draw.sample(NAMES, self._draw.randrange(3))
        return self._pod(ports={f"{name}/{self._protocol()}": self._draw.choice(NUMBERS) for name in chosen})

    def _end(self) -> str:
        return self._pod(phase=self._draw.choice(("Succeeded", "Failed", "Running", "Running", "Pending")))

    def _pod(self, **changes: Any) -> str:
        key = self._draw.choice(sorted(self._pods))
        place = objects.PLACES[key]
        arguments: dict[str, Any] = {"labels": place.labels, "ports": place.ports} | changes
        made = objects.pod(key, self._pods[key], **arguments)
        self.objects[objects.key_of(made)] = made
        return f"{key} has {changes}"

    def _space(self) -> str:
        made = objects.namespace(self._draw.choice(SPACES), self._some_labels())
        self.objects[objects.key_of(made)] = made
        return f"{made['metadata']}"

    def _some_labels(self) -> dict[str, str]:
        chosen = self._draw.sample(sorted(VALUES), self._draw.randint(0, len(VALUES)))
        return {name: self._draw.choice(VALUES[name]) for name in chosen}

    def _protocol(self) -> str:
        return self._draw.choice(("TCP", "TCP", "UDP", "SCTP"))

    def _spec(self) -> JSON:
        draw = self._draw
        spec: JSON = {"podSelector": self._selector()}
        if draw.random() < 0.6:
            spec["policyTypes"] = draw.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"], []))
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            if draw.random() < 0.7:
                # Many rules are divided by port in the kernel.
                number = draw.randint(15, 40) if draw.random() < 0.08 else draw.randrange(3)
                spec[direction] = [self._rule(peers) for _ in range(number)]
                if spec[direction] and draw.random() < 0.04:
                    spec[direction].append(draw.choice(BROKEN))
        return spec

    def _rule(self, peers: str) -> JSON:
        draw = self._draw
        rule: JSON = {}
        if draw.random() < 0.85:
            number = draw.randint(8, 20) if draw.random() < 0.08 else draw.randint(0, 3)  # united in one set
            rule[peers] = [self._peer() for _ in range(number)]
        if draw.random() < 0.6:
            rule["ports"] = [self._port() for _ in range(draw.randint(0, 3))]
        return rule

    def _peer(self) -> JSON:
        draw = self._draw
        kind = draw.randrange(4)
        if kind == 0:
            cidr, holes = draw.choice(BLOCKS)
            return {"ipBlock": {"cidr": cidr, "except": draw.sample(holes, draw.randint(0, len(holes)))}}
        peer: JSON = {}
        if kind in {1, 3}:
            peer["podSelector"] = self._selector()
        if kind in {2, 3}:
            peer["namespaceSelector"] = self._selector(spaces=True)
        return peer

    def _port(self) -> JSON:
        draw = self._draw
        port: JSON = {}
        if draw.random() < 0.7:
            port["protocol"] = self._protocol()
        kind = draw.randrange(4)
        if kind == 0:
            port["port"] = draw.choice(NAMES)
        elif kind in {1, 2}:
            port["port"] = draw.choice(NUMBERS)
            if kind == 2:
                port["endPort"] = port["port"] + draw.choice((0, 1, 1000, 5000))
        return port

    def _selector(self, *, spaces: bool = False) -> JSON:
        draw = self._draw
        selector: JSON = {}
        if draw.random() < 0.6:
            name = draw.choice(sorted(VALUES))
            selector["matchLabels"] = {name: draw.choice(VALUES[name])}
        if draw.random() < 0.3:
            name = draw.choice(sorted(VALUES))
            operator = draw.choice(("In", "NotIn", "Exists", "DoesNotExist"))
            each: JSON = {"key": name, "operator": operator}
            if operator in {"In", "NotIn"}:
                each["values"] = draw.sample(VALUES[name], draw.randint(1, 2))
            selector["matchExpressions"] = [each]
        if spaces and draw.random() < 0.2:
            selector["matchLabels"] = {"kubernetes.io/metadata.name": draw.choice(SPACES)}
        return selector
