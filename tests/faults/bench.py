"""A cluster under traffic into which faults are injected, and the checks during and after each fault.

    with bench.inject("API server gone") as case:
        ...                      # the fault, while services change
        case.over()              # end of the fault (the end of the block at the latest)

During the fault every answer must come from a pod that was an endpoint of the service at some time, and open
connections must survive. After it, without further changes, the kernel must converge to the state that a full
sync leaves in an empty namespace, and only current endpoints may answer.
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
from tests.faults.traffic_monitor import ProbeTarget, TrafficMonitor
from tests.packets.cluster import CLUSTER_CIDRS, Cluster
from tests.packets.objects import FAMILIES, Service
from tests.packets.outcomes import names
from tests.packets.program import DEADLINE, Kproxy
from tests.support import reference_sync
from tests.support.faultinjection import BrokenSockets, BrokenTools, Sandbox

SYNCS = 40
"""Limit of the syncs of a family from the end of a fault until the kernel has converged."""

MEMORY_MB = 24.0
"""Limit of the growth of resident memory during one fault: the first failure loads modules that stay."""

LOST = 10.0
"""Seconds until an unanswered request counts as failed, where requests may fail.

A connection that was sent to the wrong address gets no answer until its conntrack entry expires.
"""

_SYNC = re.compile(r"\bevent=(synced|nothing_to_write|sync_failed) family=IPv4\b")
_LOUD = ("-v", "4")


@dataclass(frozen=True, slots=True)
class Counts:
    """Result of one fault, as reported.

    `costs`: what may fail because the fault itself removes rules: requests, or connections too. `seconds`:
    from the end of the fault until the kernel was found to have converged; this includes the reference sync
    in another namespace.
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
        """Mark the end of the fault. `program`: the process that runs now, if it is a new one."""
        if self.ended is None or program is not None:
            self.ended_in = program or self._program
            self.ended = self.ended_in.mark() if program is None else 0
            self.ended_at = time.monotonic()

    def syncs(self) -> int:
        """Return the number of syncs since the end of the fault."""
        assert self.ended is not None
        return sum(_SYNC.search(line) is not None for line in self.ended_in.log[self.ended :])


