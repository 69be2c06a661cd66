"""A wall clock that a test sets while a program runs, for that program only."""

from pathlib import Path

from tests.support.faultinjection import clock_faults
from tests.support.faultinjection.control_files import customise, replace


class BrokenClock:
    """A directory for `Sandbox.wall_clock`; the program in the sandbox reads the time set here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        customise(directory, clock_faults)

    def set(self, ahead: float) -> None:
        """Set the clock `ahead` seconds ahead of the machine's; negative: behind."""
        replace(self.directory / "ahead", str(ahead))
