"""A running kproxy, a victim and an attacker: what the victim and the node feel during an attack.

    counts = rig.suffer("title", work)

The victim changes without a pause until the attack has ended and nothing waits any more. Then the attacker's
objects are deleted, and the kernel must hold exactly what it held before.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from kproxy_lab import uml
from tests.faults.state import held
from tests.packets.cluster import Cluster
from tests.packets.objects import Port
from tests.packets.pages import status
from tests.packets.program import Kproxy
from tests.support import reference_sync
from tests.support.faultinjection import Sandbox
from tests.tenants.attacker import Attacker, Strike
from tests.tenants.meter import Meter
from tests.tenants.selection import FULL
from tests.tenants.victim import Victim, VictimLost, median, percentile

USUAL = 20 if FULL else 4
"""Changes of the victim before an attack; their delays are the usual ones."""

AFTER = 4 if FULL else 2
"""Changes of the victim at least, once the attack's writes have begun."""

LIMIT = float(os.environ.get("KPROXY_TENANTS_LIMIT", "100" if FULL else "60"))
"""Seconds after which a change of the victim counts as lost: a bound for failures."""

LONGEST = float(os.environ.get("KPROXY_TENANTS_LONGEST", "120" if FULL else "60"))
"""Seconds after which an attack that has not ended by itself is ended."""

REST = 0.05 if FULL else 0.0
"""Seconds between two changes of the victim."""

LOOKS = 10
"""Looks at the status, 10 ms apart, before the victim changes again: its own changes wait for a moment."""

FIRST_MARK = 900
"""The port of the marking service while it marks nothing."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one attack did in one mode.

    Delays in milliseconds, from the victim's write to the API until a packet meets the new endpoint: `usual`
    is the median before the attack, `median`, `p99` and `most` are those during it. `lost`: changes that were
    not in the kernel within the limit. `cpu`: processor seconds of kproxy and its children. `unwell`: answers
    of /livez and /healthz other than 200. `slowest`: the slowest of them in milliseconds. `same`: whether the
    kernel held the former state once the attacker's objects were deleted.
    """

    attack: str
    mode: str
    written: int
    usual: float
    median: float
    p99: float
    most: float
    changes: int
    lost: int
    seconds: float
    cpu: float
    before_mb: float
    peak_mb: float
    log_kb: float
    events: int
    unwell: int
    slowest: float
    same: bool

    @property
    def excess(self) -> float:
        """The longest delay beyond the usual one, in milliseconds."""
        return self.most - self.usual


