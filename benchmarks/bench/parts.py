"""The parts of kproxy's first sync, one by one, in a process of their own; the start of its command line.

    python -m benchmarks.bench.parts nftables 1000 5

A part that became slower is visible here even if the total hides it. Prints one JSON object on stdout. The
first sync is made in the current network namespace.
"""

import json
import subprocess
import sys
import time

from benchmarks.sync_phases import MODES, measure

_NAMES = {"decode": "decode_ms", "plan": "plan_ms", "render": "render_ms", "apply": "write_ms"}


def measured(mode: str) -> bool:
    """Return whether the parts of this mode can be measured."""
    return mode in MODES


def help_ms() -> float:
    """From exec to the end of `kproxy --help`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kproxy", "--help"], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Measure once."""
    mode, services, endpoints = sys.argv[1:]
    found = measure(int(services), int(endpoints), mode, repeats=0)
    parts = {_NAMES[name]: [value] for name, value in found.items()}
    print(json.dumps({**parts, "help_ms": [help_ms()]}))


if __name__ == "__main__":
    main()
