"""What enableProfiling shows: every thread by name, and where it spends its time."""

import threading
from collections.abc import Iterator

import pytest

from kproxy.telemetry.http import profiling


def wait_here(started: threading.Event, stop: threading.Event) -> None:
    started.set()
    stop.wait()


@pytest.fixture
def waiting() -> Iterator[None]:
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=wait_here, args=(started, stop), name="a-waiting-thread")
    thread.start()
    started.wait()
    yield
    stop.set()
    thread.join()


def test_each_thread_is_shown_with_its_calls(waiting: None) -> None:
    found = next(part for part in profiling.threads().split("\n\n") if part.startswith("thread a-waiting"))
    assert "in wait_here\n    stop.wait()" in found


def test_a_profile_counts_the_looks_that_found_each_stack(waiting: None) -> None:
    lines = profiling.profile(seconds=0.05, interval=0.01).splitlines()
    counts = [line for line in lines if line.startswith("a-waiting-thread;") and ".wait_here:" in line]
    assert sum(int(line.rpartition(" ")[2]) for line in counts) == 5
    assert not any("profiling.profile" in line for line in lines)
