"""The seam between the outside world and the tables: every source speaks to a Sink in the same four words.

`replace` carries a complete list and is what makes deletes right after any outage: what a complete list no
longer holds is gone, and nothing else is.
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
        """Take a complete list of a kind; the first one marks the kind as synced.

        `unreadable` are the keys of objects that exist but could not be decoded: what was known of them
        stays in force.
        """

    def reject(self, kind: Kind, key: str | None, problem: Problem) -> None:
        """Report an object that could not be decoded; what was known of `key` stays in force."""


class Sink(ListSink, Protocol):
    """Takes all that a source learns, single changes too."""

    def upsert(self, kind: Kind, obj: WireObject) -> None:
        """Take one added or modified object."""

    def delete(self, kind: Kind, key: str) -> None:
        """Forget one object by its key; one that is not known is no error."""


@runtime_checkable
class ProblemSink(Sink, Protocol):
    """A Sink that keeps what is wrong with objects until it is mended, for a status."""

    def set_problems(self, problems: Sequence[Problem]) -> None:
        """Take everything that is wrong now, in place of all that was reported before.

        For sources that know defects which belong to no object, such as files that are no YAML: no upsert or
        delete would take those back.
        """


class SourceError(Exception):
    """What a source was told of where objects are cannot be used, and waiting would not mend it."""


class Source(Protocol):
    """Something that feeds a Sink until it is told to stop."""

    def run(self, sink: Sink, stop: Event) -> None:
        """Feed `sink` until `stop` is set; returns only then. Outages are retried inside.

        Raises SourceError at once if it cannot begin.
        """
