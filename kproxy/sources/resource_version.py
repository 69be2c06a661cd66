"""Detect by resourceVersions whether a server still has the known history.

A server that is restored from a backup goes back in time. It answers a watch from a version that it has not
reached with silence or with older objects. Versions compare as integers (KEP-5504); others are not compared.
"""

from kproxy.sources.errors import ExpiredError


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