class FaultBench:
    """A cluster with two services whose endpoints change; no pod is an endpoint of both."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.tools = BrokenTools(directory / "tools")
        self.sockets = BrokenSockets(directory / "sockets")
        self.counts: list[Counts] = []
        self._started: tuple[tuple[str, ...], Sandbox] = ((), Sandbox())
        self.renew()

    def renew(self) -> None:
        """Replace the services by new ones at new addresses.

        Conntrack keeps a connection attempted while rules were missing as untranslated for two minutes, and
        the next one from the same port to the same address matches that entry.
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
        self.targets = [
            *(ProbeTarget("web", lab.client, self.web.ip(family), 80) for family in FAMILIES),
            *(
                ProbeTarget("web", lab.client, lab.node_pod.ip(family), self.web.node_port)
                for family in FAMILIES
            ),
            *(ProbeTarget("shop", three, self.shop.ip(family), 80) for family in FAMILIES),
        ]

    def start(self, *flags: str, sandbox: Sandbox | None = None, restart: bool = False) -> Kproxy:
        """Run kproxy with these flags in this sandbox, by default one whose tools can be made to fail.

        A process that already runs so is kept, unless `restart` asks for one without a history of failures.
        """
        wanted = (flags, sandbox or Sandbox(tools=self.tools.directory))
        program = self.cluster.program
        if program is not None and program.running and self._started == wanted and not restart:
            self.cluster.settle()
            return program
        self.cluster.stop()
        self._started = wanted
        self.cluster.prefix = wanted[1].command()
        return self.cluster.start(*_LOUD, *flags)

    def start_again(self) -> Kproxy:
        """Start kproxy with the flags of the last start, after it has ended. Does not wait for a sync."""
        cluster = self.cluster
        flags, _ = self._started
        cluster.program = Kproxy(cluster.lab.node, cluster.command(*_LOUD, *flags), cluster.prefix)
        return cluster.program

    def change(self, *services: Service) -> None:
        """Give the services (all by default) other endpoints. Does not wait for a sync.

        One or two pods of three in turn, so that each change adds and removes an endpoint.
        """
        for service in services or (self.web, self.shop):
            turn, pool = next(self._turns[service.name]), self._pools[service.name]
            chosen = [pool[turn % 3], pool[(turn + 1) % 3]][: 1 + turn % 2]
            self.ever[service.name] |= names(chosen)
            self.now[service.name] = names(chosen)
            self.cluster.slices(service, chosen)

    @contextmanager
    def inject(self, fault: str, *, cuts: bool = False, refuses: bool = False) -> Iterator[Case]:
        """Monitor traffic while the block injects a fault, then check the outcome.

        `refuses`: the fault removes rules, so requests may fail until the kernel has converged. `cuts`: it
        also ends open connections.
        """
        costs = ", ".join(["requests"] * refuses + ["connections"] * cuts)
        before = self.cluster.running
        memory = resident_mb(before.pid)
        case = Case(before)
        patience = LOST if refuses else DEADLINE
        monitor = TrafficMonitor(self.cluster.lab, self.targets, self.ever, patience=patience)
        with ExitStack() as stack:
            stack.callback(monitor.release)
            with monitor:
                yield case
                monitor.flow()
                case.over()
                self.converge()
                seconds = time.monotonic() - case.ended_at
                syncs = case.syncs()
                monitor.allow(self.now)
                monitor.flow()
            running = self.cluster.running
            grown = resident_mb(running.pid) - memory
            self.counts.append(
                Counts(
                    fault, str(self.cluster.mode), costs, case.times, monitor.asked, len(monitor.failures),
                    monitor.late, len(monitor.wrong), monitor.exchanged, len(monitor.cut), syncs,
                    round(seconds, 1), round(grown, 1),
                )
            )  # fmt: skip
        counted = Counter(monitor.failures)
        assert refuses or not counted, f"requests failed, by kind: {counted}"
        assert not monitor.wrong, f"{len(monitor.wrong)} wrong deliveries, the first: {monitor.wrong[0]}"
        assert cuts or not monitor.cut, f"{len(monitor.cut)} connections cut, the first: {monitor.cut[0]}"
        assert syncs <= SYNCS, f"{syncs} syncs after the fault's end"
        assert grown <= MEMORY_MB, f"{grown:.1f} MB more memory"
        if refuses:
            self._check_new_services()

    def _check_new_services(self) -> None:
        """Check that new services answer every request after a fault that removed rules."""
        self.renew()
        self.cluster.settle()
        with TrafficMonitor(self.cluster.lab, self.targets, self.now) as after:
            after.flow()
        after.release()
        assert not after.failures, f"failures after the end: {after.failures[:3]}"
        assert not after.wrong, f"wrong deliveries after the end: {after.wrong[:3]}"

    def converge(self) -> None:
        """Wait until the kernel holds exactly what a full sync leaves in an empty namespace."""
        wanted = self.fresh()
        none: list[str] = []
        self.cluster.running.until(lambda: reference_sync.differences(self.state(), wanted), none)

    def state(self, place: Namespace | None = None) -> dict[str, list[str]]:
        """Return what the kernel holds of both families, in the node or in `place`."""
        return held(self.cluster.mode, place or self.cluster.lab.node)

    def fresh(self) -> dict[str, list[str]]:
        """Return the state of an empty namespace with the node's addresses after one full sync."""
        arguments = [
            *("--hostname-override", self.cluster.lab.spec.node_name),
            *("--cluster-cidr", CLUSTER_CIDRS),
            *self.cluster.mode.reference(),
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
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
