"""Random objects within the API's own limits, which a tenant throws at all nodes.

Everything is drawn from a generator with a known seed. Most objects are small, some fill one of the API's
limits: 1.5 MB an object, thousands of ports, 256 KB of annotations, 1,000 endpoints a slice. The number of
living objects and their total size are bounded, as a quota of the namespace would do.
"""

import json
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from tests.tenants.attacker import Attacker
from tests.tenants.objects import JSON, endpoint, outside_ips, pod_ips, ports, service, slice_of

LIVING: Final = 40
"""Objects of each kind that exist at once at most."""

LIVING_BYTES: Final = 4_000_000
"""Their JSON together, at most."""

LARGEST: Final = 1_500_000
"""Bytes of one object (etcd's --max-request-bytes)."""

_ODD_TEXTS: Final = (
    "",
    " ",
    "::",
    "0.0.0.0",
    "255.255.255.255",
    "1.2.3.4/33",
    "\n",
    "ü" * 50,
    "-1",
    "a" * 300,
)


class RandomObjects:
    """Throws one object after another; `thrown` counts them."""

    def __init__(self, seed: int, attacker: Attacker, largest: int = LARGEST) -> None:
        self._chance = random.Random(seed)
        self._attacker = attacker
        self._largest = largest
        self._living: OrderedDict[tuple[str, str], int] = OrderedDict()
        self.thrown = 0

    def throw(self) -> None:
        """Write or delete one object."""
        chance = self._chance
        self.thrown += 1
        if self._living and chance.random() < 0.1:
            self._drop(chance.choice(list(self._living)))
            return
        name = f"random-{chance.randrange(LIVING)}"
        make: Callable[[str], JSON] = chance.choice((self._service, self._slice, self._slice))
        obj = make(name)
        size = len(json.dumps(obj))
        if size > self._largest:
            return
        key = (obj["kind"], obj["metadata"]["name"])
        self._living.pop(key, None)
        self._living[key] = size
        self._attacker.write(obj)
        while sum(self._living.values()) > LIVING_BYTES:
            self._drop(next(iter(self._living)))

    def _drop(self, key: tuple[str, str]) -> None:
        del self._living[key]
        self._attacker.delete(*key)

    def _count(self, most: int) -> int:
        """Mostly a few, sometimes as many as there may be."""
        chance = self._chance
        return chance.randint(1, 4) if chance.random() < 0.8 else chance.randint(1, most)

    def _service(self, name: str) -> JSON:
        chance = self._chance
        number = int(name.rpartition("-")[2])
        kind = chance.choice(("ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
        spec: dict[str, Any] = {"type": kind}
        if kind == "ExternalName":
            spec["externalName"] = "example.com"
        if chance.random() < 0.4:
            spec["externalIPs"] = outside_ips(self._count(1000), first=chance.choice((0, 0, 500)))
            spec["externalIPs"] += chance.sample(_ODD_TEXTS, chance.randrange(3))
        if chance.random() < 0.3:
            spec["sessionAffinity"] = "ClientIP"
        if chance.random() < 0.3:
            spec["internalTrafficPolicy"] = chance.choice(("Cluster", "Local"))
            spec["externalTrafficPolicy"] = chance.choice(("Cluster", "Local"))
        if chance.random() < 0.3:
            spec["loadBalancerSourceRanges"] = [
                f"{chance.randrange(256)}.{chance.randrange(256)}.0.0/{chance.randrange(33)}"
                for _ in range(self._count(5000))
            ]
        made = service(name, 12_000 + number, self._ports(2000), annotations=self._annotations(), **spec)
        if kind == "LoadBalancer":
            addresses = outside_ips(self._count(50), first=2000 + chance.choice((0, 50 * number)))
            made["status"] = {"loadBalancer": {"ingress": [{"ip": ip} for ip in addresses]}}
        return made

    def _slice(self, name: str) -> JSON:
        chance = self._chance
        ips = pod_ips(self._count(1000), first=1000 * chance.randrange(4))
        found = [endpoint(ip, ready=chance.random() < 0.9) for ip in ips]
        if chance.random() < 0.2:
            for each in found:
                each["hints"] = {"forZones": [{"name": f"zone-{n}"} for n in range(8)]}
        if chance.random() < 0.1:
            found[0]["addresses"] = [chance.choice(_ODD_TEXTS)]
        return slice_of(name, found, self._ports(20_000), name=f"{chance.randrange(3)}")

    def _ports(self, most: int) -> list[JSON]:
        chance = self._chance
        listed = ports(self._count(most), first=chance.choice((1, 80, 1000)))
        for each in listed if chance.random() < 0.2 else ():
            each["protocol"] = chance.choice(("TCP", "UDP", "SCTP"))
        return listed

    def _annotations(self) -> JSON:
        chance = self._chance
        texts: tuple[Callable[[], str], ...] = (
            lambda: json.dumps({"pod:*1": 1, "*": 1022}),
            lambda: json.dumps({f"pod:*{n}?*": chance.randrange(65536) for n in range(self._count(3500))}),
            lambda: "[" * self._count(250_000),
            lambda: chance.choice(_ODD_TEXTS),
            lambda: "{" + "x: {" * self._count(20_000),
            lambda: "*" * self._count(200_000),
        )
        found: JSON = {"example.com/filler": "x" * self._count(100_000)}
        if chance.random() < 0.5:
            found["kproxy.io/weights"] = chance.choice(texts)()
        if chance.random() < 0.2:
            found["kproxy.io/scheduler"] = chance.choice(("rr", "wlc", "mh", *_ODD_TEXTS))
        return found
