"""A wall clock of a program that can be set while it runs, and is nobody else's."""

from pathlib import Path

from kproxy.testing.sabotage import wall


class BrokenClock:
    """A directory for `Room`, in which the program's clock is as it is set here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        text = Path(wall.__file__).read_text(encoding="utf-8")
        (directory / "sitecustomize.py").write_text(text, encoding="utf-8")

    def set(self, ahead: float) -> None:
        """Set it by so many seconds ahead of the machine's; fewer than 0 are behind."""
        new = self.directory / "ahead.new"
        new.write_text(str(ahead), encoding="utf-8")
        new.rename(self.directory / "ahead")
