"""One API server, and a lab for each contender that reads from it; all labs have the same addresses.

`settle()` is a barrier as in tests/packets: a service and a slice are written last and probed with packets
until every contender obeys them in both families; then all earlier writes are in force.
"""

import itertools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy_lab.apiserver import ApiServer
from kproxy_lab.forked import Child
from kproxy_lab.lab import AskError, Lab
from tests.peer import old_peers
from tests.peer.cases.words import Case
from tests.peer.contenders import Contender, Peer, contenders
from tests.peer.differences import View, excused
from tests.peer.objects import (
    JSON,
    NAMESPACE,
    OTHER_TARGET,
    SPEC,
    TARGET,
    node,
    port,
    served,
    service,
    slices,
)
from tests.peer.probes import FEW, MANY, PATIENCE, SILENCE, Asker, Outcome, Probe, probes

DEADLINE = 60.0
"""Seconds until a contender that does not reach the barrier fails the test; a bound, not a measurement."""
FENCE = "zz-fence"
NETLINK_NETFILTER = 12
_FLUSH = 1 << 8 | 2
"""IPCTNL_MSG_CT_DELETE; without a tuple it means every flow (linux/netfilter/nfnetlink_conntrack.h)."""
AT_ONCE = 8
"""Probes that are sent at the same time, each in every lab in turn."""
ROUNDS = 5
MOST = 12
"""Limit of probes that are sent again: if more differ, these show why."""


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A contender at work in its lab; its log is the file `log`."""

    contender: Contender
    lab: Lab
    process: Child
    log: Path

    def check(self) -> None:
        """Fail with the last lines of its log if it has ended."""
        status = self.process.poll()
        assert status is None, f"{self.contender} ended with {status}:\n{self.last()}"

    def last(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Site:
    """Writes objects and compares the outcomes of all contenders."""

    def __init__(
        self, api: ApiServer, peer: Peer, runners: Sequence[Runner], pool: ThreadPoolExecutor
    ) -> None:
        self.api = api
        self.peer = peer
        self.runners = runners
        self._pool = pool
        self._fences = itertools.count(1000)
        self._made: dict[tuple[str, str], None] = {}
        self._remembered: set[str] = set()

    def write(self, *objects: JSON, validate: bool = True) -> None:
        """Create or replace objects; they are gone after the test."""
        for obj in objects:
            self.api.apply(obj, validate=validate)
            self._made[obj["kind"], obj["metadata"]["name"]] = None

    def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        self.api.delete(kind, NAMESPACE, name)
        self._made.pop((kind, name), None)

    def play(self, case: Case) -> Iterator[int]:
        """Carry out a case's steps, and yield the number of each once every contender obeys it."""
        for number, step in enumerate(case.steps):
            self.write(*step.write, validate=step.validate)
            for kind, name in step.delete:
                self.delete(kind, name)
            self.settle()
            yield number

    def forget(self) -> None:
        """Delete what was written since the last time, services first as the API does."""
        for kind, name in sorted(self._made, reverse=True):
            self.delete(kind, name)
        self.api.apply(node())

    def services(self) -> list[JSON]:
        """The services as stored, without the fence."""
        return [s for s in self.api.list("Service", NAMESPACE) if s["metadata"]["name"] != FENCE]

    def settle(self) -> None:
        """Wait until every contender obeys all that is written."""
        number = next(self._fences)
        name = f"fence-{number}"  # another in each, so that neither object alone is enough
        place = "local-2"  # which is no endpoint of anything else
        self.api.apply(service(FENCE, port(number, name)))
        for each in slices(FENCE, place, ports=[served(name=name)]):
            self.api.apply(each)
        stored = self.api.get("Service", NAMESPACE, FENCE)
        assert stored is not None
        ips = stored["spec"]["clusterIPs"]
        list(self._pool.map(lambda runner: self._wait(runner, ips, number, place), self.runners))

    def differences(self, wanted: Sequence[Probe] | None = None) -> list[str]:
        """Compare probes, by default all of all services; return a line for each difference not allowed.

        All probes are first sent at once, which a busy machine may answer late. Those that differ are sent
        again one after the other, and the second outcome counts.
        """
        for runner in self.runners:
            runner.lab.node.call(_forget_flows)
        services = self.services()
        view = View(services)
        every = probes(services) if wanted is None else wanted
        batches = [[probe] for probe in every if not probe.sticky]
        sticky = {probe.service for probe in every if probe.sticky}
        batches += [[probe for probe in every if probe.sticky and probe.service == name] for name in sticky]
        suspects = list(itertools.chain(*self._pool.map(lambda batch: self._suspects(batch, view), batches)))
        found = list(itertools.chain(*(self._judge(probe, view) for probe in suspects[:MOST])))
        if found and len(suspects) > MOST:
            found.append(f"and perhaps {len(suspects) - MOST} probes more")
        self._remembered |= sticky
        for runner in self.runners:
            runner.check()
        return found

    def _judged(self, probe: Probe, view: View) -> list[Runner]:
        """The reference, and all that must not differ from it."""
        first, *others = self.runners
        return [first, *(r for r in others if not excused(probe, view, r.contender, self.peer.version))]

    def _suspects(self, batch: Sequence[Probe], view: View) -> list[Probe]:
        return [probe for probe in batch if not self._agree(probe, view)]

    def _agree(self, probe: Probe, view: View) -> bool:
        """Return whether all contenders agree, after enough rounds to reach every endpoint."""
        outcomes = dict.fromkeys(self._judged(probe, view), Outcome())
        for _ in range(ROUNDS):
            for runner, known in outcomes.items():
                outcomes[runner] = known | self._asker(probe, runner).ask(probe, FEW, SILENCE)
            if not self._different(probe, view, outcomes):
                return True
        return False

    def _asker(self, probe: Probe, runner: Runner) -> Asker:
        return Asker(runner.lab, fresh=probe.service not in self._remembered)

    def _different(self, probe: Probe, view: View, outcomes: Mapping[Runner, Outcome]) -> list[Runner]:
        """Return the contenders that differ from the reference where no difference is allowed."""
        reference, expected = next(iter(outcomes.items()))
        version = self.peer.version
        return [
            runner
            for runner, outcome in outcomes.items()
            if runner is not reference
            and outcome != expected
            and not excused(probe, view, runner.contender, version, (expected, outcome))
        ]

    def _judge(self, probe: Probe, view: View) -> list[str]:
        outcomes: dict[Runner, Outcome] = {}
        for runner in self._judged(probe, view):
            asker = self._asker(probe, runner)
            outcomes[runner] = asker.ask(probe, FEW, PATIENCE)
            if any(" " in one for one in outcomes[runner]):
                outcomes[runner] |= asker.ask(probe, MANY, PATIENCE)
        alike: dict[Outcome, list[str]] = {}
        for runner in self._different(probe, view, outcomes):
            alike.setdefault(outcomes[runner], []).append(str(runner.contender))
        reference, expected = next(iter(outcomes.items()))
        return [
            f"{probe}: {reference.contender} {_text(expected)}, {' and '.join(names)} {_text(outcome)}"
            for outcome, names in alike.items()
        ]

    def _wait(self, runner: Runner, ips: Sequence[str], number: int, place: str) -> None:
        deadline = time.monotonic() + DEADLINE
        for ip in ips:
            while True:
                try:
                    if runner.lab.ask(runner.lab.client, ip, number, timeout=0.5).pod == place:
                        break
                except AskError:
                    pass
                runner.check()
                assert time.monotonic() < deadline, f"{runner.contender} does not come:\n{runner.last(40)}"


