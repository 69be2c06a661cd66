"""A server whose address is taken: an error if the operator says so, else tried until it is free."""

import socket
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from kproxy.agent.listening import serving


class Listener:
    """Binds when it is made, as the real servers do."""

    def __init__(self, port: int, started: threading.Event) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self._started = started

    def start(self) -> None:
        self._started.set()

    def stop(self) -> None:
        self._socket.close()


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder


def test_a_free_address_is_served_at_once_and_freed_at_the_end(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    taken.close()
    started = threading.Event()
    with serving("test", "there", lambda: Listener(port, started), hard_fail=True):
        assert started.is_set()
        with pytest.raises(OSError, match="in use"):
            Listener(port, started)
    Listener(port, started).stop()


def test_a_taken_address_is_the_end_if_the_operator_says_so(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    with (
        pytest.raises(OSError, match="in use"),
        serving("test", "there", lambda: Listener(port, threading.Event()), hard_fail=True),
    ):
        pytest.fail("it must not get here")


def test_a_taken_address_is_tried_until_it_is_free(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    started = threading.Event()
    with (
        capture_logs() as logs,
        serving("test", "there", lambda: Listener(port, started), hard_fail=False, retry=0.01),
    ):
        assert not started.is_set()
        taken.close()
        assert started.wait(30)
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == ["bind_failed", "bound"]
    Listener(port, started).stop()


def test_one_that_never_gets_free_does_not_hold_up_the_end(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    started = threading.Event()
    with serving("test", "there", lambda: Listener(port, started), hard_fail=False):
        pass
    assert not started.is_set()
