"""How histories are played on a node in memory, whatever its mode: each step as the agent would do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

from hypothesis import strategies as st

from kproxy.backends.core.base import SyncReport
from tests.backends.node import Node
from tests.backends.strategies import CHANGE, Target, change

AnyNode = Node[Any, Any]
Changes = list[tuple[str, Any]]


def faulty(fault: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Changes, Any, bool]]]:
    """Histories of changes, what goes wrong with their sync, and whether the proxy starts again after it."""
    return st.lists(st.tuples(st.lists(CHANGE, max_size=4), fault, st.booleans()), min_size=1, max_size=6)


def play(node: AnyNode, start: Changes, history: list[tuple[Changes, str]], sync: Callable[[], Any]) -> None:
    """Play syncs, restarts, and comparisons while changes wait."""
    change(node, start)
    for changes, then in history:
        change(node, changes)
        if then == "restart":
            node.start()
        elif then == "check":
            node.plan()
            assert node.backend.check(full=True) == ()
            continue
        sync()
    node.done()


def play_faults(
    node: AnyNode,
    start: Changes,
    history: list[tuple[Changes, Any, bool]],
    arrange: Callable[[Any], None],
    clear: Callable[[], None],
) -> None:
    """Play syncs, each with what was arranged to go wrong; in the end nothing does any more."""
    change(node, start)
    for changes, fault, restart in history:
        change(node, changes)
        if fault is not None:
            arrange(fault)
        node.sync()
        clear()
        if restart:
            node.start()
    node.backend.retry()
    node.done()


class Serving(Target, Protocol):
    """A node that knows what it serves."""

    def done(self) -> SyncReport:
        """Sync, with nothing going wrong."""

    def beside(self) -> Self:
        """A new node that was given the objects of now at once."""

    def served(self) -> set[Any]:
        """The addresses that lead to an endpoint."""


class Watched(Protocol):
    """A kernel that tells of every change."""

    after: Callable[[], None]


def play_watched(node: Serving, kernel: Watched, start: Changes, history: list[tuple[Changes, str]]) -> None:
    """Play syncs; what is served before and after one is served after each of its changes of the kernel."""
    change(node, start)
    node.done()
    for changes, _ in history:
        served = node.served()
        change(node, changes)
        stays = served & node.beside().served()

        def look(stays: set[Any] = stays) -> None:
            assert stays <= node.served()

        kernel.after = look
        node.done()
        kernel.after = lambda: None
