"""The lock of a network namespace and its holder's report, under a name of the test's own."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from kproxy.node import holder as holder_module
from kproxy.node import instance as module
from kproxy.node.holder import Connection, Holder, Report, connection
from kproxy.node.instance import Instance, InstanceRunning

PATIENCE = 20.0
REPORT = Report(7, "2026-01-01T00:00:00Z", "0.1.0", "run", "ipvs")


@pytest.fixture(autouse=True)
def _own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"\0kproxy-test/{secrets.token_hex(8)}"
    monkeypatch.setattr(module, "NAME", name)
    monkeypatch.setattr(holder_module, "NAME", name)


class Told:
    """The names of the logged events, as they come from any thread."""

    def __init__(self) -> None:
        self.events: queue.Queue[str] = queue.Queue()

    def info(self, event: str, **_: object) -> None:
        self.events.put(event)

    def warning(self, event: str, **_: object) -> None:
        self.events.put(event)

    def next(self) -> str:
        return self.events.get(timeout=PATIENCE)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found = Told()
    monkeypatch.setattr(module, "log", found)
    return found


@contextmanager
def holding(mode: Callable[[], str] = lambda: "ipvs", *, stopping: bool = False) -> Iterator[Instance]:
    with Instance("run", "0.1.0", mode, stopping=stopping) as instance:
        instance.acquire(wait=0)
        yield instance


@contextmanager
def connected() -> Iterator[Connection]:
    with connection() as found:
        assert found is not None
        yield found


@contextmanager
def answering(*answers: bytes, listen: bool = True) -> Iterator[socket.socket]:
    """A program that has the name and sends these bytes to its first client."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(holder_module.NAME)
        if listen:
            listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for answer in answers:
                    client.sendall(answer)
                client.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        if answers:
            thread.start()
        yield listener
        if answers:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_without_a_holder_there_is_no_connection() -> None:
    with connection() as found:
        assert found is None


def test_the_holder_reports_itself_and_each_change() -> None:
    modes = ["ipvs"]
    with holding(lambda: modes[-1]) as instance, connected() as client:
        holder = client.holder()
        assert (holder.pid, holder.uid) == (os.getpid(), os.geteuid())
        first = holder.report
        assert first is not None
        assert (first.pid, first.version, first.command, first.mode) == (os.getpid(), "0.1.0", "run", "ipvs")
        assert (first.stopping, first.cleanup_on_exit) == (False, False)
        assert first.since.endswith("Z")
        modes.append("nftables")
        instance.update(cleanup_on_exit=True)
        assert client.next(PATIENCE) == msgspec.structs.replace(first, mode="nftables", cleanup_on_exit=True)
        instance.follow(lambda: "iptables")
        instance.update(stopping=True)
        last = client.next(PATIENCE)
        assert last == msgspec.structs.replace(first, mode="iptables", cleanup_on_exit=True, stopping=True)
        instance.update(cleanup_on_exit=False)
        assert client.next(PATIENCE) == msgspec.structs.replace(first, mode="iptables", stopping=True)
        assert client.next(0.001) is None


def test_a_cleanup_says_from_the_start_that_it_is_stopping() -> None:
    with holding(stopping=True), connected() as client:
        report = client.holder().report
        assert report is not None
        assert report.stopping


def test_every_client_gets_each_change_though_others_have_left() -> None:
    with holding() as instance, connected() as first, connected() as second:
        with connected() as third:
            for client in (first, second, third):
                assert client.holder().report is not None
        instance.update(stopping=True)
        for client in (first, second):
            report = client.next(PATIENCE)
            assert report is not None
            assert report.stopping


def test_a_connection_ends_with_the_holder() -> None:
    with connected_to_the_past() as client, pytest.raises(EOFError):
        client.next(PATIENCE)


@contextmanager
def connected_to_the_past() -> Iterator[Connection]:
    """A connection to a holder that has ended; its first report was read."""
    with contextlib.ExitStack() as stack:
        with holding():
            client = stack.enter_context(connected())
            assert client.holder().report is not None
        yield client


def test_a_second_start_ends_with_the_name_of_the_first() -> None:
    with holding(), Instance("run", "0.1.0") as second, capture_logs() as logs:
        with pytest.raises(InstanceRunning, match=rf"pid {os.getpid()}: kproxy run, mode ipvs, since 2"):
            second.acquire(wait=0)
        assert logs == []


def test_a_start_waits_for_the_one_that_ends(told: Told) -> None:
    acquired = threading.Event()
    with Instance("run", "0.1.0") as second:

        def acquire() -> None:
            second.acquire(wait=PATIENCE)
            acquired.set()

        thread = threading.Thread(target=acquire)
        with holding() as first:
            thread.start()
            assert told.next() == "waiting_for_other_kproxy"
            first.update(cleanup_on_exit=True)  # news that are not the end
            assert not acquired.is_set()
        thread.join(PATIENCE)
        assert acquired.is_set()
        assert told.next() == "other_kproxy_ended"
        assert told.events.empty()
        with connected() as client:
            assert client.holder().report is not None


