"""Held packets: which wait, which go back to the rules and when, and the bounds that no flood passes."""

from __future__ import annotations

import ipaddress
import itertools
import threading
from collections import Counter
from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from kproxy.agent.policy import held as module
from kproxy.agent.policy.held import MOST, MOST_EACH, SECONDS, HeldPackets
from kproxy.kernel.nfqueue import NfqueueError, Queued, Verdict

RANGES = ("10.244.1.0/24", "fd00:10:244:1::/64")
POD, OTHER, OUTSIDE = "10.244.1.10", "10.244.1.11", "192.0.2.1"
NUMBERS = itertools.count(1)
UDP, TCP = 17, 6


class FakeQueue:
    """Gives packets that a test adds, and keeps verdicts by the packet's number."""

    def __init__(self) -> None:
        self.packets: list[Queued] = []
        self.verdicts: dict[int, Verdict] = {}
        self.waited: list[float | None] = []
        self.closed = False
        self.woken = threading.Event()

    def close(self) -> None:
        self.closed = True

    def wake(self) -> None:
        self.woken.set()

    def wait(self, seconds: float | None) -> Collection[Queued]:
        self.waited.append(seconds)
        found, self.packets = self.packets, []
        return found

    def decide(self, numbers: Collection[int], verdict: Verdict) -> None:
        for number in numbers:
            assert number not in self.verdicts
            self.verdicts[number] = verdict


class Rig:
    def __init__(self, *known: str) -> None:
        self.now = 100.0
        self.queue = FakeQueue()
        self.counts: Counter[str] = Counter()
        self.held = HeldPackets(7, self._counted, lambda *_: self.queue, lambda: self.now)
        self.held.follow(known, RANGES)

    def _counted(self, outcome: str, packets: int) -> None:
        self.counts[outcome] += packets

    def sent(
        self, source: str, destination: str = OUTSIDE, protocol: int = UDP, ports: bytes = b"abcd"
    ) -> int:
        number = next(NUMBERS)
        first, second = (ipaddress.ip_address(end).packed for end in (source, destination))
        self.queue.packets.append(Queued(number, first, second, protocol, ports))
        return number

    def step(self) -> None:
        self.held.step(self.queue)

    def verdict(self, number: int) -> Verdict | None:
        return self.queue.verdicts.get(number)


@pytest.mark.parametrize("source", [POD, "fd00:10:244:1::a"])
def test_a_packet_waits_until_its_pod_is_known(source: str) -> None:
    rig = Rig()
    packet = rig.sent(source, OUTSIDE if "." in source else "2001:db8::1")
    rig.step()
    assert rig.verdict(packet) is None
    rig.now += SECONDS - 0.1
    rig.step()
    assert rig.verdict(packet) is None
    assert rig.queue.waited[-1] == pytest.approx(0.1)
    rig.held.follow([source], RANGES)
    rig.step()
    assert rig.verdict(packet) is Verdict.REPEAT
    assert (rig.counts, rig.held.held) == ({"released": 1}, 0)


def test_a_packet_between_two_unknown_pods_waits_for_both() -> None:
    rig = Rig()
    packet = rig.sent(POD, OTHER)
    rig.step()
    for known, verdict in (([OTHER], None), ([OTHER, POD], Verdict.REPEAT)):
        rig.held.follow(known, RANGES)
        rig.step()
        assert rig.verdict(packet) is verdict


def test_a_pod_that_has_become_known_on_the_way_does_not_wait() -> None:
    rig = Rig(POD)
    packet, to_it = rig.sent(POD), rig.sent(OUTSIDE, POD)
    rig.step()
    assert {rig.verdict(packet), rig.verdict(to_it)} == {Verdict.REPEAT}


def test_packets_of_a_former_process_wait_for_what_this_one_learns() -> None:
    """Its table stands until the first sync, and hands over packets of pods that were new then."""
    held = HeldPackets(7, clock=lambda: 100.0)
    rig = Rig()
    rig.held = held
    packets = [rig.sent(POD), rig.sent(OTHER), rig.sent(OUTSIDE, POD)]
    rig.step()
    assert rig.queue.verdicts == {}
    held.follow([POD], RANGES)
    rig.step()
    assert [rig.verdict(each) for each in packets] == [Verdict.REPEAT, None, Verdict.REPEAT]


