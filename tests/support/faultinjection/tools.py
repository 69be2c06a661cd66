"""A directory of wrappers of the programs that write rules, which a test makes fail while they are used."""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support.faultinjection import tool_wrapper
from tests.support.faultinjection.control_files import replace, source, tally
from tests.support.faultinjection.tool_wrapper import ToolFault

NAMES = (
    *(
        "-".join(words)
        for words in itertools.product(("iptables", "ip6tables"), ("nft", "legacy"), ("restore", "save"))
    ),
    "nft",
)


class BrokenTools:
    """Wrappers of nft and the iptables programs of both variants, for `Sandbox.tools`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._script = f"#!{os.path.realpath(sys.executable)} -IS\n{source(tool_wrapper)}"
        self.install()

    def enable(
        self,
        fault: ToolFault,
        *,
        chance: float = 1.0,
        programs: str = "restore",
        words: Sequence[str] = ("",),
    ) -> None:
        """Inject `fault` with probability `chance` into each run that starts from now on.

        Only runs of programs whose names end with `programs`, and whose input contains one of `words`
        (which must not contain a comma).
        """
        replace(self.directory / "fault", f"{fault}\t{chance}\t{programs}\t{','.join(words)}")

    def disable(self) -> None:
        """Stop injecting faults."""
        (self.directory / "fault").unlink(missing_ok=True)

    def uninstall(self, programs: str = "restore") -> None:
        """Remove the programs whose names end with `programs`, as a package upgrade does for a moment."""
        for name in NAMES:
            if name.endswith(programs):
                (self.directory / name).unlink(missing_ok=True)

    def install(self) -> None:
        """Install every wrapper."""
        for name in NAMES:
            new = self.directory / f"{name}.new"
            new.write_text(self._script, encoding="utf-8")
            new.chmod(0o755)
            new.rename(self.directory / name)

    @property
    def injected(self) -> Counter[str]:
        """Runs with an injected fault, by fault."""
        return tally(self.directory)
