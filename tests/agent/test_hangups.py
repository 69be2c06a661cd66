"""SIGHUP before there is a reloader: it is not lost, and later ones go straight through."""

from __future__ import annotations

import os
import queue
import signal
import threading

from kproxy.agent.signals import Leaving, Signals

PATIENCE = 30.0


def test_a_hangup_while_the_kernel_is_tried_reloads_as_soon_as_that_is_possible() -> None:
    asked: queue.Queue[str] = queue.Queue()
    leaving, stopped = Leaving(configured=False), threading.Event()
    taken = threading.Event()
    leaving.changed = lambda _: taken.set()
    with Signals(stopped.set, leaving) as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)  # is taken after it, and so tells that it was
        assert taken.wait(PATIENCE)
        signals.follow_reloads(asked.put)
        assert asked.get(timeout=PATIENCE) == "SIGHUP"
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.get(timeout=PATIENCE) == "SIGHUP"
        assert (leaving.cleans_up, stopped.is_set(), signals.ended) == (True, False, False)


def test_without_a_hangup_nothing_is_reloaded() -> None:
    asked: list[str] = []
    with Signals(lambda: None, Leaving(configured=False)) as signals:
        signals.follow_reloads(asked.append)
    assert asked == []