class TenantRig:
    """One cluster with one kproxy; it is started again when it was lost, or in full runs for each attack."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.attacker = Attacker(cluster.api)
        self.victim = Victim(cluster)
        self._mark = cluster.service("mark", ports=[Port(FIRST_MARK)])
        self._marks = itertools.count(FIRST_MARK + 1)
        cluster.slices(self._mark, cluster.lab.local_pods[:1])
        self.counts: list[Counts] = []
        self.differences: list[str] = []
        self._started: tuple[tuple[str, ...], Sandbox] | None = None

    def start(self, *flags: str, sandbox: Sandbox | None = None) -> Kproxy:
        """Run kproxy with these flags in this sandbox; one that runs so is kept, except in full runs."""
        wanted = (flags, sandbox or Sandbox())
        program = self.cluster.program
        if program is not None and program.running and self._started == wanted and not FULL:
            return program
        self.stop()
        self._started = wanted
        self.cluster.prefix = wanted[1].command() if sandbox is not None else ()
        return self.cluster.start(*flags)

    def stop(self) -> None:
        """Kill kproxy: one that works on a large change would not end in time."""
        program = self.cluster.program
        if program is not None and program.running:
            program.end(signal.SIGKILL)

    def renew(self) -> None:
        """End kproxy and remove its rules: after a lost attack they may be gigabytes."""
        self.stop()
        self.attacker.vanish()
        argv = [sys.executable, "-m", "kproxy", "cleanup"]
        self.cluster.lab.node.run(argv, check=False, timeout=LIMIT)

    def suffer(
        self,
        title: str,
        work: Callable[[Attacker], None],
        prepare: Callable[[Attacker], None] = lambda _: None,
        longest: float = LONGEST,
        returns: bool = True,
    ) -> Counts:
        """Measure the victim and the node during an attack; see the module's docstring.

        `prepare` writes what stands before the attack; it is not measured. An attack that has not ended after
        `longest` seconds is ended. Without `returns` changes may wait at the end, and the former state of the
        kernel is not waited for.
        """
        self._set_mark(FIRST_MARK)
        self.victim.rest(LIMIT)
        before = self.state()
        usual = [self._change() for _ in range(USUAL)]
        self.attacker.begin()
        prepare(self.attacker)
        if returns:
            self._settle()
        delays: list[float] = []
        lost = 0
        with Meter(self.cluster) as meter:
            strike = Strike(self.attacker, work)
            began = time.monotonic()
            try:
                mark: int | None = None
                while time.monotonic() < began + longest:
                    if mark is None and not strike.going_on:
                        mark = self._write_mark()
                    delays.append(self._change())
                    if (
                        mark is not None
                        and len(delays) >= AFTER
                        and self._settled(mark, LOOKS if returns else 0)
                    ):
                        break
            except VictimLost:
                lost += 1
                delays.append(LIMIT)
            strike.end(LIMIT)
            events = self.attacker.events()
        same = not lost and (not returns or self._returns_to(before))
        counts = Counts(
            attack=title,
            mode=str(self.cluster.mode),
            written=self.attacker.written,
            usual=_ms(median(usual)),
            median=_ms(median(delays)),
            p99=_ms(percentile(delays, 0.99)),
            most=_ms(max(delays)),
            changes=len(delays),
            lost=lost,
            seconds=round(meter.seconds, 1),
            cpu=round(meter.cpu_seconds, 2),
            before_mb=round(meter.before_mb, 1),
            peak_mb=round(meter.peak_mb, 1),
            log_kb=round(meter.log_bytes / 1024, 1),
            events=events,
            unwell=sum(meter.unwell.values()),
            slowest=_ms(meter.slowest),
            same=same,
        )
        self.counts.append(counts)
        return counts

    def state(self) -> dict[str, list[str]]:
        """Return what the kernel holds of both families."""
        return held(self.cluster.mode, self.cluster.lab.node)

    def waits(self) -> bool:
        """Whether a change waits for the kernel, except those of quarantined services."""
        said = status(self.cluster)
        quarantined = {
            each["service"] for family in said["families"].values() for each in family["quarantined"]
        }
        waiting = max(said["pending"]["services"], said["pending"]["endpoints"])
        return bool(waiting > len(quarantined))

    def _settle(self) -> None:
        """Wait until all that was written is in the kernel; after LONGEST go on as it is."""
        mark, deadline = self._write_mark(), time.monotonic() + LONGEST
        while not self._settled(mark) and time.monotonic() < deadline:
            self.victim.pause(0.05)

    def _write_mark(self) -> int:
        """Write another port of the marking service; once packets meet it, all services were read."""
        number = next(self._marks)
        self._set_mark(number)
        return number

    def _set_mark(self, number: int) -> None:
        self.cluster.edit(self._mark, lambda spec: spec["ports"][0].update(port=number))

    def _settled(self, mark: int, looks: int = LOOKS) -> bool:
        """Whether packets meet the mark and nothing waits; the victim's last change may for a moment.

        Without `looks`, changes may wait.
        """
        lab = self.cluster.lab
        met = self.cluster.outcome(lab.client, self._mark.ip(4), mark, timeout=0.2)
        if met != lab.local_pods[0].name:
            return False
        for _ in range(looks):
            if not self.waits():
                return True
            self.victim.pause(0.01)
        return not looks

    def _change(self) -> float:
        delay = self.victim.change(LIMIT)
        self.victim.pause(REST)
        return delay

    def _returns_to(self, before: dict[str, list[str]]) -> bool:
        """Delete the attacker's objects; whether the kernel then holds the former state."""
        self.attacker.vanish()
        self._set_mark(FIRST_MARK)
        try:
            self.victim.rest(LIMIT)
        except VictimLost:
            return False
        deadline = time.monotonic() + LIMIT
        while found := reference_sync.differences(self.state(), before):
            if time.monotonic() > deadline:
                self.differences = found
                return False
            self.victim.pause(0.05)
        return True


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


PATIENT = 900 if uml.inside() else 400
"""Timeout of a test in seconds."""
