"""Shifts the wall clock of a Python program by the seconds in the file `ahead`.

Copied as `sitecustomize.py` to a directory that becomes PYTHONPATH; it replaces `time.time` before the
program starts. Without the file the clock is the machine's. Code that reads the clock in C, such as
datetime.now(), is not affected.
"""

import time
from pathlib import Path

_FILE = Path(__file__).resolve().with_name("ahead")
_real = time.time


def _ahead() -> float:
    try:
        return float(_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0.0


def _now() -> float:
    return _real() + _ahead()


if __name__ == "sitecustomize":
    time.time = _now
    time.time_ns = lambda: int(_now() * 1e9)
