"""A lab with kproxy under test, objects, and packets that tell what is allowed.

`show` writes what differs from the objects that stand, and waits for packets that show it: a policy, a
Namespace and a pod written last together open a path that nothing else uses (the fence). Sources keep the
order of writes within a kind, so everything written before is then in force.
"""

import itertools
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from kproxy_lab import uml
from kproxy_lab.lab import Lab, Namespace
from kproxy_lab.lab.flows import Flow, FlowProtocol, FlowTester, Tried, ends_of
from kproxy_lab.lab.topology import NODE, Family
from tests.packets.modes import Mode
from tests.packets.objects import FAMILIES
from tests.packets.program import DEADLINE, Kproxy
from tests.policy import objects
from tests.policy.objects import JSON, Key
from tests.policy.oracle import End, Oracle
from tests.policy.writers import Writer

PORTS: Final[Mapping[FlowProtocol, tuple[int, ...]]] = {
    "TCP": (80, 8080, 8081, 9090, 5432),
    "UDP": (53, 8080),
    "SCTP": (8080, 9090),
    "ICMP": (0,),
}
CLUSTER_CIDRS: Final = "10.244.0.0/16,fd00:10:244::/56"
SLOW: Final = 4 if uml.inside() else 1
_FENCES: Final = ("fence/even", "fence/odd")
_LINE: Final = re.compile(r"(?:(v[46]) )?(.+?) > (.+?): (.+)")
_TRY: Final = re.compile(r"([+-])(?:(\d+)(?:/(tcp|udp|sctp))?|icmp)")


@dataclass(frozen=True, slots=True)
class Expected:
    """A flow by the names of its ends, and whether it must pass; None: as the oracle says."""

    family: Family
    source: str
    destination: str
    protocol: FlowProtocol
    port: int
    open: bool | None = None

    def __str__(self) -> str:
        what = "icmp" if self.protocol == "ICMP" else f"{self.port}/{self.protocol.lower()}"
        return f"v{self.family} {self.source} > {self.destination}: {what}"


def parse(text: str) -> list[Expected]:
    """Flows from lines such as `v4 shop/api node > shop/web: +80 -53/udp +icmp`; both families by default."""
    found = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        matched = _LINE.fullmatch(line)
        assert matched is not None, line
        families = FAMILIES if matched[1] is None else (cast("Family", int(matched[1][1])),)
        tries = [_TRY.fullmatch(each) for each in matched[4].split()]
        for family, source, destination, each in itertools.product(
            families, matched[2].split(), matched[3].split(), tries
        ):
            assert each is not None, line
            protocol = "ICMP" if each[2] is None else (each[3] or "tcp").upper()
            port = int(each[2] or 0)
            found.append(
                Expected(family, source, destination, cast("FlowProtocol", protocol), port, each[1] == "+")
            )
    return found


def judge(oracle: Oracle, ips: Mapping[str, tuple[str, str]], each: Expected) -> bool:
    """What the oracle says of a flow; `ips` are the addresses of the ends."""
    at = FAMILIES.index(each.family)
    source = End(ips[each.source][at], own_node=each.source == "node")
    return oracle.allowed(source, End(ips[each.destination][at]), each.protocol, each.port)


