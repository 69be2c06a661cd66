"""What makes the wall clock of a program jump, as the file beside it says.

It is copied as `sitecustomize.py` to a directory that becomes PYTHONPATH, and puts its own `time.time` in the
place of Python's before the program begins. The file `ahead` holds the seconds by which the clock is ahead;
without it the clock is right. What reads the clock in C, such as datetime.now(), sees the machine's.
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