def _forget_flows() -> None:
    """Flush conntrack of the current namespace, so that earlier probes do not affect later ones."""
    link = NetlinkSocket(NETLINK_NETFILTER)
    try:
        link.batch([(_FLUSH, 0, bytes(4))])
    finally:
        link.close()


def _text(outcome: Outcome) -> str:
    return "{" + ", ".join(sorted(outcome)) + "}"


@contextmanager
def build(peer: Peer, directory: Path) -> Iterator[Site]:
    """A site in which every contender runs."""
    table: Any = old_peers.resources() if peer.version < (1, 21) else None
    with ExitStack() as stack:
        api = stack.enter_context(ApiServer(resources=table))
        if table is not None:
            old_peers.Beta(api)
        api.apply(node())
        everyone = contenders(peer)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE, "site"))
        runners = [_start(stack, each, api, directory) for each in everyone]
        yield Site(api, peer, runners, pool)


def _start(stack: ExitStack, contender: Contender, api: ApiServer, directory: Path) -> Runner:
    folder = directory / contender.name.replace(" ", "-")
    environment = contender.environment(folder)
    lab = stack.enter_context(Lab(SPEC))
    servers = (*lab.pods, lab.node_pod, lab.peer_pod)
    for pod, target in itertools.product(servers, (TARGET, OTHER_TARGET)):
        lab.serve(pod, "TCP", target)
        lab.serve(pod, "UDP", target)
    if contender.peer is not None and contender.peer.version < (1, 25):
        old_peers.drop_marked(lab.node, contender.variant)
    at = lab.publish(api.port)
    kubeconfig = api.kubeconfig(folder / "kubeconfig", server=f"http://127.0.0.1:{at}")
    log = folder / "log"
    with log.open("wb") as stream:
        process = lab.node.popen(
            contender.argv(kubeconfig),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
        )
    return Runner(contender, lab, process, log)
