"""A directory of the programs that write rules, which can be told to fail while somebody uses them."""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support.faultinjection import stand_in
from tests.support.faultinjection.orders import replace, source, tally
from tests.support.faultinjection.stand_in import Deed

NAMES = (
    *(
        "-".join(words)
        for words in itertools.product(("iptables", "ip6tables"), ("nft", "legacy"), ("restore", "save"))
    ),
    "nft",
)


class BrokenTools:
    """Stand-ins for nft and the programs of both variants; see `Room` for how they get in the way."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._script = f"#!{os.path.realpath(sys.executable)} -IS\n{source(stand_in)}"
        self.bring_back()

    def order(
        self, deed: Deed, *, chance: float = 1.0, programs: str = "restore", words: Sequence[str] = ("",)
    ) -> None:
        """Have the runs that begin from now on go wrong.

        `chance` of each, of the programs whose names end with `programs`, and only with one of `words` in
        the input, none of which has a comma.
        """
        replace(self.directory / "order", f"{deed}\t{chance}\t{programs}\t{','.join(words)}")

    def behave(self) -> None:
        """Withdraw the order."""
        (self.directory / "order").unlink(missing_ok=True)

    def take_away(self, programs: str = "restore") -> None:
        """Remove the programs whose names end so, as an upgrade of the package does for a moment."""
        for name in NAMES:
            if name.endswith(programs):
                (self.directory / name).unlink(missing_ok=True)

    def bring_back(self) -> None:
        """Put every program in its place."""
        for name in NAMES:
            new = self.directory / f"{name}.new"
            new.write_text(self._script, encoding="utf-8")
            new.chmod(0o755)
            new.rename(self.directory / name)

    @property
    def done(self) -> Counter[str]:
        """How many runs went wrong, by deed."""
        return tally(self.directory)
