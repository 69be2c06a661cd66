"""Thread stacks and a CPU profile of a running kproxy, for `enableProfiling` instead of Go's pprof.

Both read the interpreter's frames of every thread, so they cost nothing unless requested. The answers are
text: stacks as tracebacks, and a profile as the folded stacks of flame graphs.
"""

import sys
import threading
import traceback
from collections import Counter
from types import FrameType

SECONDS = 10.0
"""The duration of a profile."""
INTERVAL = 0.01
"""Seconds between two samples."""


def threads() -> str:
    """The stack of every thread, the innermost call last."""
    names = _names()
    parts = []
    for number, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way (sys)
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(number, number)}:\n{stack}")
    return "\n".join(sorted(parts))


def profile(seconds: float = SECONDS, interval: float = INTERVAL) -> str:
    """Stacks with their number of samples, as `thread;outer;...;inner count`, without this thread's."""
    found: Counter[str] = Counter()
    own, pause = threading.get_ident(), threading.Event()
    for _ in range(max(1, round(seconds / interval))):
        names = _names()
        for number, frame in sys._current_frames().items():  # noqa: SLF001
            if number != own:
                found[";".join([names.get(number, str(number)), *_folded(frame)])] += 1
        pause.wait(interval)
    return "".join(f"{stack} {count}\n" for stack, count in found.most_common())


def _names() -> dict[int, str]:
    return {each.ident: each.name for each in threading.enumerate() if each.ident is not None}


def _folded(frame: FrameType | None) -> list[str]:
    calls: list[str] = []
    while frame is not None:
        code = frame.f_code
        calls.append(f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return calls[::-1]
