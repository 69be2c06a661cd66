"""Outcomes of a series of requests: which pods answered, how often, and which sources they saw."""

import math
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

from kproxy_lab.lab import Answer, AskError, Lab, Namespace, Pod
from tests.packets.program import DEADLINE

SIGMAS = 6.0
"""Half width of the accepted range in standard deviations: one false alarm in 500 million."""

Target = tuple[Namespace | Pod, str, int]
"""Who asks, and the address and port asked."""


class Seen:
    """The answers to one series of requests."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers
        self.counts = Counter(answer.pod for answer in answers)

    @property
    def pods(self) -> set[str]:
        """Who answered."""
        return set(self.counts)

    @property
    def sources(self) -> dict[str, set[str]]:
        """Which source addresses each of them saw."""
        found: dict[str, set[str]] = {}
        for answer in self.answers:
            found.setdefault(answer.pod, set()).add(answer.source_ip_seen)
        return found

    @property
    def targets(self) -> dict[str, set[int]]:
        """On which ports each of them was reached."""
        found: dict[str, set[int]] = {}
        for answer in self.answers:
            found.setdefault(answer.pod, set()).add(answer.port_seen)
        return found

    def assert_even(self, pods: Iterable[Pod]) -> None:
        """Assert that exactly these pods answered, each an equal share."""
        expected = names(pods)
        assert self.pods == expected
        share, total = 1 / len(expected), len(self.answers)
        slack = SIGMAS * math.sqrt(total * share * (1 - share))
        far = {pod: n for pod, n in self.counts.items() if abs(n - total * share) > slack}
        assert not far, (
            f"{far} of {total} answers, where {total * share:.0f} +- {slack:.0f} are an equal share"
        )


def names(pods: Iterable[Pod]) -> set[str]:
    """The names of pods, to compare with who answered."""
    return {pod.name for pod in pods}


class Traffic:
    """Requests without a pause, on a thread of their own, for as long as the block lasts.

    A wrong rule shows at once as Refused or Unreachable; a slow request is not a failure unless it takes more
    seconds than `patience`.
    """

    def __init__(self, lab: Lab, targets: Sequence[Target], *, patience: float = DEADLINE) -> None:
        self._lab = lab
        self._patience = patience
        self._targets = targets
        self._thread = threading.Thread(target=self._work, name="traffic", daemon=True)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.flow()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)

    def judge(self, target: Target, answer: Answer) -> None:
        """Called for every answer, on the traffic's thread."""

    def between(self) -> None:
        """Called each time all targets have been asked, on the traffic's thread."""

    @property
    def asked(self) -> int:
        """How many requests have come to an end."""
        with self._changed:
            return self._answered

    def flow(self, rounds: int = 5) -> None:
        """Wait until every target has been asked this many times more."""
        with self._changed:
            enough = self._answered + rounds * len(self._targets)
            moved = self._changed.wait_for(lambda: self._answered >= enough or self.failures, DEADLINE)
        assert moved, "no request has ended"

    def _work(self) -> None:
        while not self._stop.is_set():
            for target in self._targets:
                source, ip, port = target
                try:
                    self.judge(target, self._lab.ask(source, ip, port, timeout=self._patience))
                except AskError as error:
                    self.failures.append(repr(error))
                with self._changed:
                    self._answered += 1
                    self._changed.notify_all()
            self.between()
