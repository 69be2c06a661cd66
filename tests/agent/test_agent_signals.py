"""What each signal asks of a running agent; the signals are real."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator

import pytest

from kproxy.agent.signals import Interrupted, Leaving, Signals
from kproxy.node.instance import CLEAN_UP_NOW, CLEAN_UP_ON_EXIT

PATIENCE = 20.0


class World:
    """An agent that writes down what it is asked to do."""

    def __init__(self) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.leaving = Leaving(configured=False)
        self.leaving.changed = lambda cleans: self.asked.put(f"cleans up: {cleans}")
        self.signals = Signals(lambda: self.asked.put("stop"), self.leaving)

    def next(self) -> str:
        return self.asked.get(timeout=PATIENCE)

    def reload(self, reason: str) -> None:
        self.asked.put(f"reload: {reason}")


@pytest.fixture
def world() -> Iterator[World]:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    made = World()
    with made.signals:
        yield made
    assert made.asked.empty()
    assert [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    ] == handlers


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_is_asked_for(world: World, number: signal.Signals) -> None:
    before = world.signals.ended
    send(number)
    assert world.next() == "stop"
    assert (before, world.signals.ended) == (False, True)
    assert not world.leaving.cleans_up


def test_a_cleanup_at_the_end_is_no_end(world: World) -> None:
    send(CLEAN_UP_ON_EXIT)
    assert world.next() == "cleans up: True"
    assert world.leaving.cleans_up
    assert not world.signals.ended


def test_a_cleanup_now_is_an_end(world: World) -> None:
    send(CLEAN_UP_NOW)
    assert [world.next(), world.next()] == ["cleans up: True", "stop"]
    assert world.signals.ended
    assert world.leaving.cleans_up


def test_a_request_to_clean_up_outlives_a_setting(world: World) -> None:
    world.leaving.configure(cleanup_on_exit=True)
    assert world.next() == "cleans up: True"
    world.leaving.configure(cleanup_on_exit=False)
    assert world.next() == "cleans up: False"
    world.leaving.ask()
    world.leaving.configure(cleanup_on_exit=False)
    assert [world.next(), world.next()] == ["cleans up: True"] * 2


def test_a_reload_is_asked_for_at_each_hangup(world: World) -> None:
    world.signals.follow_reloads(world.reload)
    assert world.asked.empty()
    for _ in range(2):
        send(signal.SIGHUP)
        assert world.next() == "reload: SIGHUP"


def test_a_hangup_before_anything_can_be_reloaded_is_not_forgotten(world: World) -> None:
    send(signal.SIGHUP, CLEAN_UP_ON_EXIT)
    assert world.next() == "cleans up: True"  # so the signal before it has been read too
    world.signals.follow_reloads(world.reload)
    assert world.next() == "reload: SIGHUP"


def test_a_second_end_interrupts_what_the_first_began(world: World) -> None:
    send(signal.SIGTERM)
    assert world.next() == "stop"
    with pytest.raises(Interrupted):
        wait_for_an_interrupt(world)
    assert world.next() == "stop"


def wait_for_an_interrupt(world: World) -> None:
    with world.signals.interruptible():
        send(signal.SIGINT)
        threading.Event().wait(PATIENCE)


def test_a_second_end_before_it_interrupts_too(world: World) -> None:
    send(signal.SIGTERM)
    assert world.next() == "stop"
    send(signal.SIGTERM)
    assert world.next() == "stop"
    with pytest.raises(Interrupted):
        wait_for_an_interrupt(world)


def test_a_cleanup_that_is_asked_for_again_goes_on(world: World) -> None:
    send(signal.SIGTERM)
    assert world.next() == "stop"
    send(CLEAN_UP_NOW)
    assert [world.next(), world.next()] == ["cleans up: True", "stop"]
    with world.signals.interruptible():
        send(CLEAN_UP_NOW)
        assert [world.next(), world.next()] == ["cleans up: True", "stop"]
        assert world.next() == "cleans up: True"  # it is passed on to the main thread, which goes on
