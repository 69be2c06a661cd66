"""Standard streams of a process that was started without them.

Some supervisors and containers start programs with descriptors 0 to 2 closed. Every command handles that
before anything else, so this module imports next to nothing.
"""

import os
import sys
from pathlib import Path

_STDERR = 2


def keep_descriptors() -> None:
    """Open /dev/null as descriptors 0, 1 and 2 where they are closed.

    Otherwise the next file or socket would get such a number, and output for stderr would go there.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(opened, True)  # noqa: FBT003
    os.close(opened)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
