"""The interface between sources and the tables: every source calls the same four methods of a Sink.

`replace` takes a complete list and so makes deletes correct after any outage: exactly the objects that a
complete list no longer holds are gone.
"""

from collections.abc import Collection, Sequence
from threading import Event
from typing import Protocol, runtime_checkable

from kproxy.state.kinds import Kind
from kproxy.state.problems import Problem
from kproxy.state.wire import WireObject


class ListSink(Protocol):
    """Takes complete lists. Methods may be called from any thread and return quickly."""

    def replace(self, kind: Kind, objects: Sequence[WireObject], unreadable: Collection[str]) -> None:
        """Store a complete list of a kind; the first one marks the kind as synced.

        `unreadable` are the keys of objects that exist but could not be decoded: their former versions stay
        in force.
        """

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """Report an object that could not be decoded; the former version of `key` stays in force."""


class Sink(ListSink, Protocol):
    """Takes complete lists and single changes."""

    def upsert(self, kind: Kind, obj: WireObject) -> None:
        """Store one added or modified object."""

    def delete(self, kind: Kind, key: str) -> None:
        """Remove one object by its key; an unknown key is no error."""


@runtime_checkable
class VersionSink(Sink, Protocol):
    """A Sink that reports which resourceVersion was applied when."""

    def upsert_version(self, kind: Kind, obj: WireObject, version: str) -> None:
        """As `upsert`, for an object of this resourceVersion."""


@runtime_checkable
class ProblemSink(Sink, Protocol):
    """A Sink that keeps the defects of objects until they are fixed, for the status."""

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """Replace all defects reported before by the current ones.

        This is for sources with defects that belong to no object, such as files that are not YAML: no upsert
        or delete would remove those.
        """


@runtime_checkable
class ForgettingSink(Sink, Protocol):
    """A Sink for which a kind can end."""

    def forget(self, kind: Kind) -> None:
        """Drop everything about a kind that is not watched any more, as if it had never been listed."""


class SourceError(Exception):
    """The configuration of a source cannot be used, and a retry would not help."""


class Source(Protocol):
    """Feeds a Sink until it is stopped."""

    def run(self, sink: Sink, stop: Event) -> None:
        """Feed `sink` until `stop` is set; returns only then. Outages are retried inside.

        Raises SourceError at once if it cannot begin.
        """
