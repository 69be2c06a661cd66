"""New connections without a pause while something changes: no allowed one may fail, no other may arrive."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from kproxy_lab.lab.flows import FlowProtocol, FlowTester, Tried
from tests.packets.program import DEADLINE
from tests.policy.world import Expected, World

TCP_PORT, UDP_PORT = 7000, 7001
SOURCE_PORTS = range(10301, 30000)
LOST = 0.9
"""Seconds after which a packet is lost, not late: TCP sends a SYN again after one second (RFC 6298)."""


def on_both_protocols(flows: Sequence[Expected]) -> list[Expected]:
    """Each flow over TCP and UDP, at ports that nothing else uses."""
    kinds: tuple[tuple[FlowProtocol, int], ...] = (("TCP", TCP_PORT), ("UDP", UDP_PORT))
    return [
        dataclasses.replace(each, protocol=protocol, port=port) for each in flows for protocol, port in kinds
    ]


class Stream:
    """Tries every flow again and again on a thread of its own. What `open` says must hold the whole time.

    A flow whose `open` is None may change its verdict; `seen` keeps its outcomes in order, repeats left out.
    """

    def __init__(self, world: World, tester: FlowTester, flows: Sequence[Expected]) -> None:
        self._tester = tester
        self._expected = flows
        self._flows = [world.flow(each) for each in flows]
        self._thread = threading.Thread(target=self._work, name="stream", daemon=True)
        self._stop = threading.Event()
        self._turn = threading.Condition()
        self._rounds = 0
        self._kept: list[tuple[Expected, Tried]] = []
        self.lost: list[str] = []
        self.leaked: list[str] = []
        self.seen: dict[str, list[bool]] = {str(each): [] for each in flows if each.open is None}

    def __enter__(self) -> Self:
        self._thread.start()
        self.flow()
        return self

    def __exit__(self, *_: object) -> None:
        self.flow()
        self._stop.set()
        self._thread.join(DEADLINE)
        self.leaked += [str(each) for each, tried in self._kept if tried.arrived or tried.open]

    @property
    def tried(self) -> int:
        """How many connections were tried."""
        return self._rounds * len(self._flows)

    def flow(self, rounds: int = 5) -> None:
        """Wait until every flow has been tried this many times more."""
        with self._turn:
            enough = self._rounds + rounds
            self._turn.wait_for(lambda: self._rounds >= enough or not self._thread.is_alive(), DEADLINE)
            assert self._rounds >= enough, "the stream has stopped"

    def check(self) -> None:
        """After the block: assert that nothing was lost and nothing let through."""
        assert not self.lost, f"{len(self.lost)} of {self.tried} lost: {self.lost[:6]}"
        assert not self.leaked, f"{len(self.leaked)} of {self.tried} let through: {self.leaked[:6]}"

    def _work(self) -> None:
        must = [each.open is True for each in self._expected]
        while not self._stop.is_set():
            outcome = self._tester.attempt(self._flows, must, quiet=0.004, patience=LOST, again=0)
            for each, tried in zip(self._expected, outcome, strict=True):
                if each.open:
                    if not tried.open:
                        self.lost.append(str(each))
                elif each.open is None:
                    seen = self.seen[str(each)]
                    if not seen or seen[-1] != tried.open:
                        seen.append(tried.open)
                else:
                    self._kept.append((each, tried))
            with self._turn:
                self._rounds += 1
                self._turn.notify_all()


@contextmanager
def stream_tester(world: World) -> Iterator[FlowTester]:
    """The tester for the streams of a world."""
    with FlowTester(world.serving, {"TCP": [TCP_PORT], "UDP": [UDP_PORT]}, SOURCE_PORTS) as made:
        yield made
