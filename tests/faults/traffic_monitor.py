"""Traffic that checks its answers: only endpoints may answer, and open connections must stay open."""

import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kproxy_lab.lab import Answer, AskError, HeldConnection, Lab, Namespace, Pod
from tests.packets.outcomes import Target, Traffic
from tests.packets.program import DEADLINE

RETRANSMITTED = 1.0
"""TCP's first retransmission timeout in seconds (RFC 6298): a later answer means that a packet was lost."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """One address and port of a service, and the namespace or pod that sends the requests."""

    service: str
    source: Namespace | Pod
    ip: str
    port: int

    @property
    def target(self) -> Target:
        """The target in the form of `Traffic`."""
        return self.source, self.ip, self.port


class TrafficMonitor(Traffic):
    """Sends requests to every target without a pause and keeps one connection open to each.

    `allowed`: the pods that may answer, by service. An open connection must stay with its pod.
    """

    def __init__(
        self,
        lab: Lab,
        targets: Sequence[ProbeTarget],
        allowed: Mapping[str, AbstractSet[str]],
        *,
        patience: float = DEADLINE,
    ) -> None:
        super().__init__(lab, [probe.target for probe in targets], patience=patience)
        self._services = {probe.target: probe.service for probe in targets}
        self._allowed = allowed
        self._judging = threading.Lock()
        self._held: list[tuple[HeldConnection, str]] = []
        for probe in targets:
            held = lab.hold(*probe.target, timeout=DEADLINE)
            self._held.append((held, held.exchange(timeout=DEADLINE).pod))
        self.exchanged = 0
        self.late = 0
        self.wrong: list[str] = []
        self.cut: list[str] = []

    def allow(self, allowed: Mapping[str, AbstractSet[str]]) -> None:
        """Set the allowed pods for requests that start after this call."""
        self.flow(1)
        with self._judging:
            self._allowed = allowed

    def judge(self, target: Target, answer: Answer) -> None:
        """Check and count an answer."""
        service = self._services[target]
        with self._judging:
            allowed = self._allowed[service]
        if answer.pod not in allowed:
            self.wrong.append(f"{answer.pod} answered for {service} at {target[1]}, not of {sorted(allowed)}")
        self.late += answer.elapsed >= RETRANSMITTED

    def between(self) -> None:
        """Exchange a line over each open connection; record a cut connection once."""
        for held, pod in list(self._held):
            try:
                answer = held.exchange(timeout=self._patience)
            except AskError as error:
                self.cut.append(repr(error))
                self._held.remove((held, pod))
                continue
            self.exchanged += 1
            if answer.pod != pod:
                self.cut.append(f"a connection to {pod} was answered by {answer.pod}")

    def release(self) -> None:
        """Close the open connections, after the block has ended."""
        for held, _ in self._held:
            held.close()
        self._held.clear()
