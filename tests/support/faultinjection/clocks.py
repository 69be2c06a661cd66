"""A wall clock of a program that can be set while it runs, and is nobody else's."""

from pathlib import Path

from tests.support.faultinjection import wall
from tests.support.faultinjection.orders import customise, replace


class BrokenClock:
    """A directory for `Room`, in which the program's clock is as it is set here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        customise(directory, wall)

    def set(self, ahead: float) -> None:
        """Set it by so many seconds ahead of the machine's; fewer than 0 are behind."""
        replace(self.directory / "ahead", str(ahead))
