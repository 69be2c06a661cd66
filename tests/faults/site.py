"""A cluster under load on which something goes wrong, and what has to hold when it is over.

    with site.ordeal("API server gone") as case:
        ...                      # the fault, with changes of services meanwhile
        case.over()              # it has ended (the end of the block at the latest)

Meanwhile every answer must come from a pod that was an endpoint of the asked service at some moment, and open
connections must live on. Afterwards, without any further change, the kernel must come to hold exactly what a
full sync from nothing leaves in an empty namespace, and only present endpoints may answer.
"""

import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kproxy_lab.lab import Namespace
from tests.faults.state import addresses, held
from tests.faults.vigil import Door, Vigil
from tests.packets.cluster import CLUSTER_CIDRS, Cluster
from tests.packets.objects import FAMILIES, Service
from tests.packets.outcomes import names
from tests.packets.program import DEADLINE, Kproxy
from tests.support import reference_sync
from tests.support.faultinjection import BrokenSockets, BrokenTools, Room

SYNCS = 40
"""The most syncs of a family from the end of a fault until the kernel is as it should be."""

MEMORY_MB = 24.0
"""The most that the resident memory may grow by during one ordeal: what a first failure loads and keeps."""

LOST = 10.0
"""Seconds without an answer after which a request has failed where some may fail: who was sent elsewhere once
meets silence for as long as the kernel remembers it."""