def test_one_that_is_stopping_is_waited_for_longer(told: Told) -> None:
    with Instance("run", "0.1.0") as second:
        refused: list[InstanceRunning] = []

        def acquire() -> None:
            try:
                second.acquire(wait=0.001, wait_stopping=PATIENCE)
            except InstanceRunning as error:
                refused.append(error)

        thread = threading.Thread(target=acquire)
        with holding(stopping=True):
            with pytest.raises(InstanceRunning, match="stopping"):
                second.acquire(wait=PATIENCE, wait_stopping=0)
            assert told.next() == "waiting_for_other_kproxy"
            thread.start()
            assert told.next() == "waiting_for_other_kproxy"
        thread.join(PATIENCE)
        assert refused == []
        assert told.next() == "other_kproxy_ended"


def test_another_users_process_cannot_keep_kproxy_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = Holder(5, os.geteuid() + 1234, None)
    monkeypatch.setattr(Connection, "holder", lambda _: stranger)
    with holding(), Instance("run", "0.1.0") as second, capture_logs() as logs:
        second.acquire(wait=PATIENCE)
    assert [(each["event"], each.get("pid"), each.get("uid")) for each in logs] == [
        ("instance_lock_unusable", 5, stranger.uid)
    ]


@pytest.mark.parametrize(
    "answers", [(b"SSH-2.0-OpenSSH\n",), (b"[]\n",), (b"x" * 3000, b"x" * 3000)], ids=["text", "list", "long"]
)
def test_a_program_that_is_no_kproxy_does_not_answer(answers: tuple[bytes, ...]) -> None:
    with answering(*answers), connected() as client:
        holder = client.holder()
        assert (holder.pid, holder.report) == (os.getpid(), None)
        assert str(holder) == f"pid {os.getpid()}, which does not answer"


def test_a_report_in_pieces_is_one_and_two_in_one_piece_are_two() -> None:
    line = msgspec.json.encode(REPORT) + b"\n"
    with answering(line[:10], line[10:] + line), connected() as client:
        assert client.next(PATIENCE) == REPORT
        assert client.next(PATIENCE) == REPORT


def test_a_name_that_takes_no_connection_does_not_keep_kproxy_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_IDENTIFY", 0.02)
    with answering(listen=False), Instance("run", "0.1.0") as instance, capture_logs() as logs:
        instance.acquire(wait=0)
    assert [each["event"] for each in logs] == ["instance_lock_unusable"]


def test_a_name_that_takes_no_connection_yet_is_tried_again() -> None:
    with answering(listen=False) as other, Instance("run", "0.1.0") as instance, capture_logs() as logs:
        thread = threading.Thread(target=instance.acquire, kwargs={"wait": PATIENCE})
        thread.start()
        other.close()
        thread.join(PATIENCE)
        assert logs == []
        with connected() as client:
            assert client.holder().report is not None


def test_clients_beyond_the_limit_get_the_report_and_no_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WATCHERS", 1)
    with holding() as instance, connected() as first:
        assert first.holder().report is not None
        with connected() as second:
            assert second.holder().report is not None
            with pytest.raises(EOFError):
                second.next(PATIENCE)
        instance.update(stopping=True)
        assert first.next(PATIENCE) is not None


def test_clients_of_other_users_get_the_report_and_no_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_trusted", lambda _: False)
    with holding(), connected() as client:
        assert client.holder().report is not None
        with pytest.raises(EOFError):
            client.next(PATIENCE)


def test_a_client_is_answered_when_there_are_descriptors_again(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ACCEPT_AGAIN", 0.02)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with holding(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        with connected() as client:  # so the holder serves
            client.holder()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
            stream.connect(holder_module.NAME)
            assert told.next() == "instance_accept_failed"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert Connection(stream).holder().report is not None


def test_a_signal_reaches_the_holder_and_no_successor() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with holding(), connected() as client:
            client.send(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
        with connected_to_the_past() as past, pytest.raises(EOFError):
            past.send(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_reports_that_came_before_a_signal_are_not_lost() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with holding(), connected() as client, connected() as other:
            assert other.holder().report is not None
            client.send(signal.SIGUSR1)
            assert client.holder().report is not None
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_holder_in_another_pid_namespace_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(), connected() as client:
        monkeypatch.setattr(client, "_pid", None)
        with pytest.raises(ProcessLookupError, match="cannot be seen"):
            client.send(signal.SIGUSR1)


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(5, 0, REPORT), "pid 5: kproxy run, mode ipvs, since 2026-01-01T00:00:00Z"),
        (
            Holder(None, 0, msgspec.structs.replace(REPORT, mode="", stopping=True)),
            f"pid 7 of another PID namespace, as in a container: kproxy run, since {REPORT.since}, stopping",
        ),
        (Holder(None, 0, None), "a process of another PID namespace, which does not answer"),
    ],
)
def test_a_holder_is_named_as_far_as_it_is_known(holder: Holder, text: str) -> None:
    assert str(holder) == text


def test_trust_is_for_root_and_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert module._is_trusted(ours)
        uid: Any = os.getuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        assert module._is_trusted(ours) == (uid == 0)
