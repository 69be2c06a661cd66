"""Addresses or news of them that cannot be had for a while: nothing ends, and nothing is missed."""

import errno
import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from kproxy.kernel import links
from kproxy.kernel.links import AddressEvents, AddressNews
from kproxy.node import address_watch as module
from kproxy.node.address_watch import AddressWatch
from tests.kernel.namespace import fresh_network

PATIENCE = 20.0
NO_DESCRIPTORS = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Kernel:
    """Addresses and news; either may fail."""

    def __init__(self) -> None:
        self.found = ("10.0.0.1",)
        self.read_fails = False
        self.listen_fails = 0
        self.drain_fails = 0
        self.opened = 0
        self.theirs: list[socket.socket] = []

    def read(self) -> tuple[str, ...]:
        if self.read_fails:
            raise NO_DESCRIPTORS
        return self.found

    @contextmanager
    def listen(self) -> Iterator[AddressEvents]:
        if self.listen_fails:
            self.listen_fails -= 1
            raise NO_DESCRIPTORS
        ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
        self.theirs.append(theirs)
        with ours, theirs:
            yield Events(self, ours)


class Events(AddressEvents):
    """News as the test sends them."""

    def __init__(self, kernel: Kernel, events: socket.socket) -> None:
        super().__init__(events, "lo")
        self._kernel = kernel

    def drain(self) -> AddressNews:
        self._events.recv(100)
        if self._kernel.drain_fails:
            self._kernel.drain_fails -= 1
            raise NO_DESCRIPTORS
        return AddressNews(device={"10.0.0.1": True})


class Running:
    """A watch on its thread."""

    def __init__(self, kernel: Kernel) -> None:
        self.news: queue.Queue[AddressNews] = queue.Queue()
        self.watch = AddressWatch("lo", kernel.read, kernel.listen)
        self._thread = threading.Thread(target=self.watch.run, args=(self.news.put,), daemon=True)
        self._thread.start()

    def next(self) -> AddressNews:
        return self.news.get(timeout=PATIENCE)

    def end(self) -> None:
        self.watch.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    return Kernel()


@pytest.fixture
def running(kernel: Kernel) -> Iterator[Running]:
    made = Running(kernel)
    yield made
    made.end()


def test_news_are_passed_on_and_all_is_missed_before_the_first(kernel: Kernel, running: Running) -> None:
    assert running.next() == links.MISSED
    kernel.theirs[0].send(b"x")
    assert running.next().device == {"10.0.0.1": True}


def test_a_read_is_tried_again_in_its_time_and_news_come_before_it(
    kernel: Kernel, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running.next() == links.MISSED
    assert running.watch.addresses() == ("10.0.0.1",)
    monkeypatch.setattr(module, "RETRY_SECONDS", 1000.0)
    kernel.read_fails = True
    assert running.watch.addresses() == ("10.0.0.1",)
    for _ in range(3):
        kernel.theirs[0].send(b"x")
        assert running.next().device == {"10.0.0.1": True}
    assert running.news.empty()


def test_news_that_cannot_be_had_are_missed_until_they_can(kernel: Kernel) -> None:
    kernel.listen_fails = 3
    running = Running(kernel)
    assert running.next() == links.MISSED
    kernel.drain_fails = 1
    kernel.theirs[0].send(b"x")
    assert running.next() == links.MISSED
    kernel.theirs[1].send(b"x")
    assert running.next().device
    running.end()


def test_addresses_that_cannot_be_read_stay_and_are_read_again(kernel: Kernel, running: Running) -> None:
    assert running.next() == links.MISSED
    assert running.watch.addresses() == ("10.0.0.1",)
    kernel.read_fails = True
    with capture_logs() as logs:
        assert running.watch.addresses() == ("10.0.0.1",)
    assert [(each["event"], each["reason"]) for each in logs] == [
        ("addresses_not_read", "Too many open files")
    ]
    assert running.next() == AddressNews(elsewhere=True)
    kernel.read_fails, kernel.found = False, ("10.0.0.2",)
    assert running.watch.addresses() == ("10.0.0.2",)


def test_the_first_addresses_cannot_be_done_without(kernel: Kernel, running: Running) -> None:
    kernel.read_fails = True
    with pytest.raises(OSError, match="Too many open files"):
        running.watch.addresses()


def test_the_end_is_obeyed_while_news_cannot_be_had(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 1000.0)
    kernel.listen_fails = 5
    Running(kernel).end()
    assert kernel.listen_fails == 4


def test_a_read_that_fails_after_the_end_changes_nothing(kernel: Kernel) -> None:
    running = Running(kernel)
    assert running.watch.addresses() == ("10.0.0.1",)
    running.end()
    kernel.read_fails = True
    assert running.watch.addresses() == ("10.0.0.1",)


@pytest.mark.root
@fresh_network
def test_the_kernels_own_news() -> None:
    news: queue.Queue[AddressNews] = queue.Queue()
    watch = AddressWatch("kube-ipvs0")
    thread = threading.Thread(target=watch.run, args=(news.put,), daemon=True)
    thread.start()
    assert news.get(timeout=PATIENCE) == links.MISSED
    assert watch.addresses() == ()
    watch.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
