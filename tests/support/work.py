"""Count elementary work: the calls of functions, which do not depend on the load of the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def calls(run: Callable[[], object]) -> int:
    """The number of calls of Python and C functions, and of resumed generators."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def growth(work: Callable[[int], Callable[[], object]], size: int) -> float:
    """How many times more calls the double size takes: 2 is linear, 4 is quadratic.

    `work` prepares a size and returns what is counted.
    """
    once, twice = (calls(work(n)) for n in (size, 2 * size))
    return twice / once