_SYNC = re.compile(r"\bevent=(synced|nothing_to_write|sync_failed) family=IPv4\b")
_LOUD = ("-v", "4")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of one ordeal, as it is reported.

    `costs` says what the fault itself may cost, for it takes rules away: requests, or connections too.
    `seconds` passed from the fault's end until the kernel was found to be right, which is looked for after a
    full sync elsewhere.
    """

    fault: str
    mode: str
    costs: str
    times: int
    requests: int
    failed: int
    late: int
    wrong: int
    exchanges: int
    cut: int
    syncs: int
    seconds: float
    grown_mb: float


class Case:
    """One fault in progress."""

    def __init__(self, program: Kproxy) -> None:
        self._program = program
        self.times = 1
        self.ended: int | None = None
        self.ended_at = 0.0
        self.ended_in = program

    def over(self, program: Kproxy | None = None) -> None:
        """The fault has ended; `program` runs now, if it is another one than at the beginning."""
        if self.ended is None or program is not None:
            self.ended_in = program or self._program
            self.ended = self.ended_in.mark() if program is None else 0
            self.ended_at = time.monotonic()

    def syncs(self) -> int:
        """How many syncs there were since."""
        assert self.ended is not None
        return sum(_SYNC.search(line) is not None for line in self.ended_in.log[self.ended :])


class Site:
    """A cluster with two services of disjoint pods whose endpoints change again and again."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.tools = BrokenTools(directory / "tools")
        self.sockets = BrokenSockets(directory / "sockets")
        self.counts: list[Counts] = []
        self._started: tuple[tuple[str, ...], Room] = ((), Room())
        self.renew()

    def renew(self) -> None:
        """Begin with new services at new addresses.

        A connection that was tried while rules were missing is remembered by the kernel as not translated for
        two minutes, and the next one from the same port to the same address shares its fate.
        """
        lab = self.cluster.lab
        self.cluster.forget()
        one, two, three = lab.local_pods[:3]
        four, five, six = lab.remote_pods[:3]
        self.web = self.cluster.service("web", type="NodePort")
        self.shop = self.cluster.service("shop")
        self._pools = {"web": (one, two, four), "shop": (three, five, six)}
        self._turns = {name: itertools.count() for name in self._pools}
        self.ever: dict[str, set[str]] = {name: set() for name in self._pools}
        self.now: dict[str, set[str]] = {}
        self.change()
        self.doors = [
            *(Door("web", lab.client, self.web.ip(family), 80) for family in FAMILIES),
            *(Door("web", lab.client, lab.node_pod.ip(family), self.web.node_port) for family in FAMILIES),
            *(Door("shop", three, self.shop.ip(family), 80) for family in FAMILIES),
        ]

    def start(self, *flags: str, room: Room | None = None, anew: bool = False) -> Kproxy:
        """Have kproxy run with these flags in this room, by default one with tools that can be broken.

        One that does already goes on, unless it shall begin `anew`, without a history of failures.
        """
        wanted = (flags, room or Room(tools=self.tools.directory))
        program = self.cluster.program
        if program is not None and program.running and self._started == wanted and not anew:
            self.cluster.settle()
            return program
        self.cluster.stop()
        self._started = wanted
        self.cluster.prefix = wanted[1].command()
        return self.cluster.start(*_LOUD, *flags)

    def start_again(self) -> Kproxy:
        """Start it as last time, once it has ended, and do not wait for anything."""
        cluster = self.cluster
        flags, _ = self._started
        cluster.program = Kproxy(cluster.lab.node, cluster.command(*_LOUD, *flags), cluster.prefix)
        return cluster.program

    def change(self, *services: Service) -> None:
        """Give the services (all, if none is named) other endpoints and do not wait for anything.

        Each time one or two pods of three, so that somebody leaves and somebody comes.
        """
        for service in services or (self.web, self.shop):
            turn, pool = next(self._turns[service.name]), self._pools[service.name]
            chosen = [pool[turn % 3], pool[(turn + 1) % 3]][: 1 + turn % 2]
            self.ever[service.name] |= names(chosen)
            self.now[service.name] = names(chosen)
            self.cluster.slices(service, chosen)

    @contextmanager
    def ordeal(self, fault: str, *, cuts: bool = False, refuses: bool = False) -> Iterator[Case]:
        """Watch over a fault and judge it.

        Where the fault itself takes rules away, requests may fail until the kernel is right again
        (`refuses`), and connections be cut (`cuts`).
        """
        costs = ", ".join(["requests"] * refuses + ["connections"] * cuts)
        before = self.cluster.running
        memory = resident_mb(before.pid)
        case = Case(before)
        patience = LOST if refuses else DEADLINE
        vigil = Vigil(self.cluster.lab, self.doors, self.ever, patience=patience)
        with ExitStack() as stack:
            stack.callback(vigil.release)
            with vigil:
                yield case
                vigil.flow()
                case.over()
                self.converge()
                seconds = time.monotonic() - case.ended_at
                syncs = case.syncs()
                vigil.allow(self.now)
                vigil.flow()
            running = self.cluster.running
            grown = resident_mb(running.pid) - memory
            self.counts.append(
                Counts(
                    fault, str(self.cluster.mode), costs, case.times, vigil.asked, len(vigil.failures),
                    vigil.late, len(vigil.wrong), vigil.exchanged, len(vigil.cut), syncs, round(seconds, 1),
                    round(grown, 1),
                )
            )  # fmt: skip
        counted = Counter(vigil.failures)
        assert refuses or not counted, f"requests failed, by kind: {counted}"
        assert not vigil.wrong, f"{len(vigil.wrong)} wrong deliveries, the first: {vigil.wrong[0]}"
        assert cuts or not vigil.cut, f"{len(vigil.cut)} connections cut, the first: {vigil.cut[0]}"
        assert syncs <= SYNCS, f"{syncs} syncs after the fault's end"
        assert grown <= MEMORY_MB, f"{grown:.1f} MB more memory"
        if refuses:
            self._serve_anew()

    def _serve_anew(self) -> None:
        """What is published after a fault that took rules away is served without a single failure."""
        self.renew()
        self.cluster.settle()
        with Vigil(self.cluster.lab, self.doors, self.now) as after:
            after.flow()
        after.release()
        assert not after.failures, f"failures after the end: {after.failures[:3]}"
        assert not after.wrong, f"wrong deliveries after the end: {after.wrong[:3]}"

    def converge(self) -> None:
        """Wait until the kernel holds exactly what a full sync from nothing leaves in an empty one."""
        wanted = self.fresh()
        none: list[str] = []
        self.cluster.running.until(lambda: reference_sync.differences(self.state(), wanted), none)

    def state(self, place: Namespace | None = None) -> dict[str, list[str]]:
        """What the kernel holds of both families, in the node or elsewhere."""
        return held(self.cluster.mode, place or self.cluster.lab.node)

    def fresh(self) -> dict[str, list[str]]:
        """The same of a namespace with the node's addresses, after nothing but a full sync."""
        arguments = [
            *("--hostname-override", self.cluster.lab.spec.node_name),
            *("--cluster-cidr", CLUSTER_CIDRS),
            *self.cluster.mode.arguments,
            *self._started[0],
        ]
        with reference_sync.namespace() as place, tempfile.TemporaryDirectory() as directory:
            for link, ips in addresses(self.cluster.lab.node).items():
                if link not in {"lo", "kube-ipvs0"}:
                    place.run(["ip", "link", "add", link, "type", "bridge"])
                    for address in ips:
                        place.run(["ip", "address", "add", address, "dev", link])
            reference_sync.write_manifests(self.cluster.api, Path(directory))
            reference_sync.sync_once(place, Path(directory), arguments)
            return self.state(place)


def resident_mb(pid: int) -> float:
    """The resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