class World:
    """The lab, the objects that stand, and the program that enforces them."""

    def __init__(self, lab: Lab, writer: Writer) -> None:
        self.lab = lab
        self.writer = writer
        self.standing: dict[Key, JSON] = {}
        self.program: Kproxy | None = None
        self._fences = itertools.count(1)
        pods = {pod.name: pod for pod in lab.pods}
        self.pods = {key: pods[place.at] for key, place in objects.PLACES.items()}
        self.base = objects.base(self.pods, [lab.node_pod, lab.peer_pod])
        self._ips = objects.addresses(self.pods)
        self._places: dict[str, Namespace] = {key: pod.namespace for key, pod in self.pods.items()}
        self._places |= {"node": lab.node, "peer": lab.peer, "out": lab.client, "out2": lab.client}
        self.serving: dict[Namespace, Sequence[str]] = {**ends_of(lab.pods), **ends_of([lab.peer_pod])}
        self.serving[lab.node] = (*self._ips["node"], *NODE.gateways)
        self.serving[lab.client] = (*self._ips["out"], *self._ips["out2"])
        self.tester = FlowTester(self.serving, {"TCP": PORTS["TCP"], "UDP": PORTS["UDP"]})
        self.show()

    def close(self) -> None:
        """Stop the program and the servers."""
        self.stop()
        self.tester.close()

    # -- the program

    def command(self, mode: Mode, *flags: str) -> list[str]:
        """The arguments of `kproxy` for a run in this world."""
        return [
            "run",
            *self.writer.flags(),
            *("--hostname-override", self.lab.spec.node_name),
            *("--cluster-cidr", CLUSTER_CIDRS),
            *("-v", "2"),
            *mode.flags(self.lab),
            *flags,
        ]

    def start(self, mode: Mode, *flags: str) -> Kproxy:
        """Start kproxy with NetworkPolicies, and wait until packets obey them."""
        self.program = Kproxy(self.lab.node, self.command(mode, "--network-policy", *flags))
        self.settle()
        return self.program

    def stop(self) -> None:
        """Stop the program if it runs."""
        if self.program is not None and self.program.running:
            self.program.end()

    # -- objects

    def show(self, changes: Iterable[JSON] = (), gone: Iterable[Key] = (), *, wait: bool = True) -> None:
        """Have the base and `changes` stand, without `gone`; write what differs and wait for it."""
        wanted = self.base | objects.by_key(changes)
        for key in gone:
            del wanted[key]
        fence = {key: obj for key, obj in self.standing.items() if key[1] == "fence" or key[2] == "fence"}
        self.put({**wanted, **fence}, wait=wait)

    def put(self, wanted: Mapping[Key, JSON], *, wait: bool = True) -> None:
        """Have exactly these objects stand."""
        changed: dict[Key, JSON | None] = {key: None for key in self.standing if key not in wanted}
        changed |= {key: obj for key, obj in wanted.items() if self.standing.get(key) != obj}
        self.writer.write(changed)
        self.standing = dict(wanted)
        if wait and self.program is not None and self.program.running:
            self.settle()

    def settle(self) -> float:
        """Wait until everything written so far is in force in both families; return the seconds it took."""
        start = time.monotonic()
        for _ in range(self.writer.fences):
            number = next(self._fences)
            self._write_fence(number)
            self._await_fence(number)
        return time.monotonic() - start

    def _write_fence(self, number: int) -> None:
        key, label = _FENCES[number % 2], {"fence": str(number)}
        place = objects.PLACES[key]
        selector = {"matchLabels": label}
        written = objects.by_key(
            [
                objects.pod(key, self.pods[key], label, place.ports),
                objects.namespace("fence", label),
                objects.policy(
                    "fence/gate",
                    {
                        "podSelector": {},
                        "ingress": [{"from": [{"namespaceSelector": selector, "podSelector": selector}]}],
                    },
                ),
            ]
        )
        self.standing |= written
        self.writer.write(written)

    def _await_fence(self, number: int) -> None:
        assert self.program is not None
        program = self.program
        opened, closed = _FENCES[number % 2], _FENCES[(number + 1) % 2]
        flows = [
            self.flow(Expected(family, source, "fence/target", "UDP", 53))
            for source, family in itertools.product((opened, closed), FAMILIES)
        ]

        def passed() -> list[bool]:
            assert program.running, "kproxy is gone:\n" + "\n".join(program.log[-20:])
            return [tried.open for tried in self.tester.attempt(flows, quiet=0.002)]

        program.until(passed, [True, True, False, False])

    # -- packets

    def to(self, source: str, ip: str, port: int, protocol: FlowProtocol = "TCP") -> Flow:
        """A flow to any address, such as a service's."""
        source_ip = self._ips[source][":" in ip] if source in {"out", "out2"} else ""
        return Flow(self._places[source], ip, protocol, port, source_ip)

    def flow(self, expected: Expected) -> Flow:
        """The flow with its addresses."""
        ip = self._ips[expected.destination][FAMILIES.index(expected.family)]
        return self.to(expected.source, ip, expected.port, expected.protocol)

    def oracle(self) -> Oracle:
        """The oracle for the objects that stand."""
        return Oracle(self.standing.values(), self.lab.spec.node_name)

    def sample(self, number: int, seed: object) -> list[Expected]:
        """Flows drawn from all ends, protocols and ports in both families."""
        draw = random.Random(repr(seed))
        everything = list(self.everything())
        return draw.sample(everything, min(number, len(everything)))

    def everything(self) -> Iterator[Expected]:
        """Every flow from and to a pod of the node under test, in both families."""
        local = {key for key, pod in self.pods.items() if pod.local}
        ends = [key for key in self._ips if not key.startswith("fence/")]
        for family, source, destination in itertools.product(FAMILIES, ends, ends):
            if source in {destination, "gateway"} or local.isdisjoint({source, destination}):
                continue
            for protocol, ports in PORTS.items():
                for port in ports:
                    yield Expected(family, source, destination, protocol, port)

    def check(self, wanted: Iterable[Expected]) -> list[Tried]:
        """Try flows and assert that they go as expected, and as the oracle says; of equal ones the first."""
        flows = list({str(each): each for each in reversed(list(wanted))}.values())[::-1]
        oracle = self.oracle()
        judged = [judge(oracle, self._ips, each) for each in flows]
        wrong = [str(each) for each, said in zip(flows, judged, strict=True) if each.open not in {None, said}]
        assert not wrong, f"the oracle says otherwise: {wrong}"
        tried = self.tester.attempt(
            [self.flow(each) for each in flows], judged, patience=DEADLINE / 4, quiet=0.03 * SLOW
        )
        lost = [str(each) for each, said, t in zip(flows, judged, tried, strict=True) if said and not t.open]
        closed = [(str(each), t) for each, said, t in zip(flows, judged, tried, strict=True) if not said]
        leaked = [name for name, t in closed if t.arrived or t.open]
        refused = [f"{name} (errno {t.error})" for name, t in closed if t.error]
        found = {"lost": lost, "let through": leaked, "not silent": refused}
        wrong = [f"{len(names)} {what}: {names[:8]}" for what, names in found.items() if names]
        assert not wrong, "; ".join(wrong)
        return tried
