"""The `kproxy` command, as `python -m kproxy` and as the console script.

Signals are handled before anything else is imported, which takes some tenths of a second. A container's first
process has no default actions: without a handler it ignores SIGTERM, and the container runtime waits for the
whole grace period (pid_namespaces(7)).
"""

import os
import signal
from types import FrameType

_FIRST_PROCESS = 1


def main() -> None:
    """Run the command of the command line."""
    ends: dict[int, object] = {signal.SIGINT: signal.default_int_handler}
    if os.getpid() == _FIRST_PROCESS:
        ends[signal.SIGTERM] = signal.SIG_DFL
    handled = [number for number, default in ends.items() if signal.getsignal(number) is default]
    for number in handled:
        signal.signal(number, _end)
    from kproxy.cli.main import main as command

    # From here on, click turns it into one line and exit status 1.
    if signal.SIGINT in handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command(prog_name="kproxy")


def _end(number: int, _frame: FrameType | None) -> None:
    """End without a traceback; what a command tries in the kernel is removed on the way."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
