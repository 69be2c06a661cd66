"""A tenant who does nothing special: a service whose endpoint changes, and packets that show when it did."""

import itertools
import statistics
import threading
import time
from collections.abc import Sequence

from kproxy_lab.lab.topology import Family
from tests.packets.cluster import Cluster
from tests.packets.objects import FAMILIES, JSON, Port, Service, slice_json

_PAUSE = 0.002
"""Seconds between two packets that look for the new endpoint."""

_ANSWER = 0.5
"""Seconds until a packet counts as lost, and the next one is sent."""


class VictimLost(AssertionError):
    """A change of the victim was not in the kernel in time."""


class Victim:
    """A dual-stack service; each change moves one family's endpoint to the other of two pods.

    A delay is the time from the write to the API until a packet from outside reaches the new endpoint, and
    counts that packet's own way.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pods = cluster.lab.local_pods[:2]
        self._turns = itertools.count(1)
        self._gap = threading.Event()
        self.service: Service = cluster.service("victim", ports=[Port(80)])
        self._families: tuple[Family, ...] = FAMILIES
        cluster.slices(self.service, [self._pods[0]])

    def change(self, limit: float) -> float:
        """Make one change and return its delay in seconds. Raises VictimLost after `limit` seconds."""
        turn, families = next(self._turns), self._families
        return self._move(families[turn % len(families)], turn // len(families) % 2, limit)

    def only(self, *families: Family) -> None:
        """Change the endpoints of these families from now on."""
        self._families = families

    def rest(self, limit: float) -> None:
        """Return to the first endpoint."""
        for family in self._families:
            self._move(family, 0, limit)
        self._turns = itertools.count(1)

    def write(self, family: Family, index: int) -> None:
        """Write a family's endpoint, without waiting for the kernel."""
        name = f"{self.service.name}-a-{family}"
        obj: JSON = slice_json(self.service.name, name, family, [self._pods[index]], self.service.ports, {})
        self._cluster.api.apply(obj, validate=False)

    def pause(self, seconds: float) -> None:
        self._gap.wait(seconds)

    def _move(self, family: Family, index: int, limit: float) -> float:
        pod, began = self._pods[index], time.monotonic()
        self.write(family, index)
        outcome = ""
        while (left := began + limit - time.monotonic()) > 0:
            outcome = self._cluster.outcome(
                self._cluster.lab.client, self.service.ip(family), 80, timeout=min(left, _ANSWER)
            )
            if outcome == pod.name:
                return time.monotonic() - began
            self._gap.wait(_PAUSE)
        raise VictimLost(f"the victim's change was not there after {limit:.0f} s; packets met {outcome}")


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that is not below this share of them; 0 without samples."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples) if samples else 0.0
