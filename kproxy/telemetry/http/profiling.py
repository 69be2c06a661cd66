"""Where a running kproxy is, and where its time goes: for `enableProfiling`, in place of Go's pprof.

Both read what the interpreter knows of every thread anyhow, so nothing is paid while nobody asks. What is
answered is text: stacks as tracebacks, and a profile as the folded stacks that flame graphs are drawn from.
"""

import sys
import threading
import traceback
from collections import Counter
from types import FrameType

SECONDS = 10.0
"""How long a profile looks."""
INTERVAL = 0.01
"""Seconds between two looks."""


def threads() -> str:
    """The stack of every thread, the innermost call last."""
    names = _names()
    parts = []
    for number, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way (sys)
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(number, number)}:\n{stack}")
    return "\n".join(sorted(parts))


def profile(seconds: float = SECONDS, interval: float = INTERVAL) -> str:
    """Stacks by the number of looks that found them, as `thread;outer;...;inner count`, but this thread's."""
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
