"""Traffic that is judged: nobody but an endpoint may answer, and what is connected must stay so."""

import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from kproxy_lab.lab import Answer, AskError, HeldConnection, Lab, Namespace, Pod
from tests.packets.outcomes import Target, Traffic
from tests.packets.program import DEADLINE

RETRANSMITTED = 1.0
"""Seconds after which TCP sends its first packet again (RFC 6298): an answer after that had a packet lost."""


@dataclass(frozen=True, slots=True)
class Door:
    """A way to a service: who asks, and which of its addresses and ports."""

    service: str
    source: Namespace | Pod
    ip: str
    port: int

    @property
    def target(self) -> Target:
        """As `Traffic` has it."""
        return self.source, self.ip, self.port


class Vigil(Traffic):
    """Asks at every door without a pause and keeps one connection open through each.

    `allowed` says which pods may answer for a service. A connection that was opened stays with its pod.
    """

    def __init__(
        self,
        lab: Lab,
        doors: Sequence[Door],
        allowed: Mapping[str, AbstractSet[str]],
        *,
        patience: float = DEADLINE,
    ) -> None:
        super().__init__(lab, [door.target for door in doors], patience=patience)
        self._services = {door.target: door.service for door in doors}
        self._allowed = allowed
        self._judging = threading.Lock()
        self._held: list[tuple[HeldConnection, str]] = []
        for door in doors:
            held = lab.hold(*door.target, timeout=DEADLINE)
            self._held.append((held, held.exchange(timeout=DEADLINE).pod))
        self.exchanged = 0
        self.late = 0
        self.wrong: list[str] = []
        self.cut: list[str] = []

    def allow(self, allowed: Mapping[str, AbstractSet[str]]) -> None:
        """Judge the answers to requests that begin later by this."""
        self.flow(1)
        with self._judging:
            self._allowed = allowed

    def judge(self, target: Target, answer: Answer) -> None:
        """Count the answer."""
        service = self._services[target]
        with self._judging:
            allowed = self._allowed[service]
        if answer.pod not in allowed:
            self.wrong.append(f"{answer.pod} answered for {service} at {target[1]}, not of {sorted(allowed)}")
        self.late += answer.elapsed >= RETRANSMITTED

    def between(self) -> None:
        """Exchange a line over each open connection; one that is cut is told once."""
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
        """Close the open connections, once the block has ended."""
        for held, _ in self._held:
            held.close()
        self._held.clear()
