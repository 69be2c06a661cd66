"""When a watch cannot continue from its resourceVersion, so that the kind has to be listed again.

The usual case is 410 Gone: the server has compacted its history since. Two others need the same remedy. A
server that is restored from a backup goes back in time: it answers a watch from a version that it has not
reached with silence or with older objects. Versions compare as integers (KEP-5504); others are not compared.
And a stream that is unreadable at one event is unreadable there again.
"""

from kproxy.sources.errors import ExpiredError, StalledError, StatusError
from kproxy.sources.wire_events import GarbledError

_GONE = 410

_SILENT_STALLS = 2
"""Consecutive watches without any data: the server may be behind the known resourceVersion, so list again."""

_GARBLED = 3
"""Consecutive unreadable streams from the same resourceVersion before a list is tried instead."""


def is_gone(error: Exception | None) -> bool:
    """Whether the server answers 410: a resourceVersion or a continue token has expired."""
    return isinstance(error, StatusError) and error.code == _GONE


class Expiry:
    """Decides for the watch of one kind whether its resourceVersion is of no use any more."""

    def __init__(self) -> None:
        self._silent_stalls = 0
        self._garbled = 0
        self._listed_again = False

    def listed(self) -> None:
        """Note a complete list."""
        self._silent_stalls = self._garbled = 0

    def progressed(self) -> None:
        """Note an event that was passed on."""
        self._garbled = 0

    def stalled(self, *, silent: bool) -> None:
        """Note a watch on which no data came any more; `silent`: it had brought none at all."""
        self._silent_stalls = self._silent_stalls + 1 if silent else 0

    def steady(self) -> None:
        """Note a watch that lived long."""
        self._listed_again = False

    def must_list(self, error: Exception | None) -> bool:
        """Whether the watch that ended with `error` cannot continue from the known resourceVersion."""
        if isinstance(error, GarbledError):
            self._garbled += 1
        return (
            is_gone(error)
            or isinstance(error, ExpiredError)
            or (isinstance(error, StalledError) and self._silent_stalls >= _SILENT_STALLS)
            or (isinstance(error, GarbledError) and self._garbled >= _GARBLED)
        )

    def may_list_at_once(self) -> bool:
        """Whether this is the first time since a steady watch; later ones wait as after a failure."""
        first, self._listed_again = not self._listed_again, True
        return first


class VersionOrder:
    """The order of one kind's versions observed so far."""

    def __init__(self) -> None:
        self._comparable = True
        self._went_back = False

    def is_behind(self, version: str, known: str | None) -> bool:
        """Whether a version is older than the known one."""
        if not self._comparable or not known or not (known.isdecimal() and version.isdecimal()):
            return False
        return int(version) < int(known)

    def check(self, current: str, known: str) -> None:
        """Raise ExpiredError if the server's `current` version is older than the known one."""
        if self.is_behind(current, known):
            raise ExpiredError(f"the server is at {current}, behind {known}")

    def see(self, version: str, known: str | None) -> bool:
        """Compare the version of an event; return False if no later one will be compared.

        Raises ExpiredError if the server went back: all must be listed again. If it then goes back behind the
        new list, its versions have no order, which no API server does; its events are used in the order of
        arrival.
        """
        if not self.is_behind(version, known):
            self._went_back = False
            return True
        if self._went_back:
            self._comparable = False
            return False
        self._went_back = True
        raise ExpiredError(f"the server went back from {known} to {version}")
