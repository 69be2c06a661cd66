"""Whether a server still tells the history that we know, judged by its resourceVersions.

One that is restored from a backup goes back in time, and answers a watch from a version that it has not
reached with silence or with what is older. Versions compare as integers (KEP-5504); others are not judged.
"""

from kproxy.sources.errors import ExpiredError


class Order:
    """What one kind's versions have shown so far."""

    def __init__(self) -> None:
        self._judged = True
        self._went_back = False

    def is_behind(self, version: str, ours: str | None) -> bool:
        """Whether a version is older than ours."""
        if not self._judged or not ours or not (ours.isdecimal() and version.isdecimal()):
            return False
        return int(version) < int(ours)

    def see(self, version: str, ours: str | None) -> bool:
        """Judge the version of an event; False if from now on none will be judged.

        Raises ExpiredError if the server went back: all must be listed again. A server that then goes back
        behind the new list has versions without an order, as no API server has; its events are to be taken as
        they come.
        """
        if not self.is_behind(version, ours):
            self._went_back = False
            return True
        if self._went_back:
            self._judged = False
            return False
        self._went_back = True
        raise ExpiredError(f"the server went back from {ours} to {version}")