def test_packets_are_dropped_after_their_time_the_oldest_first() -> None:
    rig = Rig()
    first = rig.sent(POD)
    rig.step()
    rig.now += 1
    second = rig.sent(POD)
    rig.step()
    rig.now += SECONDS - 1
    rig.step()
    assert [rig.verdict(first), rig.verdict(second)] == [Verdict.DROP, None]
    rig.now += 1
    rig.step()
    assert rig.verdict(second) is Verdict.DROP
    assert (rig.counts, rig.held.held) == ({"expired": 2}, 0)


def test_a_repeated_segment_takes_no_room_and_datagrams_are_all_kept() -> None:
    rig = Rig()
    first, again = rig.sent(POD, protocol=TCP), rig.sent(POD, protocol=TCP)
    other = rig.sent(POD, protocol=TCP, ports=b"abxy")
    datagrams = [rig.sent(POD), rig.sent(POD)]
    rig.step()
    assert [rig.verdict(each) for each in (first, again, other, *datagrams)] == [
        None,
        Verdict.DROP,
        *[None] * 3,
    ]
    rig.held.follow([POD], RANGES)
    rig.step()
    rig.held.follow([], RANGES)
    later = rig.sent(POD, protocol=TCP)
    rig.step()
    assert rig.verdict(later) is None


def test_one_address_does_not_take_the_room_of_others() -> None:
    rig = Rig()
    many = [rig.sent(POD) for _ in range(MOST_EACH + 3)]
    other = rig.sent(OTHER)
    rig.step()
    dropped = [number for number in many if rig.verdict(number) is Verdict.DROP]
    assert (len(dropped), rig.verdict(other)) == (3, None)
    assert (rig.counts, rig.held.held) == ({"refused": 3}, MOST_EACH + 1)
    rig.now += SECONDS
    rig.step()
    assert rig.sent(POD) not in rig.queue.verdicts
    rig.step()
    assert rig.held.held == 1


def test_the_whole_is_bounded() -> None:
    rig = Rig()
    for host in range(1, 40):
        for _ in range(MOST_EACH):
            rig.sent(OUTSIDE, f"10.244.1.{host}")
    rig.step()
    assert (rig.counts, rig.held.held) == ({"refused": 39 * MOST_EACH - MOST}, MOST)


def test_rules_that_hand_over_known_pods_again_and_again_do_not_make_a_loop() -> None:
    rig = Rig(POD)
    numbers = []
    for _ in range(20):
        numbers.append(rig.sent(POD))
        rig.step()
    assert Verdict.DROP in {rig.verdict(number) for number in numbers}
    rig.now += 2
    later = rig.sent(POD)
    rig.step()
    assert rig.verdict(later) is Verdict.REPEAT


class Waiting(FakeQueue):
    """`wait` blocks until `wake`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def wait(self, seconds: float | None) -> Collection[Queued]:
        self.asked.set()
        assert self.woken.wait(10)
        self.woken.clear()
        return ()


def test_the_thread_gives_up_the_queue_while_it_is_off_and_at_the_end() -> None:
    made = [Waiting(), Waiting()]
    queues = iter(made)
    held = HeldPackets(7, make=lambda *_: next(queues))
    stop = threading.Event()
    thread = threading.Thread(target=held.run, args=(stop,))
    thread.start()
    assert made[0].asked.wait(10)
    held.turn(on=False)
    held.turn(on=True)
    stopped = made[1] if made[0].closed else made[0]
    assert stopped.asked.wait(10)
    stop.set()
    held.wake()
    thread.join(10)
    assert not thread.is_alive()
    assert stopped.closed


def test_nothing_is_opened_while_it_is_off() -> None:
    held = HeldPackets(7, make=lambda *_: pytest.fail("the queue is opened"))
    held.turn(on=False)
    stop = threading.Event()
    thread = threading.Thread(target=held.run, args=(stop,))
    thread.start()
    stop.set()
    held.wake()
    thread.join(10)
    assert not thread.is_alive()


def test_a_queue_that_cannot_be_had_is_named_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REOPEN", 0.0)
    stop, tries = threading.Event(), itertools.count(1)

    def make(*_: int) -> FakeQueue:
        if next(tries) == 3:
            stop.set()
        raise NfqueueError("another program reads queue 7")

    with capture_logs() as logs:
        HeldPackets(7, make=make).run(stop)
    assert [entry["event"] for entry in logs] == ["held_packets_unavailable"]
    assert logs[0]["reason"] == "another program reads queue 7"
